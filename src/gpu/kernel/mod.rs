//! Kernels. WGSL text follows from a kernel's identity; naga reflects it, it is checked against the adapter's limits,
//! and the driver builds it.

mod cache;
mod id;

use crate::error::{Error, Fault, Result};

use super::layout::{self, Shared};
pub use super::reflection::{Needs, Reflection};
use super::tensor::Elem;
use super::wgsl_text::without_directive;
pub(super) use cache::{Built, KernelBody, Kernels, Pipeline};
pub use id::{Arithmetic, Generator, KernelId, OpPass, Piece, Purpose, Shader, Spec};

/// A compute kernel as text. It is plain data, made and translated without a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Operator, pass and variant: `residual.forward`.
    pub name: String,
    /// The whole WGSL module.
    pub source: String,
    /// Name of the entry point.
    pub entry: &'static str,
    /// Values of the module's `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Required subgroup size, with all invocations active. It is ignored on devices that cannot require one.
    pub subgroup_size: Option<u32>,
    /// Dimensions of its cooperative matrices, if those in the text are only placeholders.
    pub dimensions: Option<Dimensions>,
}

/// Dimensions of cooperative matrices that WGSL cannot declare: `a` (M, K), `b` (K, N) and sums (M, N).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dimensions {
    /// Rows of `a` and of sums.
    pub m: u32,
    /// Columns of `b` and of sums.
    pub n: u32,
    /// Columns of `a`, rows of `b`.
    pub k: u32,
    /// Whether a workgroup holds a matrix; otherwise a subgroup does.
    pub workgroup: bool,
}

/// Number of elements that a kernel moves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// One element.
    Scalar,
    /// Four elements: 16 bytes of f32, 8 bytes of f16. Row lengths must be multiples of 4.
    Vec4,
    /// Eight elements of f16: 16 bytes. Row lengths must be multiples of 8.
    Vec8,
}

impl Width {
    /// Returns the widest of `Scalar` and `Vec4` that divides all of `lengths`.
    #[must_use]
    pub fn of(lengths: &[usize]) -> Self {
        if lengths.iter().all(|n| n.is_multiple_of(4)) { Self::Vec4 } else { Self::Scalar }
    }

    /// Returns the widest for elements stored as `elem` that divides all of `lengths`: 16 bytes if possible.
    #[must_use]
    pub fn stored(elem: Elem, lengths: &[usize]) -> Self {
        let eight = elem == Elem::F16 && lengths.iter().all(|n| n.is_multiple_of(8));
        if eight { Self::Vec8 } else { Self::of(lengths) }
    }

    /// Returns the number of elements moved at once.
    #[must_use]
    pub fn elements(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Vec4 => 4,
            Self::Vec8 => 8,
        }
    }

    /// Returns the end of a kernel's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Scalar => ".scalar",
            Self::Vec4 => "",
            Self::Vec8 => ".wide",
        }
    }

    /// Returns the header of a kernel that moves this many elements of `elem` at once, followed by the shared
    /// functions.
    ///
    /// The header's type `Stored` is f32 or f16 in memory: `VECS_PER_STORED` neighbouring `Vec`, moved at once.
    /// `unpack(stored, k)` returns one of these `Vec`, `pack(first, last)` makes a `Stored`, and `as_stored(x)` rounds
    /// a `Vec` as storing and loading it does. WGSL ignores the order of declarations at module scope, so the parts are
    /// simply joined.
    fn prologue(self, elem: Elem) -> String {
        let half = elem == Elem::F16;
        let mut parts = vec![if half { "enable f16;\n" } else { "" }, self.header()];
        parts.extend(self.unit(half));
        parts.push(if half {
            include_str!("../../../shaders/shared/widths/half.wgsl")
        } else {
            "fn as_stored(x: Vec) -> Vec { return x; }\n"
        });
        parts.push(include_str!("../../../shaders/shared/grid.wgsl"));
        parts.push(include_str!("../../../shaders/shared/reduce.wgsl"));
        parts.into_iter().map(without_directive).collect()
    }

    fn header(self) -> &'static str {
        match self {
            Self::Scalar => include_str!("../../../shaders/shared/widths/scalar.wgsl"),
            Self::Vec4 | Self::Vec8 => include_str!("../../../shaders/shared/widths/vec4.wgsl"),
        }
    }

    /// Returns the declaration of the type `Stored` and its conversions from and to `Vec`.
    fn unit(self, half: bool) -> &'static [&'static str] {
        const SINGLE: &str = include_str!("../../../shaders/shared/widths/single.wgsl");
        match (half, self) {
            (false, _) => &["alias Stored = Vec;\n", SINGLE],
            (true, Self::Scalar) => &["alias Stored = f16;\n", SINGLE],
            (true, Self::Vec4) => &["alias Stored = vec4<f16>;\n", SINGLE],
            (true, Self::Vec8) => &[
                include_str!("../../../shaders/shared/widths/half8.wgsl"),
                include_str!("../../../shaders/shared/widths/pair.wgsl"),
            ],
        }
    }
}

impl Kernel {
    /// Makes a kernel with the given text, outside any operator, for probes of the layers below.
    #[must_use]
    pub fn probe(name: &str, entry: &'static str, source: String) -> Self {
        Self { name: name.into(), source, entry, constants: Vec::new(), subgroup_size: None, dimensions: None }
    }

    /// Returns whether the kernel needs cooperative matrices.
    #[must_use]
    pub fn uses_matrices(&self) -> bool {
        self.source.contains("enable wgpu_cooperative_matrix;")
    }

    /// Parses the text.
    ///
    /// # Errors
    /// [`Error::Gpu`] with naga's message and the offending lines.
    pub(super) fn parse(&self) -> Result<naga::Module> {
        naga::front::wgsl::parse_str(&self.source)
            .map_err(|e| self.fault(&format!("does not parse: {}", e.emit_to_string(&self.source))))
    }

    /// Validates a parsed text and fills in the values of its `override` constants.
    ///
    /// # Errors
    /// Those of [`Kernel::reflect`].
    pub(super) fn specialize(&self, module: &naga::Module) -> Result<(naga::Module, naga::valid::ModuleInfo)> {
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
            .validate(module)
            .map_err(|e| self.fault(&format!("is not valid: {}", e.emit_to_string(&self.source))))?;
        let declared = |name: &str| module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(name));
        if let Some((name, _)) = self.constants.iter().find(|(name, _)| !declared(name)) {
            return Err(self.fault(&format!("sets `{name}`, which its text does not declare as an override constant")));
        }
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

    /// Checks that the struct `name` of the text has the same members as `T`. Returns false if the text has no struct
    /// of that name.
    ///
    /// # Errors
    /// [`Error::Gpu`] naming the first different member; those of [`Kernel::reflect`].
    pub fn check_struct<T: Shared>(&self, name: &str) -> Result<bool> {
        let module = self.parse()?;
        let Some((ty, _)) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)) else {
            return Ok(false);
        };
        let compared = layout::compare(T::MEMBERS, &layout::members(&module, ty));
        compared.map(|()| true).map_err(|what| self.fault(&format!("struct {name}: {what}")))
    }

    /// Returns an error that names the kernel.
    pub(super) fn fault(&self, what: &str) -> Error {
        Error::gpu(Fault::at(format!("kernel {}", self.name), what))
    }

    /// Parses and reflects the text.
    ///
    /// # Errors
    /// [`Error::Gpu`] with naga's message and the offending lines.
    pub fn reflect(&self) -> Result<Reflection> {
        self.read().map(|(reflection, _)| reflection)
    }

    /// Parses and reflects the text. Also returns the module as parsed, without values of `override` constants.
    ///
    /// # Errors
    /// Those of [`Kernel::reflect`].
    pub(super) fn read(&self) -> Result<(Reflection, naga::Module)> {
        let module = self.parse()?;
        let (specialized, info) = self.specialize(&module)?;
        let reflection = Reflection::of(&specialized, &info, self.entry).map_err(|e| self.fault(&e))?;
        Ok((reflection, module))
    }
}
