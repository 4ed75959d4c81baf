// adamw.forward, entry point forward, overrides [("WORKGROUP", 64.0)]
// shared/widths/vec4.wgsl: four f32 at a time, 16 bytes per access.
alias Vec = vec4<f32>;
alias UVec = vec4<u32>;
const ELEMENTS_PER_VEC = 4u;
fn sum_elements(v: Vec) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_element(v: Vec) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_product(a: Vec, b: Vec) -> f32 { return dot(a, b); }
fn columns_from(first: u32) -> UVec { return first + vec4(0u, 1u, 2u, 3u); } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v[i]; }
alias Stored = Vec;
// shared/widths/single.wgsl: Stored, the unit of loads and stores, is one Vec
const VECS_PER_STORED = 1u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(s); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(first); }
fn as_stored(x: Vec) -> Vec { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the reduction over a workgroup, by a tree, so that the order of additions never changes.
override WORKGROUP: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

// Every invocation must call these, because they contain barriers. After the last barrier the scratch can be reused at
// once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}

fn reduce_max(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Computes two sums at once over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WORKGROUP>;
fn reduce_pairs(lane: u32, team: u32, x: vec2<f32>) -> vec2<f32> {
    pair_scratch[lane] = x;
    for (var half = team / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % team < half { pair_scratch[lane] += pair_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = pair_scratch[lane / team * team];
    workgroupBarrier();
    return total;
}
// shared/step.wgsl: the state that stays on the GPU from step to step, and a step's hyperparameters from the host.
// src/ops/stepcontrol.rs has the same structs.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // factor of gradients: removes their unit and clips them
    reserved: u32,         // keeps the layout of checkpoints
    loss_scale: f32,       // factor of gradients, a power of two; 1 in f32
    clean_steps: u32,      // updates since the loss scale last changed
}
struct Hyper {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,             // largest gradient norm; 0 disables clipping
    inverse_tokens: f32,   // 1 / tokens of a step, which turns the sum of losses into the mean
    step: u32,
    grad_unit: f32,        // factor of gradients, in addition to the state's loss scale
    dynamic: u32,          // 1 if the loss scale is dynamic: overflows halve it
    skip_loss_z: f32,      // largest z-score of a loss, above which a step is skipped; 0 disables it
    skip_norm_z: f32,      // the same for the gradient norm
}
// adamw.wgsl: AdamW with decoupled weight decay (Loshchilov and Hutter), as llm.c's adamw.cuh
//   g = grad_scale grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   m_hat = m / (1 - beta1^t);  denominator = sqrt(v / (1 - beta2^t)) + eps
//   param -= lr (m_hat / denominator + weight_decay param)
//   param, grad, m, v, copy (count Stored);  one invocation per Stored. Writes nothing in a step that is skipped.
//   forward          param, m and v
//   forward_copied   the same, and copy = param for the matrix products
struct AdamwImmediates {
    count: u32,    // number of Stored
    decays: u32,   // 1 if weight decay applies
}
var<immediate> params: AdamwImmediates;

@group(0) @binding(0) var<storage, read_write> param: array<Vec>;
@group(0) @binding(1) var<storage, read> grad: array<Vec>;
@group(0) @binding(2) var<storage, read_write> m: array<Vec>;
@group(0) @binding(3) var<storage, read_write> v: array<Vec>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read> hyper: Hyper;

@group(0) @binding(6) var<storage, read_write> copy: array<Stored>;

fn update(i: u32) -> Vec {
    let g = grad[i] * state.grad_scale;
    let m_next = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
    let v_next = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
    m[i] = m_next;
    v[i] = v_next;
    let m_hat = m_next / (1.0 - state.beta1_power);
    let denominator = sqrt(v_next / (1.0 - state.beta2_power)) + Vec(hyper.eps);
    let decay = select(0.0, hyper.weight_decay, params.decays == 1u);
    let updated = param[i] - hyper.lr * (m_hat / denominator + decay * param[i]);
    param[i] = updated;
    return updated;
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count || state.apply == 0u { return; }
    for (var k = 0u; k < VECS_PER_STORED; k++) { _ = update(i * VECS_PER_STORED + k); }
}

@compute @workgroup_size(WORKGROUP)
fn forward_copied(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count || state.apply == 0u { return; }
    var updated: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { updated[k] = update(i * VECS_PER_STORED + k); }
    copy[i] = pack(updated[0], updated[VECS_PER_STORED - 1u]);
}
