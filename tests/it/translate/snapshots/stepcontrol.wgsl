// stepcontrol.accumulate, entry point accumulate, overrides [("WORKGROUP", 256.0)]
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
// stepcontrol.wgsl: decisions about a step, made on the GPU from the gradient norm and the loss.
//   accumulate   one workgroup; loss += sum of a micro-step's losses (N)
//   decide       one workgroup; sums the partials of the gradients' squares, tests for non-finite values, sets the clip
//                factor, counts skipped steps, advances Adam's powers, updates the loss scale, and writes the step's
//                report
// Outliers are skipped as in llm.c: z = (x - mean) / deviation over the last 128 values, including x, once there are
// 128. It is computed in two passes over values minus x, because sums of squares of raw values would cancel in f32.
// Values that are not finite are left out, or they would stay for 128 steps. The loss scale is halved when a step
// overflows and doubled after a run of clean steps. If a step overflows while the scale is above its minimum, it is
// skipped but does not count towards the limit of skipped steps, because only the scale was wrong. Non-finite values
// are detected by their exponent bits, because Metal's fast math may remove comparisons with NaN.
struct Report {
    step: u32,
    loss: f32,
    grad_norm: f32,
    skipped_now: u32,      // 0 no, 1 loss or norm not finite, 2 loss an outlier, 3 norm an outlier
    skipped: u32,
    skipped_in_a_row: u32,
    updates: u32,
    lr: f32,
    loss_scale: f32,       // loss scale of this step's gradients
    loss_z: f32,           // 0 while the window fills
    norm_z: f32,
}
const WINDOW = 128u;
struct OutlierWindow {
    count: u32,            // number of values so far, at most WINDOW
    next: u32,             // position of the next value, where the oldest is overwritten
    values: array<f32, 128>,
}
struct StepcontrolImmediates {
    count: u32,            // number of losses, or of partials
    adds: u32,             // 0 where the loss begins
}
var<immediate> params: StepcontrolImmediates;

@group(0) @binding(0) var<storage, read> values: array<f32>; // losses, or the norm's partials
@group(0) @binding(1) var<storage, read_write> loss_out: f32;
@group(0) @binding(1) var<storage, read_write> state: State;
@group(0) @binding(2) var<storage, read> hyper: Hyper;
@group(0) @binding(3) var<storage, read_write> report: Report;
@group(0) @binding(4) var<storage, read_write> windows: array<OutlierWindow, 2>; // of losses, of norms
@group(0) @binding(5) var<storage, read> loss_sum: f32;

const LEAST_SCALE = 1.0;
const LARGEST_SCALE = 32768.0;
const CLEAN_STEPS = 2000u; // clean steps before the scale is doubled

fn move_scale(good: bool) {
    if !good {
        state.loss_scale = max(state.loss_scale * 0.5, LEAST_SCALE);
        state.clean_steps = 0u;
        return;
    }
    state.clean_steps += 1u;
    if state.clean_steps >= CLEAN_STEPS {
        state.loss_scale = min(state.loss_scale * 2.0, LARGEST_SCALE);
        state.clean_steps = 0u;
    }
}

fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

// Returns the z-scores of x, a loss and a norm, in their windows. Finite values are added to the windows.
fn enter(lane: u32, x: vec2<f32>) -> vec2<f32> {
    let slots = vec2(windows[0].next, windows[1].next);
    let full = vec2(windows[0].count, windows[1].count) == vec2(WINDOW);
    var sums = vec2(0.0);
    for (var turn = 0u; turn < (WINDOW + WORKGROUP - 1u) / WORKGROUP; turn++) {
        let i = lane + turn * WORKGROUP;
        if i < WINDOW { sums += less(i, slots, x); }
    }
    let means = reduce_pairs(lane, WORKGROUP, sums) / f32(WINDOW); // minus x
    var squares = vec2(0.0);
    for (var turn = 0u; turn < (WINDOW + WORKGROUP - 1u) / WORKGROUP; turn++) {
        let i = lane + turn * WORKGROUP;
        if i < WINDOW {
            let d = less(i, slots, x) - means;
            squares += d * d;
        }
    }
    let deviations = sqrt(reduce_pairs(lane, WORKGROUP, squares) / f32(WINDOW));
    var scores = vec2(0.0);
    for (var which = 0u; which < 2u; which++) {
        if !finite(x[which]) { continue; }
        if lane == 0u {
            windows[which].values[slots[which]] = x[which];
            windows[which].next = (slots[which] + 1u) % WINDOW;
            windows[which].count = min(windows[which].count + 1u, WINDOW);
        }
        if full[which] && deviations[which] != 0.0 { scores[which] = -means[which] / deviations[which]; }
    }
    return scores;
}

// Returns the i-th values minus x, or 0 at the positions where x is stored.
fn less(i: u32, slots: vec2<u32>, x: vec2<f32>) -> vec2<f32> {
    return select(vec2(windows[0].values[i], windows[1].values[i]) - x, vec2(0.0), vec2(i) == slots);
}

// Four sums, so that their loads overlap.
fn sum_values(lane: u32) -> f32 {
    var sums = vec4(0.0);
    var i = lane;
    for (; i + 3u * WORKGROUP < params.count; i += 4u * WORKGROUP) {
        sums += vec4(values[i], values[i + WORKGROUP], values[i + 2u * WORKGROUP], values[i + 3u * WORKGROUP]);
    }
    for (; i < params.count; i += WORKGROUP) { sums.x += values[i]; }
    return reduce_sum(lane, (sums.x + sums.y) + (sums.z + sums.w));
}

@compute @workgroup_size(WORKGROUP)
fn accumulate(@builtin(local_invocation_index) lane: u32) {
    let sum = sum_values(lane);
    if lane != 0u { return; }
    var before = 0.0;
    if params.adds != 0u { before = loss_out; }
    loss_out = before + sum;
}

@compute @workgroup_size(WORKGROUP)
fn decide(@builtin(local_invocation_index) lane: u32) {
    // gradients are scaled by these factors
    let unscale = 1.0 / (hyper.grad_unit * state.loss_scale);
    let squares = sum_values(lane);
    let norm = sqrt(squares) * unscale;
    let loss = loss_sum * hyper.inverse_tokens;
    let scores = enter(lane, vec2(loss, norm));
    let loss_z = scores.x;
    let norm_z = scores.y;
    if lane != 0u { return; }
    let sound = finite(squares) && finite(loss);
    var why = select(1u, 0u, sound);
    if sound && hyper.skip_norm_z > 0.0 && norm_z > hyper.skip_norm_z { why = 3u; }
    if sound && hyper.skip_loss_z > 0.0 && loss_z > hyper.skip_loss_z { why = 2u; }
    let good = why == 0u;
    state.apply = select(0u, 1u, good);
    state.grad_scale = unscale;
    report.loss_scale = state.loss_scale;
    let above_floor = hyper.dynamic == 1u && state.loss_scale > LEAST_SCALE;
    if good {
        if hyper.clip > 0.0 && norm > hyper.clip { state.grad_scale = unscale * (hyper.clip / norm); }
        state.updates += 1u;
        state.beta1_power *= hyper.beta1;
        state.beta2_power *= hyper.beta2;
        state.skipped_in_a_row = 0u;
    } else {
        state.skipped += 1u;
        if sound || !above_floor { state.skipped_in_a_row += 1u; }
    }
    if hyper.dynamic == 1u { move_scale(sound); }
    report.step = hyper.step;
    report.loss = loss;
    report.grad_norm = norm;
    report.skipped_now = why;
    report.loss_z = loss_z;
    report.norm_z = norm_z;
    report.skipped = state.skipped;
    report.skipped_in_a_row = state.skipped_in_a_row;
    report.updates = state.updates;
    report.lr = hyper.lr;
}
