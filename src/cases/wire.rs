//! Cases of the conversion of gradients to and from 16 bits.

use std::sync::Arc;

use crate::gpu::{Elem, Pass, Tensor};
use crate::ops::stepcontrol::State;
use crate::ops::wire::{self, Format, NARROW, WIDEN, Wire};
use crate::reference;

use super::stepcontrol::{STATE, state_slot};
use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &wire::OPERATOR, tests, benches, minimum_cost: nothing_needed };

/// Factor of the values in all cases.
const SCALE: f32 = 64.0;

fn words(bits: &[u16]) -> Vec<u32> {
    bits.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

fn state(loss_scale: f32) -> Contents {
    Contents::integers(bytemuck::cast_slice(&[State { loss_scale, ..STATE }]).to_vec())
}

fn what(format: Format, n: usize, loss_scale: f32) -> String {
    format!("{} {n} of loss scale {loss_scale}", format.name())
}

/// Returns a case that rounds values to the nearest in 16 bits.
pub fn narrow(format: Format, values: Arc<Vec<f32>>, loss_scale: f32) -> Case {
    let n = values.len();
    let packed = Slot::overwritten("packed", [1, n / 2]).of(Elem::U32);
    let slots = vec![Slot::input("wide", [1, n]), state_slot(Role::Input), packed];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let [wide, state, packed] = each(t);
        wire::narrow(pass, &Wire { format, wide, packed, scale: SCALE, state })
    };
    Case::new(NARROW, what(format, n, loss_scale), slots, launch, move || {
        let factor = f64::from(SCALE / loss_scale);
        let want = words(&reference::wire::narrow(&values, factor, format == Format::Bf16));
        vec![Contents::floats(&values), state(loss_scale), Contents::unwritten(bits(&want))]
    })
}

/// Returns a case for the conversion back to f32, whose bits must be exact.
pub fn widen(format: Format, sent: Arc<Vec<u16>>, loss_scale: f32) -> Case {
    let n = sent.len();
    let packed = Slot::input("packed", [1, n / 2]).of(Elem::U32);
    let slots = vec![packed, state_slot(Role::Input), Slot::overwritten("wide", [1, n])];
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let [packed, state, wide] = each(t);
        wire::widen(pass, &Wire { format, wide, packed, scale: SCALE, state })
    };
    Case::new(WIDEN, what(format, n, loss_scale), slots, launch, move || {
        let factor = f64::from(loss_scale / SCALE);
        let want = reference::wire::widen(&sent, factor, format == Format::Bf16);
        let want: Vec<u32> = want.into_iter().map(|value| (value as f32).to_bits()).collect();
        vec![Contents::integers(words(&sent)), state(loss_scale), Contents::unwritten(bits(&want))]
    })
}

/// Returns values that reach the limits of both formats when multiplied by 1/16: ties, the largest, the smallest,
/// infinity and NaN.
fn hard() -> Vec<f32> {
    let f16 = [65_504.0, 65_519.0, 65_520.0, 1e9, 6.0e-8, 2.9e-8, 3.1e-8, 6.1035e-5, 6.097e-5, 1.0 + 1.0 / 2048.0];
    let bf16 = [1.0 + 3.0 / 256.0, 1.0 + 1.0 / 256.0, 3.3895e38, 2.9e-39, 1.3e-38, 0.0, f32::INFINITY, f32::NAN];
    let all = f16.iter().chain(&bf16).flat_map(|value| [16.0 * value, -16.0 * value]);
    all.collect()
}

fn tests(_caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = |n: usize| Arc::new(Inputs::new().scaled(n, 3.0));
        let sent = |n: usize| Arc::new(reference::wire::narrow(&random(n), 1.0, format == Format::Bf16));
        for n in breadth.of([1, 2], &[260, 4, 8, 256, 100_004]) {
            cases.extend([narrow(format, random(n), 1.0), widen(format, sent(n), 1.0)]);
        }
        if breadth >= Breadth::Full {
            // SCALE / 1024 is 1/16
            cases.push(narrow(format, Arc::new(hard()), 1024.0));
            // all values except NaN, whose bits may change in f32
            let is_nan = |bits: &u16| reference::wire::widen(&[*bits], 1.0, format == Format::Bf16)[0].is_nan();
            let is_tiny = |bits: &u16| format == Format::Bf16 && (1..128).contains(&(bits & 0x7fff));
            let mut all: Vec<u16> = (0..=u16::MAX).filter(|bits| !is_nan(bits) && !is_tiny(bits)).collect();
            all.truncate(all.len() / 4 * 4);
            cases.push(widen(format, Arc::new(all), 64.0));
            cases.push(narrow(format, random(64 * 4 * 300), 32.0).folded());
            cases.push(widen(format, sent(64 * 4 * 300), 32.0).folded());
        }
    }
    cases
}

fn benches(shape: &BenchShape, _caps: &Caps) -> Vec<Case> {
    let values = Arc::new(vec![1e-3; shape.flat / 4 * 4]);
    let sent = Arc::new(reference::wire::narrow(&values, 1.0, true));
    vec![narrow(Format::Bf16, values, 1.0), widen(Format::Bf16, sent, 1.0)]
}
