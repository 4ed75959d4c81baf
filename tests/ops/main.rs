//! Every operator on the GPU against its f64 reference, through one harness: see [`harness`].
//!
//! Each test runs in release mode, in checked mode, under WebGPU's default limits, and with the kernels that this kind
//! of adapter would not choose by itself. Software Vulkan runs everything again with vectors of 4 and 16 lanes.

mod adamw;
mod attention;
mod bias;
mod cast;
mod compare;
mod coverage;
mod crossentropy;
mod devices;
mod embedding;
mod gelu;
mod gradnorm;
mod harness;
mod lanes;
mod layernorm;
mod matmul;
mod matmul_half;
mod order;
mod planted;
mod program;
mod residual;
mod rings;
mod roof;
mod shapes;
mod stepcontrol;
mod values;
