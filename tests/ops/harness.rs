//! The only code that runs an operator in tests.
//!
//! [`check`] records the operator once for every device of [`devices`] and runs the recording twice. Inputs are f32
//! or f16 numbers of a fixed seed, which the f64 reference sees as they are. Overwritten outputs begin as NaN, accumulated
//! ones as numbers other than zero. Every tensor lies between guard words, NaN too, that must keep their bits. Both
//! runs must give the same bits. Comparisons are `!(difference <= tolerance)`, so that NaN fails.
//!
//! Tolerances are budgets, stated where they are made as multiples of [`EPS`] times a magnitude: what the sum would be
//! without cancellation. `planted.rs` holds the harness itself to account.

use wgpt::error::Result;
use wgpt::gpu::{Elem, Gpu, Pass, Program, Tensor};

pub use crate::devices::*;
pub use crate::values::*;

/// Bits of the elements round every tensor: a NaN.
fn guard(elem: Elem) -> u32 {
    if elem == Elem::F16 { 0x7e5a } else { 0x7fc0_5afe }
}

/// Bits of an output that is not written yet: another NaN.
fn unwritten(elem: Elem) -> u32 {
    if elem == Elem::F16 { 0x7ead } else { 0x7fc0_0bad }
}

/// Guard elements before a tensor: what alignment asks for.
const HEAD: usize = 128;
/// Guard elements after a tensor, at least.
const TAIL: usize = 256;

/// One tensor of a case.
#[derive(Clone)]
pub struct Slot {
    name: &'static str,
    shape: [usize; 2],
    elem: Elem,
    before: Vec<u32>,
    want: Option<Want>,
    /// Guard words before and after that the operator is handed with the tensor: for planted faults.
    reach: [usize; 2],
}

impl Slot {
    fn new(name: &'static str, shape: [usize; 2], elem: Elem, before: Vec<u32>, want: Option<Want>) -> Self {
        assert_eq!(before.len(), shape[0] * shape[1], "harness: `{name}`");
        Self { name, shape, elem, before, want, reach: [0; 2] }
    }

    /// Hands the operator the tensor as one row together with guard words, so that a fault can reach them on drivers
    /// that clamp accesses to what is bound.
    pub fn reaching(mut self, head: bool, tail: usize) -> Self {
        assert!(tail <= TAIL, "harness: only {TAIL} guard words");
        self.reach = [if head { HEAD } else { 0 }, tail];
        self
    }
}

fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// A tensor that is read.
pub fn input(name: &'static str, shape: [usize; 2], values: &[f32]) -> Slot {
    Slot::new(name, shape, Elem::F32, to_bits(values), None)
}

/// What activations are stored as: inputs, slots and budgets of f32 or f16.
#[derive(Clone, Copy, PartialEq)]
pub struct Kind(pub Elem);

/// f32.
pub const FULL: Kind = Kind(Elem::F32);
/// f16.
pub const HALF: Kind = Kind(Elem::F16);

impl Kind {
    fn is_half(self) -> bool {
        self == HALF
    }

    /// The largest relative error of storing a number.
    pub fn rounding(self) -> f64 {
        if self.is_half() { 2f64.powi(-11) } else { 2f64.powi(-24) }
    }

    /// `n` bell-shaped numbers in (-1, 1).
    pub fn values(self, inputs: &mut Inputs, n: usize) -> Vec<f32> {
        self.scaled(inputs, n, 1.0)
    }

    /// `n` bell-shaped numbers in (-scale, scale).
    pub fn scaled(self, inputs: &mut Inputs, n: usize, scale: f64) -> Vec<f32> {
        if self.is_half() { inputs.scaled_halves(n, scale) } else { inputs.scaled(n, scale) }
    }

    /// Numbers as they are stored.
    pub fn round(self, values: &[f64]) -> Vec<f32> {
        let half = |x: f64| half::f16::from_f64(x).to_f32();
        values.iter().map(|&x| if self.is_half() { half(x) } else { x as f32 }).collect()
    }

    fn slot(self, name: &'static str, shape: [usize; 2], values: &[f32], want: Option<Want>) -> Slot {
        Slot::new(name, shape, self.0, self.bits(values), want)
    }

    /// The bits of numbers that can be stored.
    pub fn bits(self, values: &[f32]) -> Vec<u32> {
        if self.is_half() { to_half_bits(values) } else { to_bits(values) }
    }

    /// A tensor that is read.
    pub fn input(self, name: &'static str, shape: [usize; 2], values: &[f32]) -> Slot {
        self.slot(name, shape, values, None)
    }

    /// A tensor that is overwritten: NaN before.
    pub fn overwritten(self, name: &'static str, shape: [usize; 2], want: Want) -> Slot {
        Slot::new(name, shape, self.0, vec![unwritten(self.0); shape[0] * shape[1]], Some(want))
    }

    /// A tensor that is updated from what it holds.
    pub fn updated(self, name: &'static str, shape: [usize; 2], before: &[f32], want: Want) -> Slot {
        self.slot(name, shape, before, Some(want))
    }

    /// [`near`], then stored.
    pub fn near(self, want: Vec<f64>, budget: f64, magnitude: &[f64]) -> Want {
        if self.is_half() { near_half(want, budget, magnitude) } else { near(want, budget, magnitude) }
    }

    /// [`within`], then stored.
    pub fn within(self, want: Vec<f64>, tolerance: Vec<f64>) -> Want {
        if self.is_half() { within_half(want, tolerance) } else { within(want, tolerance) }
    }
}

fn to_half_bits(values: &[f32]) -> Vec<u32> {
    let exact = |x: f32| {
        let half = half::f16::from_f32(x);
        assert!(half.to_f32() == x || x.is_nan(), "harness: {x:e} is no f16");
        u32::from(half.to_bits())
    };
    values.iter().map(|&x| exact(x)).collect()
}

/// Elements as they lie in memory.
fn to_bytes(elem: Elem, elements: &[u32]) -> Vec<u8> {
    match elem {
        Elem::F16 => elements.iter().flat_map(|&e| (e as u16).to_le_bytes()).collect(),
        Elem::F32 | Elem::U32 => elements.iter().flat_map(|&e| e.to_le_bytes()).collect(),
    }
}

/// The bits of each element, from memory.
fn from_bytes(elem: Elem, bytes: &[u8]) -> Vec<u32> {
    match elem {
        Elem::F16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
        Elem::F32 | Elem::U32 => bytemuck::pod_collect_to_vec(bytes),
    }
}

/// What an element's bits mean.
fn float(elem: Elem, bits: u32) -> f64 {
    match elem {
        Elem::F16 => half::f16::from_bits(bits as u16).to_f64(),
        Elem::F32 | Elem::U32 => f64::from(f32::from_bits(bits)),
    }
}

/// A tensor of integers that is read.
pub fn integers(name: &'static str, shape: [usize; 2], values: &[u32]) -> Slot {
    Slot::new(name, shape, Elem::U32, values.to_vec(), None)
}

/// A tensor that is overwritten: NaN before.
pub fn overwritten(name: &'static str, shape: [usize; 2], want: Want) -> Slot {
    Slot::new(name, shape, Elem::F32, vec![unwritten(Elem::F32); shape[0] * shape[1]], Some(want))
}

/// A tensor that is updated from what it holds.
pub fn updated(name: &'static str, shape: [usize; 2], before: &[f32], want: Want) -> Slot {
    Slot::new(name, shape, Elem::F32, to_bits(before), Some(want))
}

/// A struct that is updated.
pub fn words(name: &'static str, before: &[u32], want: Want) -> Slot {
    Slot::new(name, [before.len(), 1], Elem::U32, before.to_vec(), Some(want))
}

/// A tensor whose contents are nobody's business; its guards are.
pub fn scratch(name: &'static str, shape: [usize; 2]) -> Slot {
    overwritten(name, shape, Want::Anything)
}

/// One operator, one shape, all its tensors.
pub struct Case<'a, const N: usize> {
    /// Operator and pass.
    pub kernel: &'a str,
    /// Sizes, for the report.
    pub shape: &'a [usize],
    /// The tensors in the order that `launch` takes them.
    pub slots: [Slot; N],
    /// Records the operator.
    pub launch: &'a dyn Fn(&mut Pass, &[Tensor; N]) -> Result<()>,
}

/// Runs a case on every device.
#[track_caller]
pub fn check<const N: usize>(
    devices: &[Device],
    kernel: &str,
    shape: &[usize],
    slots: [Slot; N],
    launch: impl Fn(&mut Pass, &[Tensor; N]) -> Result<()>,
) {
    let case = Case { kernel, shape, slots, launch: &launch };
    for device in devices {
        if listing() {
            let (.., names) = record(device, &case).unwrap_or_else(|report| panic!("{report}"));
            list(names);
            continue;
        }
        if let Err(report) = verify(device, &case) {
            panic!("{report}");
        }
    }
}

/// A tensor between its guards: the whole buffer, and the tensor inside it.
struct Guarded {
    whole: Tensor,
    tensor: Tensor,
}

fn allocate(gpu: &Gpu, slot: &Slot) -> Result<Guarded> {
    let (mut tensors, mut wholes) = gpu.arena(slot.name, &[[1, HEAD], slot.shape, [1, TAIL]], slot.elem)?;
    let (whole, mut tensor) = (wholes.remove(0), tensors.remove(1));
    if slot.reach != [0; 2] {
        tensor = whole.flat(HEAD - slot.reach[0]..HEAD + tensor.len() + slot.reach[1]);
    }
    Ok(Guarded { whole, tensor })
}

/// The operator, its shape, the adapter, the mode, and the kernels that were chosen.
fn place<const N: usize>(device: &Device, case: &Case<N>, names: &[String]) -> String {
    let caps = &device.gpu.caps;
    let kind = if caps.software { format!("{} lanes", caps.lanes) } else { "GPU kernels".into() };
    let mut names = names.to_vec();
    names.dedup();
    format!("{} {:?} on {} ({}, {kind}; {})", case.kernel, case.shape, caps.name, device.mode, names.join(" "))
}

/// What [`record`] makes: the tensors, the program, the names of its kernels.
type Recorded<const N: usize> = ([Guarded; N], Program, Vec<String>);

fn record<const N: usize>(device: &Device, case: &Case<N>) -> Result<Recorded<N>, String> {
    let fault = |e: wgpt::error::Error| format!("{}: {e}", place(device, case, &[]));
    let mut guarded = Vec::with_capacity(N);
    for slot in &case.slots {
        guarded.push(allocate(&device.gpu, slot).map_err(fault)?);
    }
    let Ok(guarded) = <[Guarded; N]>::try_from(guarded) else { unreachable!("one buffer a slot") };
    let tensors = guarded.each_ref().map(|g| g.tensor.clone());
    let mut pass = Pass::new(&device.gpu);
    (case.launch)(&mut pass, &tensors).map_err(fault)?;
    let program = pass.finish();
    let names: Vec<String> = program.commands.iter().map(|c| c.name().to_owned()).collect();
    Ok((guarded, program, names))
}

/// Runs a case on one device; says what is wrong.
pub fn verify<const N: usize>(device: &Device, case: &Case<N>) -> Result<(), String> {
    let (guarded, program, names) = record(device, case)?;
    let gpu = &device.gpu;
    let place = || place(device, case, &names);
    let fault = |e: wgpt::error::Error| format!("{}: {e}", place());
    let mut first: Vec<Vec<u32>> = Vec::new();
    for round in 0..2 {
        for (slot, guarded) in case.slots.iter().zip(&guarded) {
            if round > 0 && slot.want.is_none() {
                continue;
            }
            let mut words = vec![guard(slot.elem); guarded.whole.len()];
            words[HEAD..HEAD + slot.before.len()].copy_from_slice(&slot.before);
            gpu.write(&guarded.whole, &to_bytes(slot.elem, &words)).map_err(fault)?;
        }
        program.run(gpu).map_err(fault)?;
        for (i, (slot, guarded)) in case.slots.iter().zip(&guarded).enumerate() {
            let Some(want) = &slot.want else {
                first.push(Vec::new());
                continue;
            };
            let words = from_bytes(slot.elem, &gpu.read(&guarded.whole).map_err(fault)?);
            if round == 0 {
                judge(slot, want, &words).map_err(|what| format!("{}: {what}", place()))?;
                first.push(words);
            } else if let Some(at) = words.iter().zip(&first[i]).position(|(a, b)| a != b) {
                let [a, b] = [first[i][at], words[at]].map(|bits| float(slot.elem, bits));
                return Err(format!(
                    "{}: `{}` word {}: {a:e}, in a second run {b:e}, expected the same bits",
                    place(),
                    slot.name,
                    at as i64 - HEAD as i64
                ));
            }
        }
    }
    Ok(())
}

/// Compares what one output holds, guards first.
fn judge(slot: &Slot, want: &Want, words: &[u32]) -> Result<(), String> {
    let n = slot.before.len();
    if let Some(at) = (0..words.len()).find(|&i| !(HEAD..HEAD + n).contains(&i) && words[i] != guard(slot.elem)) {
        let (at, got) = (at as i64 - HEAD as i64, float(slot.elem, words[at]));
        return Err(format!("`{}` of {n} elements: guard word at {at} was overwritten with {got:e}", slot.name));
    }
    let got = &words[HEAD..HEAD + n];
    let float = |i: usize| float(slot.elem, got[i]);
    let unwritten = unwritten(slot.elem);
    let mut wrong = 0;
    let mut report = None;
    let mut compare = |i: usize, fine: bool, want: &dyn Fn() -> String| {
        if fine {
            return;
        }
        wrong += 1;
        report.get_or_insert_with(|| {
            let (row, column) = (i / slot.shape[1], i % slot.shape[1]);
            let got = match got[i] {
                word if word == unwritten => "nothing: never written".into(),
                word => format!("{:e} ({word:#x})", float(i)),
            };
            format!("`{}`[{row}, {column}]: got {got}, want {}", slot.name, want())
        });
    };
    match want {
        Want::Near { want, tolerance } => {
            assert_eq!(want.len(), n, "harness: what `{}` should hold", slot.name);
            for i in 0..n {
                let fine = (float(i) - want[i]).abs() <= tolerance[i];
                compare(i, fine, &|| format!("{:e} within {:e}", want[i], tolerance[i]));
            }
        }
        Want::Words(want) => {
            assert_eq!(want.len(), n, "harness: what `{}` should hold", slot.name);
            for (i, word) in want.iter().enumerate() {
                let fine = match *word {
                    Word::Bits(bits) => got[i] == bits,
                    Word::Near(want, tolerance) => (float(i) - want).abs() <= tolerance,
                    Word::NonFinite => !float(i).is_finite() && got[i] != unwritten,
                };
                compare(i, fine, &|| format!("{word:?}"));
            }
        }
        Want::Total { want, tolerance } => {
            let total: f64 = (0..n).map(float).sum();
            let fine = (total - want).abs() <= *tolerance;
            if !fine {
                return Err(format!("sum of `{}`: got {total:e}, want {want:e} within {tolerance:e}", slot.name));
            }
        }
        Want::Anything => {}
    }
    match report {
        None => Ok(()),
        Some(report) => Err(format!("{report}; {wrong} of {n} elements are wrong")),
    }
}
