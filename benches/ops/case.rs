//! One operator at one shape: its tensors, how it is recorded, and what it must compute.

use std::cell::RefCell;
use std::rc::Rc;

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu, Pass, Program, Tensor};
use wgpt::reference::random::Random;

/// Outputs of a tensor that are held against the reference.
pub const SAMPLES: usize = 4096;
/// Distance from 1 to the next f32.
pub const EPS: f64 = f32::EPSILON as f64;

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Read.
    Input,
    /// Overwritten: holds NaN before.
    Output,
    /// Read and written.
    Updated,
    /// Overwritten, and nobody asks what with.
    Scratch,
}

/// One tensor of a case.
pub struct Slot {
    pub name: &'static str,
    pub shape: [usize; 2],
    pub elem: Elem,
    pub role: Role,
    /// What it holds before: words, without end.
    pub before: fn(&mut Random, usize) -> Vec<u32>,
}

/// Bell-shaped numbers in (-1, 1): a block of random ones again and again, of a length that no row has.
pub fn values(random: &mut Random, n: usize) -> Vec<u32> {
    let block: Vec<u32> = (0..n.min(65_521)).map(|_| (random.value() as f32).to_bits()).collect();
    block.iter().copied().cycle().take(n).collect()
}

/// Positive numbers.
pub fn positive(random: &mut Random, n: usize) -> Vec<u32> {
    values(random, n).into_iter().map(|w| (f32::from_bits(w).abs() + 0.5).to_bits()).collect()
}

/// The same in f16, two in a word.
pub fn half_values(random: &mut Random, n: usize) -> Vec<u32> {
    let mut half = || u32::from(half::f16::from_f64(random.value()).to_bits());
    let block: Vec<u32> = (0..n.min(65_521)).map(|_| half() | half() << 16).collect();
    block.iter().copied().cycle().take(n).collect()
}

fn no_halves(_: &mut Random, n: usize) -> Vec<u32> {
    vec![0x7e00_7e00; n]
}

fn nothing(_: &mut Random, n: usize) -> Vec<u32> {
    vec![f32::NAN.to_bits(); n]
}

impl Slot {
    pub fn new(name: &'static str, shape: [usize; 2], role: Role) -> Self {
        let before = if matches!(role, Role::Output | Role::Scratch) { nothing } else { values };
        Self { name, shape, elem: Elem::F32, role, before }
    }

    pub fn input(name: &'static str, shape: [usize; 2]) -> Self {
        Self::new(name, shape, Role::Input)
    }

    pub fn output(name: &'static str, shape: [usize; 2]) -> Self {
        Self::new(name, shape, Role::Output)
    }

    pub fn updated(name: &'static str, shape: [usize; 2]) -> Self {
        Self::new(name, shape, Role::Updated)
    }

    pub fn scratch(name: &'static str, shape: [usize; 2]) -> Self {
        Self::new(name, shape, Role::Scratch)
    }

    /// Stored as f32 or f16.
    pub fn stored(mut self, elem: Elem) -> Self {
        if elem == Elem::F16 {
            let unwritten = matches!(self.role, Role::Output | Role::Scratch);
            (self.elem, self.before) = (elem, if unwritten { no_halves } else { half_values });
        }
        self
    }

    /// Other contents.
    pub fn holding(mut self, elem: Elem, before: fn(&mut Random, usize) -> Vec<u32>) -> Self {
        (self.elem, self.before) = (elem, before);
        self
    }

    fn words(&self) -> usize {
        (self.shape[0] * self.shape[1] * self.elem.bytes() as usize).div_ceil(4)
    }
}

/// What every tensor of a case held before and after a run, by the position of its slot.
pub struct Data {
    pub before: Vec<Vec<u32>>,
    pub after: Vec<Vec<u32>>,
    pub elems: Vec<Elem>,
}

/// An element among words.
fn element(elem: Elem, words: &[u32], at: usize) -> f64 {
    match elem {
        Elem::F16 => half::f16::from_bits((words[at / 2] >> (at % 2 * 16)) as u16).to_f64(),
        Elem::F32 | Elem::U32 => f64::from(f32::from_bits(words[at])),
    }
}

impl Data {
    pub fn was(&self, slot: usize, at: usize) -> f64 {
        element(self.elems[slot], &self.before[slot], at)
    }

    pub fn is(&self, slot: usize, at: usize) -> f64 {
        element(self.elems[slot], &self.after[slot], at)
    }

    /// A run of elements before.
    pub fn row(&self, slot: usize, start: usize, len: usize) -> Vec<f64> {
        (start..start + len).map(|at| self.was(slot, at)).collect()
    }
}

/// Positions of at most [`SAMPLES`] elements, each once where there are few.
pub fn samples(n: usize) -> Vec<usize> {
    if n <= SAMPLES {
        return (0..n).collect();
    }
    let mut random = Random::new(n as u64);
    (0..SAMPLES).map(|_| random.below(n)).collect()
}

/// The same, from a few rows of `width` elements.
pub fn samples_in_rows(rows: usize, width: usize, most: usize) -> Vec<usize> {
    let mut random = Random::new((rows * width) as u64);
    let chosen: Vec<usize> =
        if rows <= most { (0..rows).collect() } else { (0..most).map(|_| random.below(rows)).collect() };
    let each = (SAMPLES / chosen.len()).min(width);
    chosen
        .into_iter()
        .flat_map(|row| (0..each).map(|_| row * width + random.below(width)).collect::<Vec<_>>())
        .collect()
}

/// Compares elements of a slot with `want`, which returns a value and a tolerance.
pub fn expect(
    data: &Data,
    slot: usize,
    name: &str,
    at: &[usize],
    want: impl Fn(usize) -> (f64, f64),
) -> Result<(), String> {
    let mut wrong = 0;
    let mut first = None;
    for &i in at {
        let (want, tolerance) = want(i);
        let got = data.is(slot, i);
        // so that NaN fails
        let fine = (got - want).abs() <= tolerance;
        if !fine {
            wrong += 1;
            first.get_or_insert_with(|| format!("`{name}`[{i}]: got {got:e}, want {want:e} within {tolerance:e}"));
        }
    }
    match first {
        None => Ok(()),
        Some(first) => Err(format!("{first}; {wrong} of {} sampled outputs are wrong", at.len())),
    }
}

/// Results by row or head, computed once.
pub struct Memo<T>(RefCell<Vec<(usize, Rc<T>)>>);

impl<T> Memo<T> {
    pub fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    pub fn get(&self, key: usize, make: impl FnOnce() -> T) -> Rc<T> {
        if let Some((_, value)) = self.0.borrow().iter().find(|(known, _)| *known == key) {
            return Rc::clone(value);
        }
        let value = Rc::new(make());
        self.0.borrow_mut().push((key, Rc::clone(&value)));
        value
    }
}

type Launch = dyn Fn(&mut Pass, &[Tensor]) -> Result<()>;
type Check = dyn Fn(&Data) -> Result<(), String>;

/// One operator at one shape.
pub struct Case {
    /// Operator and pass: `matmul.forward`.
    pub operator: &'static str,
    /// Which of the model's uses, and its sizes: `qkv 64x768x2304`.
    pub what: String,
    /// True if kernels that the adapter would not choose are run on it too.
    pub all_variants: bool,
    pub slots: Vec<Slot>,
    pub launch: Box<Launch>,
    pub check: Box<Check>,
}

/// A case in memory.
pub struct Set {
    pub tensors: Vec<Tensor>,
    pub program: Program,
    /// Puts back what updated tensors held at first.
    pub restore: Program,
}

impl Case {
    /// What is recorded with these capabilities, without a device.
    pub fn dry(&self, caps: &Caps) -> Result<Program> {
        let gpu = Gpu::dry(caps.clone());
        let tensors = self.allocate(&gpu)?;
        let mut pass = Pass::new(&gpu);
        (self.launch)(&mut pass, &tensors)?;
        Ok(pass.finish())
    }

    fn allocate(&self, gpu: &Gpu) -> Result<Vec<Tensor>> {
        self.slots.iter().map(|slot| gpu.tensor(slot.name, slot.shape[0], slot.shape[1], slot.elem)).collect()
    }

    /// Bytes of one set.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| if s.role == Role::Updated { 8 } else { 4 } * s.words() as u64).sum()
    }

    /// What every tensor holds at first.
    pub fn contents(&self) -> Vec<Vec<u32>> {
        let mut random = Random::new(20_240_520);
        self.slots.iter().map(|slot| (slot.before)(&mut random, slot.words())).collect()
    }

    /// Allocates and records a set on a device whose capabilities say which kernels are taken.
    pub fn set(&self, gpu: &Gpu, contents: &[Vec<u32>]) -> Result<Set> {
        let tensors = self.allocate(gpu)?;
        let mut pristine = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            gpu.write(&tensors[i], bytemuck::cast_slice(&contents[i]))?;
            if slot.role == Role::Updated {
                let copy = gpu.tensor(slot.name, slot.shape[0], slot.shape[1], slot.elem)?;
                gpu.write(&copy, bytemuck::cast_slice(&contents[i]))?;
                pristine.push((i, copy));
            }
        }
        let mut pass = Pass::new(gpu);
        for (i, copy) in &pristine {
            pass.copy(copy, &tensors[*i])?;
        }
        let restore = pass.finish();
        let mut pass = Pass::new(gpu);
        (self.launch)(&mut pass, &tensors)?;
        Ok(Set { tensors, program: pass.finish(), restore })
    }

    /// Runs a set once and holds its outputs against the reference.
    pub fn verify(&self, gpu: &Gpu, set: &Set, contents: &[Vec<u32>]) -> Result<()> {
        set.program.run(gpu)?;
        let mut after = Vec::new();
        for (slot, tensor) in self.slots.iter().zip(&set.tensors) {
            let read = matches!(slot.role, Role::Output | Role::Updated);
            after.push(if read { bytemuck::pod_collect_to_vec(&gpu.read(tensor)?) } else { Vec::new() });
        }
        let elems = self.slots.iter().map(|slot| slot.elem).collect();
        let data = Data { before: contents.to_vec(), after, elems };
        (self.check)(&data).map_err(|what| Error::Gpu(format!("{} {}: {what}", self.operator, self.what)))
    }
}
