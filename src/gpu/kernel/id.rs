//! A kernel's identity: the operator's pass that it serves, its entry, and everything else that its text depends on.
//! The printed name and the WGSL text follow from the identity. Making, comparing and looking up identities generates
//! no text.

use std::any::Any;
use std::fmt::{self, Debug, Write as _};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Dimensions, Kernel, Width};
use crate::gpu::tensor::Elem;
use crate::gpu::wgsl_text::without_directive;

/// A pass of an operator, under which counts and benches list it: `gelu.backward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpPass {
    /// The operator's name: the stem of its files.
    pub operator: &'static str,
    /// Name of the pass.
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

/// The kind of work that a command does. Predictions and tuning treat each kind differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A product of matrices. A tiled one fetches the next tile while it multiplies the current one.
    Product,
    /// Products of matrices fused with the work between them, and the sums that such kernels need.
    FusedProducts,
    /// A sum of the partial sums that a product has left.
    PartialSums,
    /// Everything else: each element is moved once.
    Elements,
    /// A clear or a copy, which needs no kernel.
    Transfer,
}

/// The arithmetic that limits a kernel. It selects the roof that the kernel is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Multiply-adds in f32.
    F32,
    /// Arithmetic on numbers stored as f16.
    F16,
    /// Matrix units: products in f16 with sums in f32.
    Matrix,
}

impl Arithmetic {
    /// Returns the arithmetic of a kernel without matrix units whose elements are stored as `elem`.
    #[must_use]
    pub fn of(elem: Elem) -> Self {
        if elem == Elem::F16 { Self::F16 } else { Self::F32 }
    }

    /// Returns the type of the operands: `f16` or `f32`.
    #[must_use]
    pub fn elem(self) -> Elem {
        if self == Self::F32 { Elem::F32 } else { Elem::F16 }
    }
}

/// One kernel of an operator. Equal identities have equal texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelId {
    /// The operator's pass that it serves.
    pub operator: OpPass,
    /// Name of the kernel within that pass, usually the entry point of its file.
    pub entry: &'static str,
    /// The kind of work.
    pub purpose: Purpose,
    /// Everything else that its text depends on.
    pub spec: Spec,
}

/// The source of a kernel's text, with all its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Spec {
    /// A shader file after the header of its width and element type.
    Shader(Shader),
    /// A generator.
    Generated(Generated),
}

/// A kernel of a shader file: `header + shared files + file`, with numbers filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shader {
    /// The file's stem: the first part of the printed name.
    pub file: &'static str,
    /// The second part of the printed name.
    pub label: &'static str,
    /// The part of the printed name after the label.
    pub variant: &'static str,
    /// Elements moved at once.
    pub width: Width,
    /// Type in which the elements are stored: f32 or f16.
    pub elem: Elem,
    /// The texts and constants after the header, in order.
    pub body: Vec<Piece>,
    /// Values of `override` constants.
    pub overrides: Vec<(&'static str, u32)>,
    /// Required subgroup size, if the text depends on it.
    pub subgroup_size: Option<u32>,
}

/// A piece of a shader's body.
#[derive(Debug, Clone, Copy)]
pub enum Piece {
    /// WGSL.
    Text(&'static str),
    /// `const NAME: u32 = VALUE;`, for lengths of arrays, which must be constant in WGSL. Part of the printed name if
    /// `named`.
    Const {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: u32,
        /// Whether the printed name ends in it.
        named: bool,
    },
}

impl PartialEq for Piece {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // nearly always the same file, so the same address
            (Self::Text(a), Self::Text(b)) => std::ptr::eq(*a, *b) || a == b,
            (Self::Const { name, value, named }, Self::Const { name: n, value: v, named: is_named }) => {
                name == n && value == v && named == is_named
            }
            _ => false,
        }
    }
}

impl Eq for Piece {}

impl Hash for Piece {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            // names and numbers nearly always distinguish kernels: the bytes of a file are not worth hashing
            Self::Text(text) => text.len().hash(state),
            Self::Const { name, value, .. } => (name, value).hash(state),
        }
    }
}

impl Shader {
    fn family(&self) -> String {
        format!("{}.{}", self.file, self.label)
    }

    fn name(&self) -> String {
        let stored = if self.elem == Elem::F16 { ".f16" } else { "" };
        let mut name = format!("{}{}{stored}{}", self.family(), self.variant, self.width.suffix());
        for piece in &self.body {
            if let Piece::Const { name: of, value, named: true } = piece {
                let _ = write!(name, ".{}{value}", of.to_lowercase());
            }
        }
        name
    }

    fn text(&self) -> String {
        let mut text = self.width.prologue(self.elem);
        for piece in &self.body {
            match piece {
                Piece::Text(part) => text.push_str(without_directive(part)),
                Piece::Const { name, value, .. } => _ = writeln!(text, "const {name}: u32 = {value}u;"),
            }
        }
        text
    }
}

/// A generator of a kernel's text. An operator implements it for its own type, which holds everything that the text
/// depends on.
pub trait Generator: Identity + Debug + Send + Sync {
    /// Returns the common part of the printed names of all kernels of this kind: `matmul_coop.forward`.
    fn family(&self) -> String;

    /// Returns the printed name: the family's, a dot, and everything that distinguishes this kernel.
    fn name(&self) -> String;

    /// Returns the whole WGSL module.
    fn text(&self) -> String;

    /// Returns the entry point in the text.
    fn entry_point(&self) -> &'static str {
        "main"
    }

    /// Returns the values of `override` constants.
    fn overrides(&self) -> Vec<(&'static str, u32)> {
        Vec::new()
    }

    /// Returns the required subgroup size, if the text depends on it.
    fn subgroup_size(&self) -> Option<u32> {
        None
    }

    /// Returns the dimensions of its cooperative matrices, if those in the text are only placeholders.
    fn dimensions(&self) -> Option<Dimensions> {
        None
    }

    /// Returns the arithmetic that limits it.
    fn arithmetic(&self) -> Arithmetic;
}

/// Compares and hashes a [`Generator`] behind a pointer. Every type with `Eq` and `Hash` implements it.
pub trait Identity: Any {
    /// Returns the value as `Any`, for a downcast.
    fn as_any(&self) -> &dyn Any;
    /// Returns whether `other` has the same type and value.
    fn is_same(&self, other: &dyn Any) -> bool;
    /// Feeds the value to a hasher.
    fn feed(&self, state: &mut dyn Hasher);
}

impl<T: Any + Eq + Hash> Identity for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_same(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<T>() == Some(self)
    }

    fn feed(&self, mut state: &mut dyn Hasher) {
        self.type_id().hash(&mut state);
        self.hash(&mut state);
    }
}

/// A [`Generator`] of any type.
#[derive(Debug, Clone)]
pub struct Generated(Arc<dyn Generator>);

impl PartialEq for Generated {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_same(other.0.as_any())
    }
}

impl Eq for Generated {}

impl Hash for Generated {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.feed(state);
    }
}

/// A given text, which is its own identity.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Probe {
    name: String,
    entry: &'static str,
    source: String,
}

impl Generator for Probe {
    fn family(&self) -> String {
        self.name.clone()
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn text(&self) -> String {
        self.source.clone()
    }

    fn entry_point(&self) -> &'static str {
        self.entry
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::F32
    }
}

impl KernelId {
    /// Identifies a kernel of a shader file with f32 elements. It is printed as `operator.entry`: the file has the
    /// operator's name.
    #[must_use]
    pub fn shader(operator: OpPass, entry: &'static str, width: Width, body: &[&'static str]) -> Self {
        let body = body.iter().copied().map(Piece::Text).collect();
        let (file, label) = (operator.operator, entry);
        let (variant, elem, overrides, subgroup_size) = ("", Elem::F32, Vec::new(), None);
        let shader = Shader { file, label, variant, width, elem, body, overrides, subgroup_size };
        Self { operator, entry, purpose: Purpose::Elements, spec: Spec::Shader(shader) }
    }

    /// Identifies a kernel whose text comes from a generator.
    #[must_use]
    pub fn generated(operator: OpPass, entry: &'static str, purpose: Purpose, spec: impl Generator) -> Self {
        Self { operator, entry, purpose, spec: Spec::Generated(Generated(Arc::new(spec))) }
    }

    fn with(mut self, change: impl FnOnce(&mut Shader)) -> Self {
        if let Spec::Shader(shader) = &mut self.spec {
            change(shader);
        }
        self
    }

    /// Stores elements as `elem`, f32 or f16.
    #[must_use]
    pub fn stored(self, elem: Elem) -> Self {
        self.with(|shader| shader.elem = elem)
    }

    /// Sets the file's name and, in place of the entry, the second part of the printed name.
    #[must_use]
    pub fn printed(self, file: &'static str, label: &'static str) -> Self {
        self.with(|shader| (shader.file, shader.label) = (file, label))
    }

    /// Sets the name of the variant in the printed name.
    #[must_use]
    pub fn variant(self, variant: &'static str) -> Self {
        self.with(|shader| shader.variant = variant)
    }

    /// Sets the kind of work.
    #[must_use]
    pub fn serving(self, purpose: Purpose) -> Self {
        Self { purpose, ..self }
    }

    /// Identifies a kernel with the given text, outside any operator, for tests and probes.
    #[must_use]
    pub fn probe(name: &str, entry: &'static str, source: String) -> Self {
        let probe = Probe { name: name.into(), entry, source };
        Self::generated(OpPass::new("probe", "probe"), entry, Purpose::Elements, probe)
    }

    /// Sets an `override` constant.
    #[must_use]
    pub fn set(self, name: &'static str, value: u32) -> Self {
        self.with(|shader| shader.overrides.push((name, value)))
    }

    /// Requires subgroups of `lanes` invocations, on devices that can.
    #[must_use]
    pub fn in_subgroups_of(self, lanes: u32) -> Self {
        self.with(|shader| shader.subgroup_size = Some(lanes))
    }

    /// Appends a `const` and adds its value to the end of the printed name.
    #[must_use]
    pub fn with_const(self, name: &'static str, value: u32) -> Self {
        self.with(|shader| shader.body.push(Piece::Const { name, value, named: true }))
    }

    /// Appends a `const` that the printed name leaves out.
    #[must_use]
    pub fn with_hidden_const(self, name: &'static str, value: u32) -> Self {
        self.with(|shader| shader.body.push(Piece::Const { name, value, named: false }))
    }

    /// Appends WGSL.
    #[must_use]
    pub fn with_text(self, text: &'static str) -> Self {
        self.with(|shader| shader.body.push(Piece::Text(text)))
    }

    /// Returns the common part of the printed names of all kernels of its kind: file and pass.
    #[must_use]
    pub fn family(&self) -> String {
        match &self.spec {
            Spec::Shader(shader) => shader.family(),
            Spec::Generated(generated) => generated.0.family(),
        }
    }

    /// Returns the printed name: file, pass and variant.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.spec {
            Spec::Shader(shader) => shader.name(),
            Spec::Generated(generated) => generated.0.name(),
        }
    }

    /// Returns the arithmetic that limits it.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        match &self.spec {
            Spec::Shader(shader) => Arithmetic::of(shader.elem),
            Spec::Generated(generated) => generated.0.arithmetic(),
        }
    }

    /// Returns the generator, if it has this type.
    #[must_use]
    pub fn generator<T: Any>(&self) -> Option<&T> {
        match &self.spec {
            Spec::Shader(_) => None,
            Spec::Generated(generated) => generated.0.as_any().downcast_ref(),
        }
    }

    /// Generates the kernel's text. Caches call this once for each identity.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        let (source, entry, overrides, subgroup_size, dimensions) = match &self.spec {
            Spec::Shader(shader) => (shader.text(), self.entry, shader.overrides.clone(), shader.subgroup_size, None),
            Spec::Generated(Generated(of)) => {
                (of.text(), of.entry_point(), of.overrides(), of.subgroup_size(), of.dimensions())
            }
        };
        let constants = overrides.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
        Kernel { name: self.name(), source, entry, constants, subgroup_size, dimensions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORWARD: OpPass = OpPass::new("probe", "forward");

    fn hash(id: &KernelId) -> u64 {
        let mut state = std::hash::DefaultHasher::new();
        id.hash(&mut state);
        state.finish()
    }

    /// Types with different `N` print the same names.
    #[derive(Debug, PartialEq, Eq, Hash)]
    struct Fill<const N: usize>(u32);

    impl<const N: usize> Generator for Fill<N> {
        fn family(&self) -> String {
            "fill".into()
        }
        fn name(&self) -> String {
            format!("fill.{}", self.0)
        }
        fn text(&self) -> String {
            String::new()
        }
        fn arithmetic(&self) -> Arithmetic {
            Arithmetic::F32
        }
    }

    /// Every parameter that changes the text or the values of its constants changes the identity.
    #[test]
    fn identities_differ_in_every_parameter() {
        let plain = || KernelId::shader(FORWARD, "forward", Width::Vec4, &["a"]);
        let generated = |of: u32| KernelId::generated(FORWARD, "forward", Purpose::Elements, Fill::<0>(of));
        let all = [
            plain(),
            KernelId::shader(FORWARD, "backward", Width::Vec4, &["a"]),
            KernelId::shader(OpPass::new("probe", "backward"), "forward", Width::Vec4, &["a"]),
            KernelId::shader(FORWARD, "forward", Width::Scalar, &["a"]),
            KernelId::shader(FORWARD, "forward", Width::Vec4, &["b"]),
            KernelId::shader(FORWARD, "forward", Width::Vec4, &["a", "b"]),
            plain().stored(Elem::F16),
            plain().in_subgroups_of(32),
            plain().printed("probe", "first"),
            plain().variant(".first"),
            plain().serving(Purpose::Product),
            plain().set("WG", 64),
            plain().set("WG", 32),
            plain().with_const("TEAM", 4),
            plain().with_const("TEAM", 8),
            plain().with_hidden_const("TEAM", 8),
            generated(1),
            generated(2),
            KernelId::generated(FORWARD, "forward", Purpose::Elements, Fill::<1>(1)),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a == b, i == j, "{a:?} and {b:?}");
            }
        }
        assert_eq!(plain().with_text("b"), all[5]);
    }

    #[test]
    fn equal_identities_hash_alike() {
        let make = || KernelId::shader(FORWARD, "forward", Width::Vec4, &["a"]).with_const("TEAM", 4).set("WG", 64);
        assert_eq!(hash(&make()), hash(&make()));
        let fill = || KernelId::generated(FORWARD, "fill", Purpose::Elements, Fill::<0>(3));
        assert_eq!((fill(), hash(&fill())), (fill(), hash(&fill())));
        assert_eq!(fill().generator::<Fill<0>>(), Some(&Fill(3)));
        assert!(fill().generator::<Fill<1>>().is_none() && make().generator::<Fill<0>>().is_none());
    }

    #[test]
    fn names_follow_from_parameters() {
        let id = KernelId::shader(FORWARD, "backward", Width::Vec8, &["a"]).stored(Elem::F16);
        let id = id.with_const("TEAM", 32).with_hidden_const("PARTS", 16);
        assert_eq!(id.name(), "probe.backward.f16.wide.team32");
        assert_eq!(id.printed("probe_tiled", "first").name(), "probe_tiled.first.f16.wide.team32");
    }
}
