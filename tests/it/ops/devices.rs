//! The modes that the suite runs in. Each device is opened once per process, and all tests share it.

use std::sync::{Arc, Mutex, PoisonError};

use wgpt::cases::{Breadth, Case};
use wgpt::gpu::{Caps, Gpu, Options, Vendor};
use wgpt::ops::attention::{BACKWARD, STEP};
use wgpt::ops::matmul::{BACKWARD_INP, BACKWARD_WEIGHT};

use crate::common::not_run::not_run;

/// The options with which a device is opened, as far as tests differ in them.
type Key = [bool; 5];

/// An open device, and its capabilities as the adapter has them.
type Open = (Key, Caps, Arc<Mutex<Gpu>>);

static OPEN: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// A device in one mode. Several modes may share one open device, and with it the compiled kernels.
#[derive(Clone)]
pub struct Device {
    /// The mode's name.
    pub mode: &'static str,
    /// The capabilities from which kernels and windows are chosen.
    pub caps: Caps,
    /// Whether the adapter is a software one. `caps` may describe another adapter.
    pub software: bool,
    key: Key,
    gpu: Arc<Mutex<Gpu>>,
}

impl Device {
    /// Opens the default adapter unless it is open already. Panics if there is no adapter.
    pub fn open(mode: &'static str, options: &Options) -> Self {
        let key = [options.checked, options.webgpu_limits, options.matrices, options.unrepaired, options.experimental];
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, caps, gpu) = match open.iter().find(|(known, ..)| *known == key) {
            Some(found) => found.clone(),
            None => {
                let gpu = Gpu::open(options).unwrap_or_else(|e| panic!("{e}"));
                open.push((key, gpu.caps.clone(), Arc::new(Mutex::new(gpu))));
                open[open.len() - 1].clone()
            }
        };
        Self { mode, software: caps.software, caps, key, gpu }
    }

    /// Returns the same device with other capabilities.
    pub fn with(mut self, mode: &'static str, change: impl FnOnce(&mut Caps)) -> Self {
        self.mode = mode;
        change(&mut self.caps);
        self
    }

    /// Runs `work` on the device under `caps`. Modes that share the device wait.
    pub fn run<T>(&self, caps: &Caps, work: impl FnOnce(&Gpu) -> T) -> T {
        let gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        work(&gpu.with_caps(caps.clone()))
    }

    /// Returns whether both use the same open device.
    pub fn shares(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// The variable that is set in the processes that `lanes.rs` starts. Their vectors have another width, and they run
/// fewer modes.
pub const CHILD: &str = "WGPT_TEST_LANES";

/// Returns whether [`CHILD`] is set for this process.
pub fn with_other_vectors() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Exchanges the kernels for GPUs and those for software adapters.
fn other_kernels(caps: &mut Caps) {
    caps.software = !caps.software;
    caps.lanes = if caps.software { 8 } else { 0 };
    caps.vendor = if caps.software { Vendor::Other } else { Vendor::Nvidia };
}

/// A mode of the suite and the cases that run in it.
#[derive(Clone)]
pub struct Mode {
    pub device: Device,
    pub breadth: Breadth,
    /// Returns whether the mode runs a case, which it does if it changes the kernels of the case.
    takes: fn(&Case) -> bool,
    /// Returns whether only `--ignored` runs a case, because CPU drivers compile its kernels slowly.
    leaves: fn(&Case) -> bool,
}

impl Mode {
    fn new(device: Device, breadth: Breadth, takes: fn(&Case) -> bool) -> Self {
        Self { device, breadth, takes, leaves: |_| false }
    }

    /// Leaves cases to `--ignored` if the mode's adapter is a software one.
    fn leaving(self, leaves: fn(&Case) -> bool) -> Self {
        if self.device.software { Self { leaves, ..self } } else { self }
    }

    /// Returns the mode with all cases, also those that `--ignored` runs.
    pub fn whole(&self) -> Self {
        Self { breadth: Breadth::All, ..self.clone() }
    }

    /// Returns the cases that an operator runs in this mode.
    pub fn cases(&self, cases: &wgpt::cases::Cases) -> Vec<Case> {
        self.select(cases, |case| self.breadth == Breadth::All || !(self.leaves)(case))
    }

    /// Returns the cases of this breadth that the mode leaves to `--ignored`.
    pub fn left(&self, cases: &wgpt::cases::Cases) -> Vec<Case> {
        self.select(cases, self.leaves)
    }

    fn select(&self, cases: &wgpt::cases::Cases, selects: impl Fn(&Case) -> bool) -> Vec<Case> {
        let mut list = (cases.tests)(&self.device.caps, self.breadth);
        list.retain(|case| (self.takes)(case) && selects(case));
        list
    }
}

fn all(_: &Case) -> bool {
    true
}

/// Returns whether a case uses other kernels on matrix units.
fn on_matrices(case: &Case) -> bool {
    match case.pass.operator {
        "attention" | "matmul" => case.has_half(),
        "roof" => case.pass.pass.starts_with("matrix") && case.pass.pass != "matrix_flexible",
        _ => false,
    }
}

/// Returns whether the kernels of a case read pairs of numbers as one 64-bit integer.
fn in_pairs(case: &Case) -> bool {
    case.pass.operator == "matmul" && !case.has_half()
}

/// Returns whether a case is anything but a product of f16 without matrices, whose kernels do not depend on the
/// adapter.
fn no_half_products(case: &Case) -> bool {
    case.pass.operator != "matmul" || !case.has_half()
}

/// Returns whether a case is attention with large heads other than GPT-2's. The text of kernels for GPUs differs in the
/// size alone.
fn of_large_heads(case: &Case) -> bool {
    let is_large = |size: &str| case.to_string().contains(&format!("heads of {size}"));
    case.pass.operator == "attention" && case.pass != STEP && ["32", "80", "96", "128"].into_iter().any(is_large)
}

/// Returns whether a case is attention's backward pass, for which CPU drivers take longest.
fn of_attention_backward(case: &Case) -> bool {
    case.pass == BACKWARD
}

/// Returns whether a case is a product, attention or layernorm in f16, whose kernels differ from those in f32 in a
/// type.
fn of_halves(case: &Case) -> bool {
    ["attention", "layernorm", "matmul"].contains(&case.pass.operator) && case.has_half()
}

/// Returns whether a case is one of [`of_attention_backward`] or [`of_halves`].
fn of_attention_backward_or_halves(case: &Case) -> bool {
    of_attention_backward(case) || of_halves(case)
}

/// Returns whether a case is a backward pass, for which CPU drivers take as long again.
fn of_backward(case: &Case) -> bool {
    [BACKWARD, BACKWARD_INP, BACKWARD_WEIGHT].contains(&case.pass)
}

/// CPU drivers take minutes to compile some kernels, which run with `--ignored`.
fn full(release: &Device) -> Breadth {
    if release.caps.software { Breadth::Full } else { Breadth::All }
}

/// Returns every mode that the suite runs in. A process with other vectors has one mode.
pub fn modes() -> Vec<Mode> {
    let release = Device::open("release", &Options::default());
    if with_other_vectors() {
        return vec![Mode::new(release, Breadth::Family, all)];
    }
    let [webgpu, checked] = [false, true].map(|checked| Options { checked, webgpu_limits: true, ..Options::default() });
    let webgpu = Device::open("release, WebGPU's limits", &webgpu).with("release, WebGPU's limits", other_kernels);
    let checked = Device::open("checked, WebGPU's limits", &checked);
    let other = checked.clone().with("checked, WebGPU's limits, other kernels", other_kernels);
    let full = full(&release);
    let mut list: Vec<Mode> = vec![
        Mode::new(release.clone(), full, all),
        Mode::new(webgpu, full, no_half_products).leaving(of_large_heads),
        Mode::new(checked, Breadth::Narrow, all).leaving(of_halves),
        Mode::new(other, Breadth::Narrow, no_half_products).leaving(of_attention_backward_or_halves),
    ];
    if release.caps.int64 && release.caps.software {
        let device = release.clone().with("release, no 64-bit integers", |caps| caps.int64 = false);
        list.push(Mode::new(device, full, in_pairs));
    }
    list.extend(by_subgroups(&release));
    list.extend(with_matrices());
    list
}

/// Runs the GPU kernels of operators that add up over subgroups, on a software adapter's subgroups and in its largest
/// workgroups. A GPU runs them in the first mode.
fn by_subgroups(release: &Device) -> Option<Mode> {
    let caps = &release.caps;
    let able = caps.subgroups && caps.subgroup_sizes.0 >= 8 && caps.subgroup_sizes.0 == caps.subgroup_sizes.1;
    if caps.software && !able {
        not_run("sums over subgroups", "the adapter has no subgroups of one size of 8 or more");
    }
    let device = release.clone().with("release, sums over subgroups", other_kernels);
    let takes = |case: &Case| ["crossentropy", "layernorm"].contains(&case.pass.operator);
    (caps.software && able).then(|| Mode::new(device, full(release), takes))
}

/// Returns the modes on matrix units: release; SPIR-V as naga writes it; checked; Metal's tiles; subgroups that may be
/// smaller than they are; and matrices of 16 that are composed of matrices of 8. Returns none if the adapter has no
/// matrix units.
fn with_matrices() -> Vec<Mode> {
    let options = Options { matrices: true, ..Options::default() };
    let release = Device::open("matrices", &options);
    if release.caps.matrix_edges.is_empty() {
        return Vec::new();
    }
    let unrepaired = Options { unrepaired: true, ..options.clone() };
    let unrepaired = Device::open("matrices, SPIR-V as naga writes it", &unrepaired);
    let checked = Device::open("matrices, checked", &Options { checked: true, ..options.clone() });
    let metal = release.clone().with("matrices, tiles for Metal", |caps| caps.backend = "Metal".into());
    let varying = release.clone().with("matrices, subgroups of several sizes", |caps| {
        caps.subgroup_sizes.1 *= 2;
        caps.subgroup_control = false;
    });
    let mut list = vec![Mode::new(release.clone(), full(&release), on_matrices)];
    let flexible = Device::open("matrices of flexible dimensions", &Options { experimental: true, ..options });
    if flexible.caps.flexible.is_some() {
        list.push(Mode::new(flexible, Breadth::Narrow, |case| case.pass.pass == "matrix_flexible"));
    } else {
        not_run("products in matrices of flexible dimensions", "the adapter has none");
    }
    list.push(Mode::new(metal, Breadth::Narrow, on_matrices));
    list.push(Mode::new(checked, Breadth::Narrow, on_matrices).leaving(of_backward));
    let narrow = |device| Mode::new(device, Breadth::Narrow, on_matrices).leaving(of_attention_backward);
    list.extend([unrepaired, varying].map(narrow));
    if release.caps.matrix_edges == [8] {
        let emulated = release.with("matrices, edge 16 of 8", |caps| caps.emulated_edge = Some(16));
        list.push(Mode::new(emulated, Breadth::Narrow, on_matrices));
    }
    list
}

/// Returns the devices that run everything but what needs matrices: one in a process with other vectors, otherwise two,
/// of which the second takes the kernels of other adapters.
pub fn devices() -> Vec<Device> {
    let whole = |mode: &Mode| mode.breadth != Breadth::Narrow && mode.device.mode != "matrices";
    modes().into_iter().filter(whole).map(|mode| mode.device).take(2).collect()
}

/// Returns the device with matrices if the adapter has any.
pub fn matrix_device() -> Option<Device> {
    let found = modes().into_iter().find(|mode| mode.device.mode == "matrices");
    if found.is_none() {
        not_run("kernels with cooperative matrices", "the adapter has none");
    }
    found.map(|mode| mode.device)
}
