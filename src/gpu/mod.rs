//! Buffers, kernels, command recording, time and capabilities. This floor knows nothing of transformers, and only it
//! names wgpu.
//!
//! A step is recorded once as a flat [`Program`] of commands and encoded again for every submission. Recording needs no
//! device: with [`Gpu::dry`] the same calls only count.

pub mod adapter;
pub mod bulk;
pub mod context;
pub mod devices;
pub(crate) mod faults;
pub mod host_spans;
pub mod host_wait;
pub mod kernel;
pub mod layout;
mod mapping;
pub mod pass;
pub mod pool;
pub mod program;
mod reflection;
pub mod ring;
pub mod spirv;
pub mod stopwatch;
pub mod tensor;
pub mod timing;
mod transfer;
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod vulkan;
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
#[path = "no_vulkan.rs"]
mod vulkan;
pub mod wgsl_text;
mod zeros;

pub use adapter::{ADAPTER_CHOICE, Caps, DeviceInfo, Vendor, use_wide_vectors};
pub use bulk::{BulkRead, BulkReads, BulkUpload, BulkUploads};
pub use context::{Gpu, Options};
pub use host_spans::Span;
pub use host_wait::Waits;
pub use kernel::{Arithmetic, Kernel, KernelId, OpPass, Purpose};
pub use layout::Immediates;
pub use pass::{Dispatch, Pass};
pub use pool::Pool;
pub use program::{Binding, Command, Program, Section};
pub use ring::{ReadRing, Upload, UploadRing};
pub use stopwatch::{Lap, Stopwatch, Timed};
pub use tensor::{Elem, Tensor};
pub use timing::{Timing, Timings};
