//! A case: one pass of an operator at one shape.

use std::fmt;

use crate::error::Result;
use crate::gpu::{Caps, Elem, Gpu, OpPass, Pass, Program, Tensor};

use super::values::{Stored, Want};

/// The use that a pass makes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Read.
    Input,
    /// Overwritten; it holds NaN before.
    Overwritten,
    /// Read and written: accumulated, or changed in place.
    Accumulated,
    /// Overwritten with intermediate results. It may be larger than necessary.
    Scratch,
}

/// One tensor of a case.
#[must_use]
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Name, as in the operator's messages.
    pub name: &'static str,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Element type.
    pub elem: Elem,
    /// Use.
    pub role: Role,
}

impl Slot {
    /// Returns the slot of an f32 tensor that is read.
    pub fn input(name: &'static str, shape: [usize; 2]) -> Self {
        Self { name, shape, elem: Elem::F32, role: Role::Input }
    }

    /// Returns the slot of an f32 tensor that is overwritten.
    pub fn overwritten(name: &'static str, shape: [usize; 2]) -> Self {
        Self { role: Role::Overwritten, ..Self::input(name, shape) }
    }

    /// Returns the slot of an f32 tensor that is accumulated.
    pub fn accumulated(name: &'static str, shape: [usize; 2]) -> Self {
        Self { role: Role::Accumulated, ..Self::input(name, shape) }
    }

    /// Returns the slot of f32 scratch, which nothing reads after the run.
    pub fn scratch(name: &'static str, shape: [usize; 2]) -> Self {
        Self { role: Role::Scratch, ..Self::input(name, shape) }
    }

    /// Returns the slot of a struct of `count` words.
    pub fn words(name: &'static str, count: usize, role: Role) -> Self {
        Self { name, shape: [count, 1], elem: Elem::U32, role }
    }

    /// Returns the slot with another element type.
    pub fn of(self, elem: Elem) -> Self {
        Self { elem, ..self }
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// The contents of one tensor before a run and the values wanted after it.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Bits of each element. Empty if nothing may be read; the tensor then holds NaN.
    pub before: Vec<u32>,
    /// Wanted values, for every slot that is not an input.
    pub want: Option<Want>,
}

impl Contents {
    /// Returns the contents of an integer tensor that is read.
    pub fn integers(before: Vec<u32>) -> Self {
        Self { before, want: None }
    }

    /// Returns the contents of an f32 tensor that is read.
    pub fn floats(values: &[f32]) -> Self {
        super::STORED_F32.contents(values)
    }

    /// Returns the contents of a tensor that is overwritten.
    pub fn unwritten(want: Want) -> Self {
        Self { before: Vec::new(), want: Some(want) }
    }

    /// Returns the contents of scratch, whose values are not compared.
    pub fn scratch() -> Self {
        Self::unwritten(Want::Anything)
    }

    /// Returns the contents with wanted values, for a tensor that is read and written.
    pub fn wanting(self, want: Want) -> Self {
        Self { want: Some(want), ..self }
    }
}

impl Stored {
    /// Returns the contents of a tensor of this element type that is read.
    pub fn contents(self, values: &[f32]) -> Contents {
        Contents::integers(self.bits(values))
    }
}

fn float_of(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

type Launch = dyn Fn(&mut Pass, &[Tensor]) -> Result<()> + Send + Sync;
type Fill = dyn Fn() -> Vec<Contents> + Send + Sync;
type Change = dyn Fn(&mut Caps) + Send + Sync;

/// Largest number of workgroups in one dimension of a grid, in cases that are [`Case::folded`].
pub const FOLD: u32 = 61;

/// One pass of an operator at one shape.
#[must_use]
pub struct Case {
    /// The pass.
    pub pass: OpPass,
    /// Variant of the pass, for reports: ` with bias`.
    pub variant: &'static str,
    /// Sizes, for reports and names of benches: `qkv 64x768x2304`.
    pub what: String,
    /// Tensors, in the order in which the launcher takes them.
    pub slots: Vec<Slot>,
    launch: Box<Launch>,
    fill: Box<Fill>,
    change: Option<Box<Change>>,
}

impl fmt::Display for Case {
    /// Writes pass, variant and sizes: `matmul.forward with bias 31x33x32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} {}", self.pass, self.variant, self.what)
    }
}

impl Case {
    /// Creates a case that `launch` records on tensors for `slots`. `fill` returns their contents.
    pub fn new(
        pass: OpPass,
        what: String,
        slots: Vec<Slot>,
        launch: impl Fn(&mut Pass, &[Tensor]) -> Result<()> + Send + Sync + 'static,
        fill: impl Fn() -> Vec<Contents> + Send + Sync + 'static,
    ) -> Self {
        Self { pass, variant: "", what, slots, launch: Box::new(launch), fill: Box::new(fill), change: None }
    }

    /// Sets the name of the variant.
    pub fn variant(self, variant: &'static str) -> Self {
        Self { variant, ..self }
    }

    /// Changes the capabilities of the adapter for which the case is recorded.
    pub fn on(self, change: impl Fn(&mut Caps) + Send + Sync + 'static) -> Self {
        let before = self.change;
        let both = move |caps: &mut Caps| {
            before.iter().for_each(|before| before(caps));
            change(caps);
        };
        Self { change: Some(Box::new(both)), ..self }
    }

    /// Makes accumulated f32 tensors begin here: they count as zero, whatever they hold.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn beginning(mut self, names: &'static [&'static str]) -> Self {
        let of = |name: &&str| self.slots.iter().position(|slot| slot.name == *name);
        let at = |name| of(name).unwrap_or_else(|| panic!("cases: {self} has no slot `{name}`"));
        let begun: Vec<usize> = names.iter().map(at).collect();
        begun.iter().for_each(|&i| self.slots[i].role = Role::Overwritten);
        let (launch, fill, zeros) = (self.launch, self.fill, begun.clone());
        self.launch = Box::new(move |pass, tensors| {
            zeros.iter().for_each(|&i| pass.declare_zero(&tensors[i]));
            launch(pass, tensors)
        });
        self.fill = Box::new(move || {
            let mut all = fill();
            for &i in &begun {
                let contents = &mut all[i];
                let before: Vec<f64> = std::mem::take(&mut contents.before).into_iter().map(float_of).collect();
                contents.want.iter_mut().for_each(|want| want.subtract(&before));
            }
            all
        });
        Self { what: format!("{} that begins", self.what), ..self }
    }

    /// Limits the bytes of a binding, so that operators work in windows.
    pub fn bound(self, bytes: u64) -> Self {
        let what = format!("{} in bindings of {bytes} bytes", self.what);
        Self { what, ..self }.on(move |caps| caps.max_binding_bytes = bytes)
    }

    /// Limits a dimension of a grid to [`FOLD`] workgroups.
    pub fn folded(self) -> Self {
        let what = format!("{} in folded grids", self.what);
        Self { what, ..self }.on(|caps| caps.max_groups = FOLD)
    }

    /// Returns the capabilities for which the case is recorded on an adapter.
    pub fn caps(&self, adapter: &Caps) -> Caps {
        let mut caps = adapter.clone();
        if let Some(change) = &self.change {
            change(&mut caps);
        }
        caps
    }

    /// Returns whether a tensor holds f16.
    pub fn has_half(&self) -> bool {
        self.slots.iter().any(|slot| slot.elem == Elem::F16)
    }

    /// Computes the inputs and the wanted values, one entry per slot.
    ///
    /// # Panics
    /// If the contents do not fit the slots, which is a bug in the table.
    pub fn contents(&self) -> Vec<Contents> {
        let all = (self.fill)();
        assert_eq!(all.len(), self.slots.len(), "cases: {self}: contents and slots");
        for (slot, contents) in self.slots.iter().zip(&all) {
            let name = slot.name;
            assert_eq!(contents.want.is_none(), slot.role == Role::Input, "cases: {self}: wanted values of `{name}`");
            let unwritten = matches!(slot.role, Role::Overwritten | Role::Scratch);
            assert_eq!(contents.before.is_empty(), unwritten, "cases: {self}: `{name}` before");
            assert!(unwritten || contents.before.len() == slot.elements(), "cases: {self}: elements of `{name}`");
            let count = contents.want.as_ref().and_then(Want::count);
            assert!(count.is_none_or(|count| count == slot.elements()), "cases: {self}: wanted values of `{name}`");
        }
        all
    }

    /// Records the pass on tensors of the slots' shapes.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn record(&self, pass: &mut Pass, tensors: &[Tensor]) -> Result<()> {
        (self.launch)(pass, tensors)
    }

    /// Allocates a tensor for each slot.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`].
    pub fn allocate(&self, gpu: &Gpu) -> Result<Vec<Tensor>> {
        self.slots.iter().map(|slot| gpu.tensor(slot.name, slot.shape[0], slot.shape[1], slot.elem)).collect()
    }

    /// Records the pass for an adapter on a dry copy of a device. The copy shares the device's cache of parsed kernels.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn dry(&self, device: &Gpu, adapter: &Caps) -> Result<Program> {
        let mut gpu = device.dry_copy();
        gpu.caps = self.caps(adapter);
        let tensors = self.allocate(&gpu)?;
        let mut pass = Pass::new(&gpu);
        self.record(&mut pass, &tensors)?;
        Ok(pass.finish())
    }
}

/// Returns references to the first `N` tensors of a case, for destructuring by name.
pub fn each<const N: usize>(tensors: &[Tensor]) -> [&Tensor; N] {
    std::array::from_fn(|i| &tensors[i])
}
