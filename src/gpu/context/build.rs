//! Builds kernels: passes modules to the driver, and turns its refusals into errors.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::{Built, Kernel, KernelBody, KernelId, Pipeline, Reflection};
use crate::gpu::{spirv, vulkan};

use super::{Gpu, Raw, lock};

impl Gpu {
    /// Returns a kernel that is parsed and, unless this device is dry, built. Does each only once and caches the
    /// result.
    pub(in crate::gpu) fn pipeline(&self, id: &KernelId) -> Result<Arc<Pipeline>> {
        let pipeline = self.kernels.get(id)?;
        let (name, reflection) = (&pipeline.name, &pipeline.reflection);
        reflection.check(name, &self.caps)?;
        if pipeline.kernel.dimensions.is_some() && self.caps.flexible.is_none() {
            let what = format!("needs cooperative matrices of flexible dimensions, which {} lacks", self.caps.name);
            return Err(Error::gpu(Fault::at(format!("kernel {name}"), what).expected("VK_NV_cooperative_matrix2")));
        }
        if let (Some(raw), None) = (&self.raw, pipeline.built()) {
            // a driver may crash on a module whose features it lacks; tests may have added features to `caps`
            reflection.needs.check(name, &self.granted)?;
            pipeline.build(|body, module| self.build(raw, body, module))?;
        }
        if let Some(all) = lock(&self.statistics).as_mut()
            && !all.iter().any(|(known, _)| **known == **name)
        {
            // the kernel was built under the name of another kernel with the same text
            let figures =
                all.iter().find(|(known, _)| *known == pipeline.kernel.name).map(|(_, figures)| figures.clone());
            all.extend(figures.map(|figures| (name.to_string(), figures)));
        }
        Ok(pipeline)
    }

    fn build(&self, raw: &Raw, body: &KernelBody, parsed: naga::Module) -> Result<Built> {
        let KernelBody { kernel, reflection, .. } = body;
        let entries: Vec<wgpu::BindGroupLayoutEntry> = reflection
            .bindings
            .iter()
            .map(|&(binding, writes)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !writes },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let extra = vulkan::PipelineOptions {
            subgroup_size: self.required_subgroups(kernel),
            statistics: lock(&self.statistics).is_some(),
        };
        let scope = raw.device.push_error_scope(wgpu::ErrorFilter::Validation);
        // naga's writers and some drivers panic on modules that they cannot translate
        let built = catch_unwind(AssertUnwindSafe(|| {
            let module = self.module(raw, kernel, reflection, parsed)?;
            let bind_layout = raw.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&kernel.name),
                entries: &entries,
            });
            let layout = raw.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&kernel.name),
                bind_group_layouts: &[Some(&bind_layout)],
                immediate_size: reflection.immediate_bytes,
            });
            let descriptor = wgpu::ComputePipelineDescriptor {
                label: Some(&kernel.name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // in our SPIR-V the constants already have their values
                    constants: if self.spirv.is_some() { &[] } else { &kernel.constants },
                    zero_initialize_workgroup_memory: self.checked,
                },
                cache: None,
            };
            let (pipeline, report) = vulkan::build_with(extra, || raw.device.create_compute_pipeline(&descriptor));
            if let Some(all) = lock(&self.statistics).as_mut() {
                all.push((kernel.name.clone(), report));
            }
            Ok((pipeline, bind_layout))
        }));
        let error = pollster::block_on(scope.pop());
        let fault = |what: String| {
            let what = format!("{} cannot build it: {what}", self.caps.name);
            Error::gpu(Fault::at(format!("kernel {}", kernel.name), what))
        };
        match (built, error) {
            (Ok(Err(error)), _) => Err(error),
            (Ok(Ok(pipeline)), None) => {
                self.check()?;
                Ok(pipeline)
            }
            (Ok(Ok(_)), Some(error)) => Err(fault(error.to_string())),
            (Err(panic), _) => Err(fault(panic_text(&*panic))),
        }
    }

    /// Makes the kernel's module: on Vulkan from our SPIR-V, otherwise from naga's module, which wgpu translates.
    fn module(
        &self,
        raw: &Raw,
        kernel: &Kernel,
        reflection: &Reflection,
        parsed: naga::Module,
    ) -> Result<wgpu::ShaderModule> {
        if let Some(version) = self.spirv {
            let written = spirv::of_module(kernel, &parsed, version, self.checked)?;
            let words = spirv::for_driver(kernel, &written).map_err(|e| kernel.fault(&e))?;
            let words = if self.caps.software { spirv::in_lockstep(&words) } else { words };
            let [x, y, z] = reflection.workgroup_size;
            let entry = wgpu::PassthroughShaderEntryPoint { name: kernel.entry.into(), workgroup_size: (x, y, z) };
            let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                label: Some(&kernel.name),
                entry_points: vec![entry].into(),
                spirv: Some(words.into()),
                ..Default::default()
            };
            // SAFETY: the words are naga's output for this kernel, and `Reflection::check` has found that the device
            // can run it. `repair` only changes how data are moved. The reasons below for indices and loops apply here
            // too.
            return Ok(unsafe { raw.device.create_shader_module_passthrough(descriptor) });
        }
        let checks =
            if self.checked { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.name),
            source: wgpu::ShaderSource::Naga(Cow::Owned(parsed)),
        };
        // SAFETY: unchecked kernels must not read or write out of bounds nor loop forever. Every kernel compares its
        // indices with the sizes it is given, launchers check those sizes against the tensors, and the tests run all
        // kernels with guard words around their outputs, in both modes.
        Ok(unsafe { raw.device.create_shader_module_trusted(descriptor, checks) })
    }

    /// Returns the subgroup size that a kernel requires; `None` if the device cannot be asked for one.
    fn required_subgroups(&self, kernel: &Kernel) -> Option<u32> {
        kernel.subgroup_size.filter(|lanes| self.granted.can_require_subgroups_of(*lanes))
    }
}

/// Returns the message of a caught panic.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "unknown panic".into())
}
