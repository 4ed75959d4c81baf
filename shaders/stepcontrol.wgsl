// stepcontrol.wgsl: what to do with a step, decided on the GPU from the gradient norm and the loss.
//   accumulate   one workgroup; state.loss_sum += sum of a micro-step's losses (N)
//   decide       one workgroup; sums the norm's partials, tests for non-finite values, sets the clip factor, counts
//                skipped steps, advances Adam's powers, moves the loss scale, and writes the step's report
// The loss scale is halved when a step overflows and doubled after a run of clean steps. A step that overflowed above
// the floor is skipped but does not count among those that end a run: its scale was wrong, not the model.
// Non-finite is tested on the exponent bits: Metal compiles with fast math, which may drop comparisons with NaN.
struct Report {
    step: u32,
    loss: f32,
    grad_norm: f32,
    skipped_now: u32,
    skipped: u32,
    skipped_in_a_row: u32,
    updates: u32,
    lr: f32,
    loss_scale: f32,       // what this step's gradients were multiplied by
}
struct P { count: u32 } // losses, or partials
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> values: array<f32>; // losses, or the norm's partials
@group(0) @binding(1) var<storage, read_write> state: State;
@group(0) @binding(2) var<storage, read> hyper: Hyper;
@group(0) @binding(3) var<storage, read_write> report: Report;

const LEAST_SCALE = 1.0;
const LARGEST_SCALE = 32768.0;
const CLEAN_STEPS = 2000u; // before the scale is doubled

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

fn sum_values(lane: u32) -> f32 {
    var sum = 0.0;
    for (var i = lane; i < p.count; i += WG) { sum += values[i]; }
    return reduce_sum(lane, sum);
}

@compute @workgroup_size(WG)
fn accumulate(@builtin(local_invocation_index) lane: u32) {
    let sum = sum_values(lane);
    if lane == 0u { state.loss_sum += sum; }
}

@compute @workgroup_size(WG)
fn decide(@builtin(local_invocation_index) lane: u32) {
    let squares = sum_values(lane);
    if lane != 0u { return; }
    let norm = sqrt(squares);
    let loss = state.loss_sum * hyper.loss_scale;
    let good = finite(squares) && finite(loss);
    state.apply = select(0u, 1u, good);
    let unscale = 1.0 / (hyper.grad_unit * state.loss_scale);
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
        if !above_floor { state.skipped_in_a_row += 1u; }
    }
    if hyper.dynamic == 1u { move_scale(good); }
    report.step = hyper.step;
    report.loss = loss;
    report.grad_norm = norm;
    report.skipped_now = select(1u, 0u, good);
    report.skipped = state.skipped;
    report.skipped_in_a_row = state.skipped_in_a_row;
    report.updates = state.updates;
    report.lr = hyper.lr;
    state.loss_sum = 0.0;
}
