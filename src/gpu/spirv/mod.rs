//! SPIR-V for Vulkan: naga writes it, and five passes change it.
//!
//! On Vulkan every kernel is passed to the driver as SPIR-V. naga writes it here with the options that wgpu would use,
//! and [`repair`] changes it. WGSL remains the only source of the computation: the passes only move and convert data,
//! and call functions of scalars for the elements of matrices.
//!
//! | pass | change | reason |
//! |---|---|---|
//! | `matrices` | writes functions of whole cooperative matrices | WGSL can convert no matrix and access no element |
//! | `words` | turns buffers of eight f16 into buffers of `vec4<u32>` | makes one access of 16 bytes |
//! | `layouts` | removes layouts from types of workgroup and function memory | Vulkan forbids them |
//! | `memory_model` | marks accesses and barriers in modules with matrices | the Vulkan memory model requires it |
//! | `lockstep` | turns subgroup barriers into memory barriers, for CPU drivers | Mesa makes them workgroup barriers |

mod dimensions;
mod layouts;
mod lockstep;
mod matrices;
mod memory_model;
mod module;
mod words;

use dimensions::resize;

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};

use crate::error::Result;

use super::kernel::Kernel;
use module::Module;

/// Returns a kernel's module as naga writes it: SPIR-V of `version`, with the bindings in group 0 under their own
/// numbers.
///
/// # Errors
/// [`crate::error::Error::Gpu`] with naga's message.
pub fn written(kernel: &Kernel, version: (u8, u8), checked: bool) -> Result<Vec<u32>> {
    of_module(kernel, &kernel.parse()?, version, checked)
}

/// Does what [`written`] does, for a kernel's parsed text.
pub(super) fn of_module(kernel: &Kernel, parsed: &naga::Module, version: (u8, u8), checked: bool) -> Result<Vec<u32>> {
    let (module, info) = kernel.specialize(parsed)?;
    write(&module, &info, kernel.entry, version, checked).map_err(|e| kernel.fault(&e))
}

/// Does what [`written`] does, for a validated module whose `override` constants have values.
///
/// # Errors
/// naga's message.
pub fn write(
    module: &naga::Module,
    info: &naga::valid::ModuleInfo,
    entry: &str,
    version: (u8, u8),
    checked: bool,
) -> std::result::Result<Vec<u32>, String> {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = spv::Options {
        lang_version: version,
        flags: spv::WriterFlags::empty(),
        fake_missing_bindings: true,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: if checked {
            spv::ZeroInitializeWorkgroupMemoryMode::Polyfill
        } else {
            spv::ZeroInitializeWorkgroupMemoryMode::None
        },
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        use_storage_input_output_16: false,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.to_owned() };
    spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| e.to_string())
}

/// Returns the module after all passes but `lockstep`.
///
/// # Errors
/// A message if the module contains something that a pass cannot change.
pub fn repair(words: &[u32]) -> std::result::Result<Vec<u32>, String> {
    let mut module = Module::new(words);
    matrices::write_functions(&mut module)?;
    matrices::keep_halves(&mut module);
    words::widen(&mut module)?;
    layouts::strip(&mut module)?;
    memory_model::mark(&mut module)?;
    Ok(module.words())
}

/// Returns a kernel's module for the driver: after [`repair`], with matrices of the kernel's dimensions.
///
/// # Errors
/// Those of [`repair`]; a message if matrices cannot have the dimensions.
pub fn for_driver(kernel: &Kernel, words: &[u32]) -> std::result::Result<Vec<u32>, String> {
    let words = repair(words)?;
    match kernel.dimensions {
        Some(dimensions) => resize(&words, dimensions),
        None => Ok(words),
    }
}

/// Returns a module for a CPU driver, whose subgroups are vectors: subgroup barriers become memory barriers.
#[must_use]
pub fn in_lockstep(words: &[u32]) -> Vec<u32> {
    let mut module = Module::new(words);
    lockstep::order_memory_only(&mut module);
    module.words()
}

/// Returns the SPIR-V version that wgpu uses for a device with a Vulkan version `(major, minor)`.
#[must_use]
pub fn version_for(vulkan: (u32, u32)) -> (u8, u8) {
    match vulkan {
        (1, 0) => (1, 0),
        (1, 1) => (1, 3),
        (1, 2) => (1, 5),
        _ => (1, 6),
    }
}

#[cfg(test)]
mod tests;
