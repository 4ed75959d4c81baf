//! Kernels: WGSL text put together, reflected by naga, checked against the adapter's limits, built by the driver.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{LazyLock, Mutex};

use crate::error::{Error, Result};

use super::context::lock;
pub use super::reflection::{Needs, Reflection};
use super::tensor::Elem;

/// A pass of an operator, as counts and benches list it: `layernorm.backward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpPass {
    /// The operator's name: the stem of its files.
    pub operator: &'static str,
    /// Which pass of it.
    pub pass: &'static str,
}

impl OpPass {
    /// Names a pass of an operator.
    #[must_use]
    pub const fn new(operator: &'static str, pass: &'static str) -> Self {
        Self { operator, pass }
    }
}

impl fmt::Display for OpPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.operator, self.pass)
    }
}

/// One compute kernel as text: pure data, made and translated without a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Operator, pass and variant: `residual.forward`.
    pub name: String,
    /// The whole WGSL module.
    pub source: String,
    /// Entry point.
    pub entry: &'static str,
    /// Values of the module's `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Invocations that each subgroup must have, all of them active, where the device can be told so.
    pub subgroup_size: Option<u32>,
}

/// A text that naga has read.
struct Parsed {
    reflection: Reflection,
    /// As long as there are not too many.
    module: Option<naga::Module>,
}

/// All texts that naga has read in this process. Parsing takes most of the time before a first step, since naga 30 passes
/// over all expressions of a function for each new one; a plan the device after it and one that is opened again need not all do it.
static PARSED: LazyLock<Mutex<HashMap<String, Parsed>>> = LazyLock::new(Mutex::default);
/// Modules kept at once: more than a model has kernels. They take megabytes.
const MOST_MODULES: usize = 64;

/// How many elements a kernel moves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// One element.
    Scalar,
    /// Four elements: 16 bytes of f32, 8 of f16. Needs rows whose length 4 divides.
    Vec4,
    /// Eight elements of f16: 16 bytes. Needs rows whose length 8 divides.
    Vec8,
}

impl Width {
    /// The widest that divides all of `lengths`.
    #[must_use]
    pub fn of(lengths: &[usize]) -> Self {
        if lengths.iter().all(|n| n.is_multiple_of(4)) { Self::Vec4 } else { Self::Scalar }
    }

    /// The widest for what is stored as `elem` that divides all of `lengths`: 16 bytes where it can be.
    #[must_use]
    pub fn stored(elem: Elem, lengths: &[usize]) -> Self {
        let eight = elem == Elem::F16 && lengths.iter().all(|n| n.is_multiple_of(8));
        if eight { Self::Vec8 } else { Self::of(lengths) }
    }

    /// Elements moved at once.
    #[must_use]
    pub fn elements(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Vec4 => 4,
            Self::Vec8 => 8,
        }
    }

    /// The end of a kernel's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Scalar => ".scalar",
            Self::Vec4 => "",
            Self::Vec8 => ".wide",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Scalar => include_str!("../../shaders/shared/scalar.wgsl"),
            Self::Vec4 | Self::Vec8 => include_str!("../../shaders/shared/vec4.wgsl"),
        }
    }

    /// The type `S` of what is stored, and how it is made of V.
    fn unit(self, half: bool) -> &'static [&'static str] {
        const SINGLE: &str = include_str!("../../shaders/shared/single.wgsl");
        match (half, self) {
            (false, _) => &["alias S = V;\n", SINGLE],
            (true, Self::Scalar) => &["alias S = f16;\n", SINGLE],
            (true, Self::Vec4) => &["alias S = vec4<f16>;\n", SINGLE],
            (true, Self::Vec8) => &[include_str!("../../shaders/shared/pair.wgsl")],
        }
    }
}

impl Kernel {
    /// Joins the header of `width`, the shared files and the operator's file. WGSL is order-free at module scope, so
    /// joining is all that is needed.
    #[must_use]
    pub fn new(name: &str, entry: &'static str, width: Width, body: &str) -> Self {
        Self::stored(name, entry, width, Elem::F32, body)
    }

    /// The same with the type `S` for what is stored as `elem`, f32 or f16: K neighbouring V, moved at once. `part(s, k)` is
    /// one of them, `whole(first, last)` makes an S; `as_stored(x)` is what is left of a V there and back.
    #[must_use]
    pub fn stored(name: &str, entry: &'static str, width: Width, elem: Elem, body: &str) -> Self {
        let half = elem == Elem::F16;
        let mut source = String::from(if half { "enable f16;\n" } else { "" });
        source.push_str(width.header());
        width.unit(half).iter().for_each(|part| source.push_str(part));
        source.push_str(if half {
            include_str!("../../shaders/shared/half.wgsl")
        } else {
            "fn as_stored(x: V) -> V { return x; }\n"
        });
        let shared = [include_str!("../../shaders/shared/grid.wgsl"), include_str!("../../shaders/shared/reduce.wgsl")];
        for part in shared.iter().chain(&[body]) {
            source.push_str(part);
        }
        let stored = if half { ".f16" } else { "" };
        Self {
            name: format!("{name}{stored}{}", width.suffix()),
            source,
            entry,
            constants: Vec::new(),
            subgroup_size: None,
        }
    }

    /// A kernel whose whole text comes from a generator.
    #[must_use]
    pub fn generated(name: String, entry: &'static str, source: String) -> Self {
        Self { name, source, entry, constants: Vec::new(), subgroup_size: None }
    }

    /// Sets an `override` constant.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: u32) -> Self {
        self.constants.push((name, f64::from(value)));
        self
    }

    /// Puts a `const` before the body: for the lengths of per-invocation arrays, which WGSL wants constant.
    #[must_use]
    pub fn with_const(mut self, name: &str, value: u32) -> Self {
        let _ = writeln!(self.source, "const {name}: u32 = {value}u;");
        let _ = write!(self.name, ".{}{value}", name.to_lowercase());
        self
    }

    /// Requires subgroups of `lanes` invocations.
    #[must_use]
    pub fn with_subgroups_of(mut self, lanes: u32) -> Self {
        self.subgroup_size = Some(lanes);
        self
    }

    /// True if the kernel needs cooperative matrices.
    #[must_use]
    pub fn uses_matrices(&self) -> bool {
        self.source.contains("enable wgpu_cooperative_matrix;")
    }

    /// Key of the pipeline cache.
    pub(super) fn key(&self) -> String {
        let Self { name, entry, constants, subgroup_size, source } = self;
        format!("{name}\u{0}{entry}\u{0}{constants:?}\u{0}{subgroup_size:?}\u{0}{source}")
    }

    /// What naga reads in the text.
    ///
    /// # Errors
    /// [`Error::Gpu`] with naga's message and the offending lines.
    fn parse(&self) -> Result<naga::Module> {
        naga::front::wgsl::parse_str(&self.source)
            .map_err(|e| self.fault(&format!("does not parse: {}", e.emit_to_string(&self.source))))
    }

    /// The parsed text for a driver: the one that [`Kernel::reflect`] has kept, if it still has.
    ///
    /// # Errors
    /// As [`Kernel::reflect`].
    pub(super) fn parsed(&self) -> Result<naga::Module> {
        let kept = lock(&PARSED).get(&self.key()).and_then(|parsed| parsed.module.clone());
        kept.map_or_else(|| self.parse(), Ok)
    }

    /// Validates a parsed text, and fills in the values of its `override` constants.
    ///
    /// # Errors
    /// As [`Kernel::reflect`].
    pub(super) fn specialize(&self, module: &naga::Module) -> Result<(naga::Module, naga::valid::ModuleInfo)> {
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
            .validate(module)
            .map_err(|e| self.fault(&format!("is not valid: {}", e.emit_to_string(&self.source))))?;
        let constants = self.constants.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let (module, info) = naga::back::pipeline_constants::process_overrides(
            module,
            &info,
            Some((naga::ShaderStage::Compute, self.entry)),
            &constants,
        )
        .map_err(|e| self.fault(&format!("override constants: {e}")))?;
        Ok((module.into_owned(), info.into_owned()))
    }

    /// An error that names the kernel.
    pub(super) fn fault(&self, what: &str) -> Error {
        Error::Gpu(format!("kernel {}: {what}", self.name))
    }

    /// Parses and reflects the text; the second time it is remembered.
    ///
    /// # Errors
    /// [`Error::Gpu`] with naga's message and the offending lines.
    pub fn reflect(&self) -> Result<Reflection> {
        let key = self.key();
        if let Some(parsed) = lock(&PARSED).get(&key) {
            return Ok(parsed.reflection.clone());
        }
        let module = self.parse()?;
        let (specialized, info) = self.specialize(&module)?;
        let reflection = Reflection::of(&specialized, &info, self.entry).map_err(|e| self.fault(&e))?;
        let mut all = lock(&PARSED);
        if all.values().filter(|parsed| parsed.module.is_some()).count() >= MOST_MODULES {
            all.values_mut().for_each(|parsed| parsed.module = None);
        }
        all.insert(key, Parsed { reflection: reflection.clone(), module: Some(module) });
        Ok(reflection)
    }
}

/// What the driver has made of a kernel, and the layout of its bindings.
pub(super) type Built = (wgpu::ComputePipeline, wgpu::BindGroupLayout);

/// A kernel that the driver has built.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) id: u64,
    pub(super) reflection: Reflection,
    pub(super) raw: Option<Built>,
}
