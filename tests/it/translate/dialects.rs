//! From WGSL to the three dialects, step by step and option by option as wgpu 30 does it.

use std::collections::BTreeMap;

use naga::back::{hlsl, msl, pipeline_constants, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Handle, Module, ResourceBinding, ShaderStage, StorageAccess, TypeInner};
use wgpt::gpu::Kernel;

/// Whether wgpu puts bounds and loop checks into the text: off in a normal run, on in a checked one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    Off,
    On,
}

/// A kernel parsed, validated and with its `override` constants filled in.
pub struct Form {
    pub module: Module,
    pub info: ModuleInfo,
    /// Index of the entry point.
    pub index: usize,
    pub entry: &'static str,
    /// What the kernel asks of the device beyond the portable part.
    pub claims: Capabilities,
}

/// What a kernel may use. One that claims nothing must run on any adapter. The claims are in its text; where naga 30
/// has no `enable` for a feature (it refuses `enable subgroups;`, and 64-bit integers have none), in its name.
fn claims(kernel: &Kernel) -> Capabilities {
    let enables = |what: &str| {
        kernel.source.lines().map(str::trim).any(|l| l.strip_prefix("enable ").is_some_and(|l| l.contains(what)))
    };
    let named = |what: &str| kernel.name.split(['.', '_']).any(|part| part == what);
    let mut claims = Capabilities::empty();
    claims.set(Capabilities::SHADER_FLOAT16, enables("f16"));
    claims.set(Capabilities::COOPERATIVE_MATRIX, enables("wgpu_cooperative_matrix"));
    claims.set(Capabilities::SUBGROUP, named("subgroup") || kernel.source.contains("@builtin(subgroup"));
    claims.set(Capabilities::SUBGROUP_BARRIER, kernel.source.contains("subgroupBarrier()"));
    claims.set(Capabilities::SHADER_INT64, named("pairs"));
    claims
}

impl Form {
    /// Parses, validates and specialises.
    pub fn new(kernel: &Kernel) -> Result<Self, String> {
        let claims = claims(kernel);
        let module = naga::front::wgsl::parse_str(&kernel.source)
            .map_err(|e| format!("does not parse: {}", e.emit_to_string(&kernel.source)))?;
        let validate = |module: &Module, capabilities: Capabilities| {
            Validator::new(ValidationFlags::all(), capabilities)
                .subgroup_stages(ShaderStages::COMPUTE)
                .subgroup_operations(SubgroupOperationSet::all())
                .validate(module)
                .map_err(Box::new)
        };
        let info = validate(&module, Capabilities::IMMEDIATES | claims)
            .map_err(|e| format!("is not valid with {claims:?}: {}", e.emit_to_string(&kernel.source)))?;
        let constants = kernel.constants.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let (module, info) = pipeline_constants::process_overrides(
            &module,
            &info,
            Some((ShaderStage::Compute, kernel.entry)),
            &constants,
        )
        .map_err(|e| format!("override constants: {e}"))?;
        let index = module
            .entry_points
            .iter()
            .position(|e| e.name == kernel.entry)
            .ok_or_else(|| format!("has no entry point `{}`", kernel.entry))?;
        let form = Self { module: module.into_owned(), info: info.into_owned(), index, entry: kernel.entry, claims };
        // each dialect's writer knows less than the validator; of the portable part all know all
        for (dialect, supported, is_for) in [
            ("SPIR-V", spv::supported_capabilities(), !claims.is_empty()),
            ("MSL", msl::supported_capabilities(), !claims.is_empty() && form.for_metal()),
            ("HLSL", hlsl::supported_capabilities(), !claims.is_empty() && !form.shader_models().is_empty()),
        ] {
            if is_for {
                validate(&form.module, (Capabilities::IMMEDIATES | claims) & supported)
                    .map_err(|e| format!("is not valid for {dialect}: {:?}", e.as_inner()))?;
            }
        }
        Ok(form)
    }

    /// The newest and the oldest version that wgpu asks for, by Vulkan 1.3 and 1.0. Cooperative matrices need the
    /// memory model of 1.2, subgroups 1.1, of which wgpu asks SPIR-V 1.3.
    pub fn spirv_versions(&self) -> &'static [((u8, u8), &'static str)] {
        if self.claims.contains(Capabilities::COOPERATIVE_MATRIX) {
            &[((1, 6), "vulkan1.3"), ((1, 5), "vulkan1.2")]
        } else if self.claims.contains(Capabilities::SUBGROUP) {
            &[((1, 6), "vulkan1.3"), ((1, 3), "vulkan1.1")]
        } else {
            &[((1, 6), "vulkan1.3"), ((1, 0), "vulkan1.0")]
        }
    }

    /// False for kernels with 16×16 cooperative matrices, which Metal has not, and for those that load matrices from
    /// workgroup memory of vectors, which its loads do not take: adapters of other backends get them.
    pub fn for_metal(&self) -> bool {
        let vectors = |variable: &naga::GlobalVariable| {
            let TypeInner::Array { base, .. } = self.module.types[variable.ty].inner else { return false };
            variable.space == AddressSpace::WorkGroup
                && matches!(self.module.types[base].inner, TypeInner::Vector { scalar, .. } if scalar.width == 2)
        };
        let edges = self.edges();
        edges.iter().all(|edge| *edge == 8) && (edges.is_empty() || !self.globals().any(|(_, g)| vectors(g)))
    }

    /// 5.1 is what FXC can do, where Windows has no DXC: neither f16 nor subgroups. Cooperative matrices are in none.
    pub fn shader_models(&self) -> &'static [(hlsl::ShaderModel, &'static str)] {
        let all = &[(hlsl::ShaderModel::V6_2, "6.2"), (hlsl::ShaderModel::V5_1, "5.1")];
        if self.claims.contains(Capabilities::COOPERATIVE_MATRIX) {
            &[]
        } else if self.claims.is_empty() {
            all
        } else {
            &all[..1]
        }
    }

    /// The edges of all cooperative matrices.
    pub fn edges(&self) -> Vec<u32> {
        let mut edges = Vec::new();
        for (_, ty) in self.module.types.iter() {
            if let TypeInner::CooperativeMatrix { columns, rows, .. } = ty.inner {
                edges.extend([columns as u32, rows as u32]);
            }
        }
        for (function, _) in self.functions() {
            for (_, expression) in function.expressions.iter() {
                if let naga::Expression::CooperativeLoad { columns, rows, .. } = expression {
                    edges.extend([*columns as u32, *rows as u32]);
                }
            }
        }
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// All functions, the entry point among them, with what the validator found out about them.
    pub fn functions(&self) -> impl Iterator<Item = (&naga::Function, &naga::valid::FunctionInfo)> {
        let helpers = self.module.functions.iter().map(|(handle, f)| (f, &self.info[handle]));
        helpers.chain([(&self.module.entry_points[self.index].function, self.info.get_entry_point(self.index))])
    }

    /// The global variables that the entry point uses.
    pub fn globals(&self) -> impl Iterator<Item = (Handle<naga::GlobalVariable>, &naga::GlobalVariable)> {
        let uses = self.info.get_entry_point(self.index);
        self.module.global_variables.iter().filter(|(handle, _)| !uses[*handle].is_empty())
    }

    /// Storage buffers in the order of their numbers, and whether the kernel writes to them.
    pub fn buffers(&self) -> Vec<(ResourceBinding, bool)> {
        let mut buffers: Vec<_> = self
            .globals()
            .filter_map(|(_, variable)| match (variable.space, variable.binding) {
                (AddressSpace::Storage { access }, Some(binding)) => {
                    Some((binding, access.contains(StorageAccess::STORE)))
                }
                _ => None,
            })
            .collect();
        buffers.sort_unstable();
        buffers
    }

    fn has_immediates(&self) -> bool {
        self.globals().any(|(_, variable)| variable.space == AddressSpace::Immediate)
    }
}

fn bounds(checks: Checks) -> BoundsCheckPolicies {
    let policy = if checks == Checks::On { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

/// As wgpu-hal 30, metal/device.rs: immediates in buffer 0, then the bindings, then the sizes of the arrays.
pub fn msl(form: &Form, checks: Checks) -> Result<String, String> {
    let on = checks == Checks::On;
    let mut next = 0u8;
    let mut slot = || -> Result<u8, String> {
        let slot = next;
        next = next.checked_add(1).ok_or("more than 255 buffers")?;
        Ok(slot)
    };
    let immediates_buffer = if form.has_immediates() { Some(slot()?) } else { None };
    let mut resources = BTreeMap::new();
    for (binding, mutable) in form.buffers() {
        resources.insert(binding, msl::BindTarget { buffer: Some(slot()?), mutable, ..msl::BindTarget::default() });
    }
    let sizes_buffer = Some(slot()?);
    let resources = msl::EntryPointResources { resources, immediates_buffer, sizes_buffer };
    let options = msl::Options {
        lang_version: (3, 1),
        per_entry_point_map: BTreeMap::from([(form.entry.to_owned(), resources)]),
        fake_missing_bindings: false,
        bounds_check_policies: bounds(checks),
        zero_initialize_workgroup_memory: on,
        force_loop_bounding: on,
        emit_int_div_checks: on,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, form.entry.to_owned())),
        ..msl::PipelineOptions::default()
    };
    let (text, info) = msl::write_string(&form.module, &form.info, &options, &pipeline).map_err(|e| e.to_string())?;
    // the writer's success says nothing about the entry point
    written(info.entry_point_names)?;
    if let Some(line) = text.lines().find(|line| line.contains("fake")) {
        return Err(format!("a binding without a slot: {}", line.trim()));
    }
    Ok(text)
}

/// As wgpu-hal 30, dx12/device.rs: immediates are root constants in register b0 of space 0. Returns the text and the
/// entry point's name in it.
pub fn hlsl(form: &Form, shader_model: hlsl::ShaderModel, checks: Checks) -> Result<(String, String), String> {
    let on = checks == Checks::On;
    let mut registers = [0, 0];
    let mut binding_map = BTreeMap::new();
    for (binding, writes) in form.buffers() {
        let register = &mut registers[usize::from(writes)];
        binding_map.insert(binding, hlsl::BindTarget { register: *register, ..hlsl::BindTarget::default() });
        *register += 1;
    }
    let options = hlsl::Options {
        shader_model,
        binding_map,
        fake_missing_bindings: false,
        special_constants_binding: Some(hlsl::BindTarget { space: 1, register: 1, ..hlsl::BindTarget::default() }),
        immediates_target: form.has_immediates().then(hlsl::BindTarget::default),
        zero_initialize_workgroup_memory: on,
        restrict_indexing: on,
        force_loop_bounding: on,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, form.entry.to_owned())) };
    let mut text = String::new();
    let info = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&form.module, &form.info, None)
        .map_err(|e| e.to_string())?;
    let entry = written(info.entry_point_names)?;
    Ok((text, entry))
}

fn written<E: std::fmt::Display>(names: Vec<Result<String, E>>) -> Result<String, String> {
    match names.into_iter().next() {
        Some(Ok(name)) => Ok(name),
        Some(Err(e)) => Err(format!("entry point: {e}")),
        None => Err("no entry point was written".into()),
    }
}
