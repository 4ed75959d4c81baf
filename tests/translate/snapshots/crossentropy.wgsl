// crossentropy.forward, entry point forward, overrides [("WG", 128.0)]
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
// crossentropy.wgsl: losses[n] = -log softmax(logits[n, 0..V])[target[n]];  dlogits = (softmax - onehot) * scale
//   logits (N, Vp), of which the first V columns count;  targets (N) u32, 0xffffffff for a row that does not count
//   forward            one workgroup per row; losses only
//   forward_backward   the same, and logits become dlogits in place; the padded columns become 0
struct P {
    rows: u32,
    vocab: u32,    // V
    stride: u32,   // S of a row
    scale: f32,    // times the state's loss scale: what the gradient is multiplied by
}
var<immediate> p: P;

const IGNORED = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> logits: array<S>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read> state: State;

const LOW = -3.0e38; // stands for minus infinity, which fast math may drop
const ELEMENTS = VW * K; // of an S

// The row's largest logit, and the sum of exponentials below it.
fn softmax_row(row: u32, lane: u32) -> vec2<f32> {
    // one pass: each lane keeps its own maximum and rescales its sum when that grows
    var most = LOW;
    var sum = 0.0;
    for (var c = lane; c * ELEMENTS < p.vocab; c += WG) {
        let all = logits[row + c];
        for (var k = 0u; k < K; k++) {
            let counts = columns_v(c * ELEMENTS + k * VW) < U(p.vocab);
            let x = select(V(LOW), part(all, k), counts);
            let largest = max_v(x);
            if largest > most {
                sum *= exp(most - largest);
                most = largest;
            }
            sum += sum_v(select(V(), exp(x - V(most)), counts));
        }
    }
    let row_most = reduce_max(lane, most);
    return vec2(row_most, reduce_sum(lane, sum * exp(most - row_most)));
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let s = softmax_row(n * p.stride, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
}

fn row_loss(n: u32, s: vec2<f32>) -> f32 {
    let target_token = targets[n];
    if target_token == IGNORED { return 0.0; }
    let v = part(logits[n * p.stride + target_token / ELEMENTS], target_token / VW % K);
    return log(s.y) + s.x - pick_v(v, target_token % VW);
}

@compute @workgroup_size(WG)
fn forward_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let row = n * p.stride;
    let s = softmax_row(row, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
    // the target's logit must be read before any lane overwrites it
    storageBarrier();
    workgroupBarrier();
    let target_token = targets[n];
    let scale = select(p.scale * state.loss_scale, 0.0, target_token == IGNORED);
    let factor = scale / s.y;
    for (var c = lane; c < p.stride; c += WG) {
        let all = logits[row + c];
        var d: array<V, K>;
        for (var k = 0u; k < K; k++) {
            let columns = columns_v(c * ELEMENTS + k * VW);
            let slope = exp(part(all, k) - V(s.x)) * factor - select(V(), V(scale), columns == U(target_token));
            d[k] = select(V(), slope, columns < U(p.vocab));
        }
        logits[row + c] = whole(d[0], d[K - 1u]);
    }
}
