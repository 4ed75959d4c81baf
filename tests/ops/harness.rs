//! The only code that runs an operator in tests.
//!
//! [`check`] records the operator once for every device of [`devices`] and runs the recording twice. Inputs are f32
//! numbers of a fixed seed, which the f64 reference sees as they are. Overwritten outputs begin as NaN, accumulated
//! ones as numbers other than zero. Every tensor lies between guard words, NaN too, that must keep their bits. Both
//! runs must give the same bits. Comparisons are `!(difference <= tolerance)`, so that NaN fails.
//!
//! Tolerances are budgets, stated where they are made as multiples of [`EPS`] times a magnitude: what the sum would be
//! without cancellation. `planted.rs` holds the harness itself to account.

use std::cell::RefCell;
use std::collections::BTreeSet;

use wgpt::error::Result;
use wgpt::gpu::{Caps, Elem, Gpu, Options, Pass, Tensor};

/// Distance from 1 to the next f32: twice the largest relative error of one rounding.
pub const EPS: f64 = f32::EPSILON as f64;
/// Absolute part of every budget: GPUs may flush what is below 1e-38 to zero, before it is multiplied by something.
const FLOOR: f64 = 1e-30;
/// Bits of the words round every tensor: a NaN.
const GUARD: u32 = 0x7fc0_5afe;
/// Bits of an output that is not written yet: another NaN.
const UNWRITTEN: u32 = 0x7fc0_0bad;
/// Guard words before a tensor: what alignment asks for.
const HEAD: usize = 64;
/// Guard words after a tensor, at least.
const TAIL: usize = 256;

/// The relative error that `n` additions may make, in units of [`EPS`].
///
/// The certain bound is n. A long sum's errors have random signs and stay below 8 sqrt(n) with odds of 1 - 1e-13
/// (Higham and Mary 2019, doi:10.1137/18M1226312).
pub fn rounding(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.min(8.0 * n.sqrt())
}

/// What an output must hold.
#[derive(Clone)]
pub enum Want {
    /// Each element within its tolerance.
    Near { want: Vec<f64>, tolerance: Vec<f64> },
    /// The sum of all elements.
    Total { want: f64, tolerance: f64 },
    /// Integers and floats mixed: a struct.
    Words(Vec<Word>),
    /// Anything: scratch.
    Anything,
}

/// One word of [`Want::Words`].
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// These bits.
    Bits(u32),
    /// This float within a tolerance.
    Near(f64, f64),
    /// NaN or infinite.
    NonFinite,
}

/// `want` within `budget` times [`EPS`] times the magnitude of each element.
pub fn near(want: Vec<f64>, budget: f64, magnitude: &[f64]) -> Want {
    assert_eq!(want.len(), magnitude.len(), "harness: magnitudes");
    let tolerance = magnitude.iter().map(|m| budget * EPS * m + FLOOR).collect();
    Want::Near { want, tolerance }
}

/// `want` within an absolute tolerance of each element's own.
pub fn within(want: Vec<f64>, tolerance: Vec<f64>) -> Want {
    assert_eq!(want.len(), tolerance.len(), "harness: tolerances");
    Want::Near { want, tolerance: tolerance.into_iter().map(|t| t + FLOOR).collect() }
}

/// Exactly these bits.
pub fn bits(want: &[u32]) -> Want {
    Want::Words(want.iter().map(|&w| Word::Bits(w)).collect())
}

/// As f64, exactly.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Absolute values.
pub fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

/// Repeatable inputs, rounded to f32 before anyone sees them.
pub struct Inputs(wgpt::reference::random::Random);

impl Inputs {
    /// The fixed seed.
    pub fn new() -> Self {
        Self(wgpt::reference::random::Random::new(20_240_520))
    }

    /// `n` bell-shaped values in (-1, 1).
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        self.scaled(n, 1.0)
    }

    /// `n` bell-shaped values in (-scale, scale).
    pub fn scaled(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| (self.0.value() * scale) as f32).collect()
    }

    /// `n` tokens below `vocab`.
    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        self.0.tokens(n, vocab)
    }
}

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

/// A tensor of integers that is read.
pub fn integers(name: &'static str, shape: [usize; 2], values: &[u32]) -> Slot {
    Slot::new(name, shape, Elem::U32, values.to_vec(), None)
}

/// A tensor that is overwritten: NaN before.
pub fn overwritten(name: &'static str, shape: [usize; 2], want: Want) -> Slot {
    Slot::new(name, shape, Elem::F32, vec![UNWRITTEN; shape[0] * shape[1]], Some(want))
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

/// A device in one mode.
pub struct Device {
    /// Which mode.
    pub mode: &'static str,
    /// The device; a dry one where kernels are only listed.
    pub gpu: Gpu,
}

impl Device {
    /// Opens the default adapter. None at all is a failure.
    pub fn open(mode: &'static str, options: &Options) -> Self {
        Self { mode, gpu: Gpu::open(options).unwrap_or_else(|e| panic!("{e}")) }
    }

    /// The same with other capabilities, from which kernels and windows are chosen.
    pub fn with(mut self, mode: &'static str, change: impl FnOnce(&mut Caps)) -> Self {
        self.mode = mode;
        change(&mut self.gpu.caps);
        self
    }
}

/// Set in the processes that `lanes.rs` starts: their vectors have another width, their modes are fewer.
pub const CHILD: &str = "WGPT_TEST_LANES";

/// Exchanges the kernels for GPUs and those for software adapters.
fn other_kernels(caps: &mut Caps) {
    caps.software = !caps.software;
    caps.lanes = if caps.software { 8 } else { 0 };
}

/// Every mode the suite runs in.
pub fn devices() -> Vec<Device> {
    if listing() {
        return dry_devices(|_| {});
    }
    let release = Options::default();
    let checked = Options { checked: true, ..Options::default() };
    let webgpu = Options { webgpu_limits: true, ..Options::default() };
    let mut list = vec![
        Device::open("release", &release),
        Device::open("webgpu limits, other kernels", &webgpu).with("webgpu limits, other kernels", other_kernels),
    ];
    if std::env::var_os(CHILD).is_none() {
        list.push(Device::open("checked", &checked));
        list.push(Device::open("webgpu limits", &webgpu));
        list.push(Device::open("checked", &checked).with("checked, other kernels", other_kernels));
    }
    list
}

/// A device whose bindings hold few bytes, so that operators must work in windows.
pub fn windowed(bytes: u64) -> Vec<Device> {
    if listing() {
        return dry_devices(|caps| caps.max_binding_bytes = bytes);
    }
    [("windows", false), ("windows, checked", true)]
        .into_iter()
        .map(|(mode, checked)| {
            let options = Options { checked, webgpu_limits: true, ..Options::default() };
            Device::open(mode, &options).with(mode, |caps| caps.max_binding_bytes = bytes)
        })
        .collect()
}

/// A device whose grids end at 61 workgroups in one dimension, so that most are folded.
pub fn folded() -> Vec<Device> {
    vec![Device::open("folded grids", &Options::default()).with("folded grids", |caps| caps.max_groups = 61)]
}

thread_local! {
    /// Names of the kernels recorded, while this thread lists them instead of running them.
    static LISTED: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
}

fn listing() -> bool {
    LISTED.with_borrow(Option::is_some)
}

/// Names of the kernels that the checks in `tests` would run on any adapter.
pub fn list_kernels(tests: impl FnOnce()) -> BTreeSet<String> {
    LISTED.set(Some(BTreeSet::new()));
    tests();
    LISTED.take().unwrap_or_default()
}

/// Adapters with GPU kernels and with those of software adapters, without a device behind them.
fn dry_devices(change: impl Fn(&mut Caps)) -> Vec<Device> {
    [0, 8]
        .map(|lanes| {
            let mut caps = Caps::webgpu_defaults();
            (caps.software, caps.lanes) = (lanes > 0, lanes);
            change(&mut caps);
            Device { mode: "dry", gpu: Gpu::dry(caps) }
        })
        .into()
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
            let (_, names) = record(device, &case).unwrap_or_else(|report| panic!("{report}"));
            LISTED.with_borrow_mut(|listed| listed.as_mut().map(|set| set.extend(names)));
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

fn record<const N: usize>(
    device: &Device,
    case: &Case<N>,
) -> Result<(([Guarded; N], wgpt::gpu::Program), Vec<String>), String> {
    let place = || {
        let caps = &device.gpu.caps;
        let kind = if caps.software { format!("{} lanes", caps.lanes) } else { "GPU kernels".into() };
        format!("{} {:?} on {} ({}, {kind})", case.kernel, case.shape, caps.name, device.mode)
    };
    let fault = |e: wgpt::error::Error| format!("{}: {e}", place());
    let mut guarded = Vec::with_capacity(N);
    for slot in &case.slots {
        guarded.push(allocate(&device.gpu, slot).map_err(fault)?);
    }
    let Ok(guarded) = <[Guarded; N]>::try_from(guarded) else { unreachable!("one buffer a slot") };
    let tensors = guarded.each_ref().map(|g| g.tensor.clone());
    let mut pass = Pass::new(&device.gpu);
    (case.launch)(&mut pass, &tensors).map_err(fault)?;
    let program = pass.finish();
    let names: Vec<String> = program.commands.iter().map(|c| c.name.clone()).collect();
    Ok(((guarded, program), names))
}

/// Runs a case on one device; says what is wrong.
pub fn verify<const N: usize>(device: &Device, case: &Case<N>) -> Result<(), String> {
    let ((guarded, program), names) = record(device, case)?;
    let gpu = &device.gpu;
    let place = || {
        let caps = &gpu.caps;
        let kind = if caps.software { format!("{} lanes", caps.lanes) } else { "GPU kernels".into() };
        let mut names = names.clone();
        names.dedup();
        format!("{} {:?} on {} ({}, {kind}; {})", case.kernel, case.shape, caps.name, device.mode, names.join(" "))
    };
    let fault = |e: wgpt::error::Error| format!("{}: {e}", place());
    let mut first: Vec<Vec<u32>> = Vec::new();
    for round in 0..2 {
        for (slot, guarded) in case.slots.iter().zip(&guarded) {
            if round > 0 && slot.want.is_none() {
                continue;
            }
            let mut words = vec![GUARD; guarded.whole.len()];
            words[HEAD..HEAD + slot.before.len()].copy_from_slice(&slot.before);
            gpu.write(&guarded.whole, bytemuck::cast_slice(&words)).map_err(fault)?;
        }
        program.run(gpu).map_err(fault)?;
        for (i, (slot, guarded)) in case.slots.iter().zip(&guarded).enumerate() {
            let Some(want) = &slot.want else {
                first.push(Vec::new());
                continue;
            };
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&guarded.whole).map_err(fault)?);
            if round == 0 {
                judge(slot, want, &words).map_err(|what| format!("{}: {what}", place()))?;
                first.push(words);
            } else if let Some(at) = words.iter().zip(&first[i]).position(|(a, b)| a != b) {
                let [a, b] = [first[i][at], words[at]].map(f32::from_bits);
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
    if let Some(at) = (0..words.len()).find(|&i| !(HEAD..HEAD + n).contains(&i) && words[i] != GUARD) {
        let (at, got) = (at as i64 - HEAD as i64, f32::from_bits(words[at]));
        return Err(format!("`{}` of {n} elements: guard word at {at} was overwritten with {got:e}", slot.name));
    }
    let got = &words[HEAD..HEAD + n];
    let float = |i: usize| f64::from(f32::from_bits(got[i]));
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
                UNWRITTEN => "nothing: never written".into(),
                word => format!("{:e} ({word:#x})", f32::from_bits(word)),
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
                    Word::NonFinite => !float(i).is_finite() && got[i] != UNWRITTEN,
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

/// Prints past the capture of the test runner: what was not run must be seen.
pub fn not_run(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "not run: {what}");
}
