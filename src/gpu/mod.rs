//! Buffers, kernels, command recording, time and capabilities. Knows nothing of transformers; the only floor that
//! names wgpu.
//!
//! A step is recorded once as a flat [`Program`] of dispatches and encoded anew for every submission. What is
//! recorded needs no device: with [`Gpu::dry`] the same calls only count.

pub mod adapter;
pub mod context;
pub mod devices;
pub(crate) mod faults;
pub mod kernel;
pub mod layout;
mod mapping;
pub mod parcels;
pub mod pass;
pub mod pool;
pub mod program;
mod reflection;
pub mod ring;
pub mod spans;
pub mod spirv;
pub mod stopwatch;
pub mod tensor;
pub mod text;
pub mod timing;
mod transfer;
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod vulkan;
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
#[path = "no_vulkan.rs"]
mod vulkan;
pub mod waits;
mod zeros;

pub use adapter::{CHOICE, Caps, DeviceInfo, Vendor, use_wide_vectors};
pub use context::{Gpu, Options};
pub use kernel::{Arithmetic, Kernel, KernelId, OpPass, Purpose};
pub use layout::Immediates;
pub use parcels::{Arrival, Arrivals, Departures, Parcel};
pub use pass::{Dispatch, Pass};
pub use pool::Pool;
pub use program::{Binding, Command, Place, Program};
pub use ring::{ReadRing, Upload, UploadRing};
pub use spans::Span;
pub use stopwatch::{Lap, Stopwatch, Timed};
pub use tensor::{Elem, Tensor};
pub use timing::{Timing, Timings};
pub use waits::Waits;
