use wgpt::ops::gradnorm::{self, Forward};
use wgpt::ops::stepcontrol::StepControl;
use wgpt::reference;

use crate::harness::{Device, EPS, Inputs, Want, check, devices, folded, input, integers, overwritten, rounding, wide};
use crate::stepcontrol::{HYPER, as_words, state};

/// Three windows of these lengths: the sum of the partial sums is the squared norm.
fn run(devices: &[Device], lengths: [usize; 3], scale: f64) {
    let mut inputs = Inputs::new();
    let grads = lengths.map(|n| inputs.scaled(n, scale));
    // gradients are multiples of what they stand for
    let unit = f64::from(HYPER.grad_unit) * f64::from(state().loss_scale);
    let squares = (reference::gradnorm::forward(&grads.each_ref().map(|g| wide(g))) / unit).powi(2);
    // a workgroup sums its share in chains of a lane each; all terms are positive
    let tolerance = squares * (rounding(*lengths.iter().max().unwrap_or(&1)) + 8.0) * EPS;
    let groups: usize = lengths.iter().map(|n| n.div_ceil(16_384).clamp(1, 1024)).sum();
    let [a, b, c] = [0, 1, 2].map(|i| input("grads", [1, lengths[i]], &grads[i]));
    let (state, hyper) = (as_words(&state()), as_words(&HYPER));
    let slots = [
        a,
        b,
        c,
        overwritten("partials", [groups, 1], Want::Total { want: squares, tolerance }),
        integers("state", [state.len(), 1], &state),
        integers("hyper", [hyper.len(), 1], &hyper),
    ];
    check(devices, "gradnorm.forward", &lengths, slots, |pass, [a, b, c, partials, state, hyper]| {
        let control =
            &StepControl { state: state.clone(), hyper: hyper.clone(), report: hyper.clone(), windows: hyper.clone() };
        let grads = [a, b, c].map(Clone::clone);
        assert_eq!(gradnorm::partials(&grads), groups, "gradnorm.partials of {lengths:?}");
        gradnorm::forward(pass, Forward { grads: &grads, partials, control })
    });
}

#[test]
pub fn forward() {
    let devices = devices();
    for lengths in [[1, 3, 4], [127, 128, 129], [16_383, 16_384, 16_388], [1, 300_007, 400_000]] {
        run(&devices, lengths, 1.0);
    }
    run(&devices, [13, 768, 1], 1e4);
    run(&devices, [13, 768, 1], 1e-12);
}

#[test]
fn forward_in_a_folded_grid() {
    run(&folded(), [65 * 16_384, 3, 65 * 16_384 + 1], 1.0);
}
