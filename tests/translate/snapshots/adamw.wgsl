// adamw.forward, entry point forward, overrides [("WG", 64.0)]
// shared/vec4.wgsl: four f32 at a time, 16 bytes an access.
alias V = vec4<f32>;
alias U = vec4<u32>;
const VW = 4u;
fn sum_v(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_v(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_v(a: V, b: V) -> f32 { return dot(a, b); }
fn columns_v(first: u32) -> U { return first + vec4(0u, 1u, 2u, 3u); } // the columns that a V has from `first` on
fn pick_v(v: V, i: u32) -> f32 { return v[i]; }
alias S = V;
// shared/single.wgsl: what memory of stored elements is moved in, S, is one V
const K = 1u; // V of an S
fn part(s: S, k: u32) -> V { return V(s); }
fn whole(first: V, last: V) -> S { return S(first); }
fn as_stored(x: V) -> V { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, since one dimension ends at 65,535 groups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the only reduction over a workgroup. A tree, so that the order of additions never changes.
override WG: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WG>;

// Every invocation must call these: they hold barriers. The last barrier lets the scratch be used again at once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
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
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Two sums at once, over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WG>;
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
// shared/step.wgsl: what lives on the GPU from step to step, and what the host says of a step; src/ops/stepcontrol.rs has
// the same structs.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // what gradients are multiplied by: their unit taken out, then clipped
    loss_sum: f32,         // over the step's micro-steps
    loss_scale: f32,       // a power of two that the gradients are multiplied by; 1 in f32
    clean_steps: u32,      // updates since the loss scale last changed
}
struct Hyper {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,             // largest gradient norm; 0 switches clipping off
    loss_scale: f32,       // 1 / tokens of a step
    step: u32,
    grad_unit: f32,        // gradients are multiples of this and of the state's loss scale
    dynamic: u32,          // 1 if the state's loss scale follows overflows
    skip_loss_z: f32,      // a step is skipped if its loss's z-score is above this; 0 switches it off
    skip_norm_z: f32,      // the same of its gradient norm
}
// adamw.wgsl: AdamW with decoupled weight decay (Loshchilov and Hutter), as llm.c's adamw.cuh
//   g = grad * grad_scale;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   param -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd param)
//   param, grad, m, v, copy (count S);  one invocation per S. Does nothing at all in a step that is skipped.
//   forward          param, m and v
//   forward_copied   the same, and copy = param for the matrix products
struct P {
    count: u32,    // number of S
    decays: u32,   // 1 if weight decay applies
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read_write> param: array<V>;
@group(0) @binding(1) var<storage, read> grad: array<V>;
@group(0) @binding(2) var<storage, read_write> m: array<V>;
@group(0) @binding(3) var<storage, read_write> v: array<V>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read> hyper: Hyper;

@group(0) @binding(6) var<storage, read_write> copy: array<S>;

fn update(i: u32) -> V {
    let g = grad[i] * state.grad_scale;
    let first = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
    let second = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
    m[i] = first;
    v[i] = second;
    let mean = first / (1.0 - state.beta1_power);
    let spread = sqrt(second / (1.0 - state.beta2_power)) + V(hyper.eps);
    let decay = select(0.0, hyper.weight_decay, p.decays == 1u);
    let now = param[i] - hyper.lr * (mean / spread + decay * param[i]);
    param[i] = now;
    return now;
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count || state.apply == 0u { return; }
    for (var k = 0u; k < K; k++) { _ = update(i * K + k); }
}

@compute @workgroup_size(WG)
fn forward_copied(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count || state.apply == 0u { return; }
    var now: array<V, K>;
    for (var k = 0u; k < K; k++) { now[k] = update(i * K + k); }
    copy[i] = whole(now[0], now[K - 1u]);
}
