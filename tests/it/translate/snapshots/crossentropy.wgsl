// crossentropy.forward, entry point forward, overrides [("WORKGROUP", 128.0)]
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
// crossentropy.wgsl: losses[n] = -log softmax(logits[n, 0..V])[target[n]];  dlogits = (softmax - onehot) * scale
//   logits (N, Vp), of which the first V columns count;  targets (N) u32, 0xffffffff for an ignored row
//   forward            one workgroup per row; losses only. A row is read twice, so workgroups for long rows are large
//                      enough that the rows in flight fit the L2
//   forward_backward   the same, and logits become dlogits in place; the padded columns become 0
struct CrossentropyImmediates {
    rows: u32,
    vocab: u32,    // V
    stride: u32,   // Stored per row
    scale: f32,    // factor of the gradient, in addition to the state's loss scale
}
var<immediate> params: CrossentropyImmediates;

const IGNORED = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> logits: array<Stored>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read> state: State;

const LOW = -3.0e38; // stands for minus infinity, which fast math may drop
const ELEMENTS_PER_STORED = ELEMENTS_PER_VEC * VECS_PER_STORED; // elements per Stored

// The row's largest logit, and the sum of exponentials below it.
fn softmax_row(row: u32, lane: u32) -> vec2<f32> {
    // one pass: each lane keeps its own maximum and rescales its sum when the maximum grows
    var most = LOW;
    var sum = 0.0;
    for (var c = lane; c * ELEMENTS_PER_STORED < params.vocab; c += WORKGROUP) {
        let all = logits[row + c];
        for (var k = 0u; k < VECS_PER_STORED; k++) {
            let counts = columns_from(c * ELEMENTS_PER_STORED + k * ELEMENTS_PER_VEC) < UVec(params.vocab);
            let x = select(Vec(LOW), unpack(all, k), counts);
            let largest = max_element(x);
            if largest > most {
                sum *= exp(most - largest);
                most = largest;
            }
            sum += sum_elements(select(Vec(), exp(x - Vec(most)), counts));
        }
    }
    let row_most = group_max(lane, most);
    return vec2(row_most, group_sum(lane, sum * exp(most - row_most)));
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let n = group_index(group, groups);
    if n >= params.rows { return; }
    let lane = lane_of(invocation);
    let s = softmax_row(n * params.stride, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
}

fn row_loss(n: u32, s: vec2<f32>) -> f32 {
    let target_token = targets[n];
    if target_token == IGNORED { return 0.0; }
    let v = unpack(logits[n * params.stride + target_token / ELEMENTS_PER_STORED],
                   target_token / ELEMENTS_PER_VEC % VECS_PER_STORED);
    return log(s.y) + s.x - element_of(v, target_token % ELEMENTS_PER_VEC);
}

@compute @workgroup_size(WORKGROUP)
fn forward_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    invocation: Invocation) {
    let n = group_index(group, groups);
    if n >= params.rows { return; }
    let lane = lane_of(invocation);
    let row = n * params.stride;
    let s = softmax_row(row, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
    // the target's logit must be read before any lane overwrites it
    storageBarrier();
    workgroupBarrier();
    let target_token = targets[n];
    let scale = select(params.scale * state.loss_scale, 0.0, target_token == IGNORED);
    let factor = scale / s.y;
    for (var c = lane; c < params.stride; c += WORKGROUP) {
        let all = logits[row + c];
        var d: array<Vec, VECS_PER_STORED>;
        for (var k = 0u; k < VECS_PER_STORED; k++) {
            let columns = columns_from(c * ELEMENTS_PER_STORED + k * ELEMENTS_PER_VEC);
            let slope = exp(unpack(all, k) - Vec(s.x)) * factor - select(Vec(), Vec(scale), columns == UVec(target_token));
            d[k] = select(Vec(), slope, columns < UVec(params.vocab));
        }
        logits[row + c] = pack(d[0], d[VECS_PER_STORED - 1u]);
    }
}
// shared/group_tree.wgsl: a sum and a maximum over a workgroup, by a tree in workgroup memory
struct Invocation { @builtin(local_invocation_index) lane: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.lane; }

// Every invocation must call these, because they contain barriers.
fn group_max(lane: u32, x: f32) -> f32 { return reduce_max(lane, x); }
fn group_sum(lane: u32, x: f32) -> f32 { return reduce_sum(lane, x); }
