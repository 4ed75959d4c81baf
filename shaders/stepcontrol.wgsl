// stepcontrol.wgsl: what to do with a step, decided on the GPU from the gradient norm and the loss.
//   accumulate   one workgroup; state.loss_sum += sum of a micro-step's losses (N)
//   decide       one workgroup; sums the norm's partials, tests for non-finite values, sets the clip factor, counts
//                skipped steps, advances Adam's powers, and writes the step's report
// Non-finite is tested on the exponent bits: Metal compiles with fast math, which may drop comparisons with NaN.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // what gradients are multiplied by: the clip factor
    loss_sum: f32,         // over the step's micro-steps
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
}
struct Report {
    step: u32,
    loss: f32,
    grad_norm: f32,
    skipped_now: u32,
    skipped: u32,
    skipped_in_a_row: u32,
    updates: u32,
    lr: f32,
}
struct P { count: u32 } // losses, or partials
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> values: array<f32>; // losses, or the norm's partials
@group(0) @binding(1) var<storage, read_write> state: State;
@group(0) @binding(2) var<storage, read> hyper: Hyper;
@group(0) @binding(3) var<storage, read_write> report: Report;

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
    state.grad_scale = 1.0;
    if good {
        if hyper.clip > 0.0 && norm > hyper.clip { state.grad_scale = hyper.clip / norm; }
        state.updates += 1u;
        state.beta1_power *= hyper.beta1;
        state.beta2_power *= hyper.beta2;
        state.skipped_in_a_row = 0u;
    } else {
        state.skipped += 1u;
        state.skipped_in_a_row += 1u;
    }
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
