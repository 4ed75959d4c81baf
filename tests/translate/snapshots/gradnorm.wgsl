// gradnorm.forward, entry point forward, overrides [("WG", 128.0)]
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
// gradnorm.wgsl: the sum of squares of all gradients, in two stages; stepcontrol.wgsl does the second.
//   Gradients are multiples of what they stand for, by hyper.grad_unit and the loss scale; squared is what they stand
//   for, which cannot overflow where the multiple would.
//   grads (count V);  partials (groups): one sum per workgroup, from `first` on
struct P {
    count: u32,    // number of V
    first: u32,    // where this window's sums begin
    groups: u32,   // workgroups of this window
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> grads: array<V>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<storage, read> state: State;
@group(0) @binding(3) var<storage, read> hyper: Hyper;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let g = group_index(group, groups);
    if g >= p.groups { return; }
    // a workgroup's share is one run of memory: pages and caches like that on every machine
    let share = (p.count + p.groups - 1u) / p.groups;
    let end = min(p.count, (g + 1u) * share);
    let unscale = 1.0 / (hyper.grad_unit * state.loss_scale);
    // two sums: shorter chains of additions, smaller rounding error
    var s0 = V();
    var s1 = V();
    var i = g * share + lane;
    for (; i + WG < end; i += 2u * WG) {
        let a = grads[i] * unscale;
        let b = grads[i + WG] * unscale;
        s0 += a * a;
        s1 += b * b;
    }
    if i < end {
        let a = grads[i] * unscale;
        s0 += a * a;
    }
    let total = reduce_sum(lane, sum_v(s0 + s1));
    if lane == 0u { partials[p.first + g] = total; }
}
