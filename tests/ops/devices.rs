//! The modes that the suite runs in, and the lists of kernels that `coverage.rs` wants.

use std::cell::RefCell;
use std::collections::BTreeSet;

use wgpt::gpu::{Caps, Gpu, Options};

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
    pub fn with(mut self, change: impl FnOnce(&mut Caps)) -> Self {
        change(&mut self.gpu.caps);
        self
    }
}

/// Set in the processes that `lanes.rs` starts: their vectors have another width, their modes are fewer.
pub const CHILD: &str = "WGPT_TEST_LANES";

/// True in a process that [`CHILD`] is set for.
pub fn with_other_vectors() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Exchanges the kernels for GPUs and those for software adapters.
fn other_kernels(caps: &mut Caps) {
    caps.software = !caps.software;
    caps.lanes = if caps.software { 8 } else { 0 };
}

/// Every mode the suite runs in. The last three are left out in processes with other vectors.
pub fn devices() -> Vec<Device> {
    if listing() {
        return dry_devices(|_| {});
    }
    let release = Options::default();
    let [webgpu, checked] = [false, true].map(|checked| Options { checked, webgpu_limits: true, ..Options::default() });
    let mut list = vec![Device::open("release", &release)];
    if !with_other_vectors() {
        list.push(Device::open("release, WebGPU's limits", &webgpu).with(other_kernels));
        list.push(Device::open("checked, WebGPU's limits", &checked));
        list.push(Device::open("checked, WebGPU's limits", &checked).with(other_kernels));
    }
    list
}

/// [`devices`] whose adapter has f16.
pub fn devices_with_f16() -> Vec<Device> {
    let mut list = devices();
    list.retain(|device| device.gpu.caps.f16);
    if list.is_empty() {
        not_run("kernels that store f16: the adapter has none");
    }
    list
}

/// [`devices`], and one without 64-bit integers if the adapter has them: some kernels read pairs of numbers as one.
pub fn devices_with_and_without_int64() -> Vec<Device> {
    let mut list = devices();
    if !listing() && !with_other_vectors() && list[0].gpu.caps.int64 {
        list.push(Device::open("release, no 64-bit integers", &Options::default()).with(|caps| caps.int64 = false));
    }
    list
}

/// Every mode for kernels of f16: on cooperative matrices with and without the repair of the SPIR-V, as if they had an
/// edge of 16, with subgroups that may be smaller than they are, with Metal's tiles, and without matrices. Adapters
/// without f16 have none, which is said. In processes with other vectors only those that users have: with matrices and
/// without.
pub fn half_devices() -> Vec<Device> {
    if listing() {
        let caps = |change: fn(&mut Caps)| {
            let mut caps = Caps { f16: true, subgroups: true, ..Caps::webgpu_defaults() };
            change(&mut caps);
            Device { mode: "dry", gpu: Gpu::dry(caps) }
        };
        let large: fn(&mut Caps) = |caps| {
            (caps.matrix_edges, caps.subgroup_sizes) = (vec![16], (32, 32));
            (caps.max_workgroup_bytes, caps.max_invocations) = (32 << 10, 1024);
        };
        return vec![
            caps(|_| {}),
            caps(large),
            caps(|caps| (caps.matrix_edges, caps.subgroup_sizes) = (vec![16], (32, 32))),
            caps(|caps| (caps.matrix_edges, caps.subgroup_sizes) = (vec![8], (8, 8))),
            caps(|caps| {
                (caps.software, caps.lanes) = (true, 8);
                (caps.matrix_edges, caps.subgroup_sizes) = (vec![8], (8, 8));
            }),
            caps(|caps| {
                (caps.matrix_edges, caps.subgroup_sizes) = (vec![8], (8, 8));
                (caps.max_workgroup_bytes, caps.max_invocations) = (32 << 10, 1024);
            }),
            caps(|caps| (caps.matrix_edges, caps.subgroup_sizes, caps.emulated_edge) = (vec![8], (8, 8), Some(16))),
        ];
    }
    let matrices = Options { matrices: true, ..Options::default() };
    let first = Device::open("release", &matrices);
    if !first.gpu.caps.f16 {
        not_run(&format!("kernels of f16: {} has none", first.gpu.caps.name));
        return Vec::new();
    }
    let mut list = vec![Device::open("no matrices", &Options::default())];
    if first.gpu.caps.matrix_edges.is_empty() {
        not_run(&format!("kernels with cooperative matrices: {} has none", first.gpu.caps.name));
        return list;
    }
    if with_other_vectors() {
        list.push(first);
        return list;
    }
    let unrepaired = Options { unrepaired: true, ..matrices.clone() };
    list.push(Device::open("SPIR-V as naga writes it", &unrepaired));
    list.push(Device::open("checked", &Options { checked: true, ..matrices.clone() }));
    list.push(Device::open("tiles for Metal", &matrices).with(|caps| caps.backend = "Metal".into()));
    list.push(Device::open("subgroups of several sizes", &matrices).with(|caps| {
        caps.subgroup_sizes.1 *= 2;
        caps.subgroup_control = false;
    }));
    if first.gpu.caps.matrix_edges == [8] {
        list.push(Device::open("edge 16 of 8", &matrices).with(|caps| caps.emulated_edge = Some(16)));
    }
    list.push(first);
    list
}

/// A device whose bindings hold few bytes, so that operators must work in windows.
pub fn windowed(bytes: u64) -> Vec<Device> {
    if listing() {
        return dry_devices(|caps| caps.max_binding_bytes = bytes);
    }
    let options = Options { webgpu_limits: true, ..Options::default() };
    vec![Device::open("small bindings", &options).with(|caps| caps.max_binding_bytes = bytes)]
}

/// Workgroups that one dimension of [`folded`] holds.
pub const FOLD: u32 = 61;

/// A device whose grids end at [`FOLD`] workgroups in one dimension, so that most are folded.
pub fn folded() -> Vec<Device> {
    vec![Device::open("folded grids", &Options::default()).with(|caps| caps.max_groups = FOLD)]
}

thread_local! {
    /// Names of the kernels recorded, while this thread lists them instead of running them.
    static LISTED: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
}

pub fn listing() -> bool {
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
    [(0, false), (4, false), (4, true), (8, false), (8, true), (16, false), (16, true)]
        .map(|(lanes, int64)| {
            let mut caps = Caps::webgpu_defaults();
            (caps.software, caps.lanes, caps.int64, caps.f16) = (lanes > 0, lanes, int64, true);
            change(&mut caps);
            Device { mode: "dry", gpu: Gpu::dry(caps) }
        })
        .into()
}

/// Adds to the list of [`list_kernels`].
pub fn list(names: Vec<String>) {
    LISTED.with_borrow_mut(|listed| listed.as_mut().map(|set| set.extend(names)));
}

/// Prints past the capture of the test runner: what was not run must be seen.
pub fn not_run(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "not run: {what}");
}
