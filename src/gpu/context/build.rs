//! Builds kernels: hands modules to the driver, and turns its refusals into errors.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::{Built, Kernel, KernelId, OfText, Pipeline, Reflection};
use crate::gpu::{spirv, vulkan};

use super::{Gpu, Raw, lock};

impl Gpu {
    /// Returns a kernel, read and on a device built, from the cache if that was done before.
    pub(in crate::gpu) fn pipeline(&self, id: &KernelId) -> Result<Arc<Pipeline>> {
        let pipeline = self.kernels.get(id)?;
        let (name, reflection) = (&pipeline.name, &pipeline.reflection);
        reflection.check(name, &self.caps)?;
        if pipeline.kernel.dimensions.is_some() && self.caps.flexible.is_none() {
            let what = format!("needs cooperative matrices of flexible dimensions, {} has none", self.caps.name);
            return Err(Error::gpu(Fault::at(format!("kernel {name}"), what).expected("VK_NV_cooperative_matrix2")));
        }
        if let (Some(raw), None) = (&self.raw, pipeline.built()) {
            // a driver may crash on a module whose features it lacks, whatever tests have made `caps` promise
            reflection.needs.check(name, &self.granted)?;
            pipeline.build(|shared, module| self.build(raw, shared, module))?;
        }
        if let Some(all) = lock(&self.statistics).as_mut()
            && !all.iter().any(|(known, _)| **known == **name)
        {
            // built under the name of another kernel of the same text
            let figures =
                all.iter().find(|(known, _)| *known == pipeline.kernel.name).map(|(_, figures)| figures.clone());
            all.extend(figures.map(|figures| (name.to_string(), figures)));
        }
        Ok(pipeline)
    }

    fn build(&self, raw: &Raw, shared: &OfText, parsed: naga::Module) -> Result<Built> {
        let OfText { kernel, reflection, .. } = shared;
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
        let order = vulkan::Order {
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
                    // our SPIR-V has them in its text
                    constants: if self.spirv.is_some() { &[] } else { &kernel.constants },
                    zero_initialize_workgroup_memory: self.checked,
                },
                cache: None,
            };
            let (pipeline, report) = vulkan::ordered(order, || raw.device.create_compute_pipeline(&descriptor));
            if let Some(all) = lock(&self.statistics).as_mut() {
                all.push((kernel.name.clone(), report));
            }
            Ok((pipeline, bind_layout))
        }));
        let error = pollster::block_on(scope.pop());
        let fault = |what: String| {
            Error::gpu(Fault::at(format!("kernel {}", kernel.name), format!("{} refuses it: {what}", self.caps.name)))
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

    /// The kernel's module: on Vulkan our SPIR-V, else naga's module, which wgpu translates.
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
            // SAFETY: the words are naga's own for this kernel, and `Reflection::check` has found that the device can run
            // it; `repair` only changes how data move. The reasons below for indices and loops hold here too.
            return Ok(unsafe { raw.device.create_shader_module_passthrough(descriptor) });
        }
        let checks =
            if self.checked { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.name),
            source: wgpu::ShaderSource::Naga(Cow::Owned(parsed)),
        };
        // SAFETY: unchecked kernels must not read or write out of bounds nor loop forever. Every kernel guards its indices
        // by the sizes it is given, launchers check those against the tensors, and the tests run all kernels with guard
        // words round their outputs, in both modes.
        Ok(unsafe { raw.device.create_shader_module_trusted(descriptor, checks) })
    }

    /// The subgroup size that a kernel requires, where the device takes such orders.
    fn required_subgroups(&self, kernel: &Kernel) -> Option<u32> {
        kernel.subgroup_size.filter(|lanes| self.granted.can_require_subgroups_of(*lanes))
    }
}

/// The words of a caught panic.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "unknown panic".into())
}
