//! Layout of the structs that Rust and WGSL share: immediates, the step's state and its numbers. Rust declares them
//! with [`shared_struct!`](crate::shared_struct). naga's reflection of a kernel is compared with that declaration
//! member by member, so that a member that is moved, renamed or retyped on one side is an error that names it.

use crate::error::{Error, Fault, Result};

/// The scalar of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// `u32`.
    U32,
    /// `f32`.
    F32,
    /// Anything else. No shared struct has such members.
    Other,
}

/// A member of a struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<Name = &'static str> {
    /// Its name.
    pub name: Name,
    /// Offset of its first byte.
    pub offset: u32,
    /// Its scalar type, or that of its elements.
    pub scalar: Scalar,
    /// Number of elements of an array; 1 for a scalar.
    pub count: u32,
}

/// A struct that lists its members: see [`shared_struct!`](crate::shared_struct).
pub trait Shared: bytemuck::Pod {
    /// The members, in order.
    const MEMBERS: &'static [Member];
}

/// A type that a member may have.
pub trait MemberType {
    /// Its scalar type.
    const SCALAR: Scalar;
    /// Number of elements of an array; 1 for a scalar.
    const COUNT: u32;
}

impl MemberType for u32 {
    const SCALAR: Scalar = Scalar::U32;
    const COUNT: u32 = 1;
}

impl MemberType for f32 {
    const SCALAR: Scalar = Scalar::F32;
    const COUNT: u32 = 1;
}

impl<T: MemberType, const N: usize> MemberType for [T; N] {
    const SCALAR: Scalar = T::SCALAR;
    const COUNT: u32 = N as u32;
}

/// Defines a struct of `u32`, `f32` and arrays of them with the layout that WGSL gives it, and lists its members.
#[macro_export]
macro_rules! shared_struct {
    ($(#[$of:meta])* $seen:vis struct $name:ident { $($(#[$about:meta])* $member_seen:vis $member:ident: $kind:ty,)+ }) => {
        $(#[$of])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        $seen struct $name {
            $($(#[$about])* $member_seen $member: $kind,)+
        }

        impl $crate::gpu::layout::Shared for $name {
            const MEMBERS: &'static [$crate::gpu::layout::Member] = &[$($crate::gpu::layout::Member {
                name: stringify!($member),
                offset: std::mem::offset_of!($name, $member) as u32,
                scalar: <$kind as $crate::gpu::layout::MemberType>::SCALAR,
                count: <$kind as $crate::gpu::layout::MemberType>::COUNT,
            }),+];
        }
    };
}

/// The parameters of a dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Immediates<'a> {
    pub(super) bytes: &'a [u8],
    /// The members that the kernel's struct must have; `None` if they are not checked.
    members: Option<&'static [Member]>,
}

impl<'a> Immediates<'a> {
    /// The immediates of a kernel without parameters.
    pub const NONE: Self = Self { bytes: &[], members: None };

    /// Takes a struct, whose members the kernel's struct must equal.
    pub fn of<T: Shared>(params: &'a T) -> Self {
        Self { bytes: bytemuck::bytes_of(params), members: Some(T::MEMBERS) }
    }

    /// Takes bytes whose members are not checked, for kernels in tests.
    #[must_use]
    pub fn unchecked(bytes: &'a [u8]) -> Self {
        Self { bytes, members: None }
    }

    /// Checks the number of bytes and the members against those that a kernel reads.
    pub(super) fn check(&self, kernel: &str, found: &[Member<String>], bytes: u32) -> Result<()> {
        if bytes as usize != self.bytes.len() {
            let given = self.bytes.len();
            return Err(Error::gpu(Fault::at(kernel, format!("{given} bytes of immediates")).expected(bytes)));
        }
        match self.members {
            Some(members) if bytes > 0 => {
                compare(members, found).map_err(|what| Error::gpu(Fault::at(kernel, format!("immediates: {what}"))))
            }
            _ => Ok(()),
        }
    }
}

/// Compares the members of a struct in Rust with those in WGSL.
///
/// # Errors
/// A message that names the first member that differs.
pub fn compare(rust: &[Member], wgsl: &[Member<String>]) -> std::result::Result<(), String> {
    let text = |name: &str, offset: u32, scalar: Scalar, count: u32| {
        let of = if count == 1 { String::new() } else { format!(" x {count}") };
        format!("`{name}` of {scalar:?}{of} at byte {offset}")
    };
    for at in 0..rust.len().max(wgsl.len()) {
        let ours = rust.get(at).map(|m| text(m.name, m.offset, m.scalar, m.count));
        let theirs = wgsl.get(at).map(|m| text(&m.name, m.offset, m.scalar, m.count));
        if ours != theirs {
            let [ours, theirs] = [ours, theirs].map(|member| member.unwrap_or_else(|| "no member".into()));
            return Err(format!("member {at} is {ours} in Rust, {theirs} in WGSL"));
        }
    }
    Ok(())
}

/// Lists the members of a struct type of a module.
pub(super) fn members(module: &naga::Module, ty: naga::Handle<naga::Type>) -> Vec<Member<String>> {
    use naga::{ScalarKind, TypeInner};
    let naga::TypeInner::Struct { members, .. } = &module.types[ty].inner else { return Vec::new() };
    let scalar = |scalar: naga::Scalar| match (scalar.kind, scalar.width) {
        (ScalarKind::Uint, 4) => Scalar::U32,
        (ScalarKind::Float, 4) => Scalar::F32,
        _ => Scalar::Other,
    };
    let of = |ty: naga::Handle<naga::Type>| match &module.types[ty].inner {
        TypeInner::Scalar(of) => (scalar(*of), 1),
        TypeInner::Array { base, size: naga::ArraySize::Constant(n), .. } => match &module.types[*base].inner {
            TypeInner::Scalar(of) => (scalar(*of), n.get()),
            _ => (Scalar::Other, n.get()),
        },
        _ => (Scalar::Other, 1),
    };
    let member = |member: &naga::StructMember| {
        let (scalar, count) = of(member.ty);
        Member { name: member.name.clone().unwrap_or_default(), offset: member.offset, scalar, count }
    };
    members.iter().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Kernel;

    crate::shared_struct! {
        /// Parameters of the tests' kernels.
        struct Params {
            count: u32,
            scale: f32,
            values: [f32; 3],
        }
    }

    const RIGHT: &str = "struct Params { count: u32, scale: f32, values: array<f32, 3> }";

    fn found(of: &str) -> std::result::Result<(), String> {
        let text = format!(
            "{of}\n@group(0) @binding(0) var<storage, read_write> x: Params;\n@compute @workgroup_size(1) fn main() {{ x.count = 1u; }}"
        );
        Kernel::probe("probe", "main", text)
            .check_struct::<Params>("Params")
            .map(|found| assert!(found))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn members_that_differ_are_named() {
        found(RIGHT).expect("equal");
        for (from, to, what) in [
            ("scale: f32", "factor: f32", "member 1 is `scale` of F32 at byte 4 in Rust, `factor` of F32"),
            ("scale: f32", "scale: u32", "`scale` of U32 at byte 4 in WGSL"),
            ("count: u32, scale: f32", "scale: f32, count: u32", "member 0 is `count` of U32"),
            ("count: u32,", "@size(16) count: u32,", "`scale` of F32 at byte 16 in WGSL"),
            ("f32, 3", "f32, 4", "member 2 is `values` of F32 x 3 at byte 8 in Rust, `values` of F32 x 4"),
            (", values: array<f32, 3>", "", "`values` of F32 x 3 at byte 8 in Rust, no member in WGSL"),
        ] {
            let report = found(&RIGHT.replace(from, to)).expect_err("different");
            assert!(report.contains(what), "{report}");
        }
    }

    #[test]
    fn immediates_are_compared_with_the_kernels() {
        let text = "struct P { count: u32, scale: f32 } var<immediate> p: P;
            @group(0) @binding(0) var<storage, read_write> out: array<f32>;
            @compute @workgroup_size(1) fn main() { out[p.count] = p.scale; }";
        let reflection = Kernel::probe("probe", "main", text.into()).reflect().expect("reflects");
        let check =
            |immediates: &Immediates| immediates.check("probe", &reflection.immediates, reflection.immediate_bytes);
        let params = Params { count: 1, scale: 1.0, values: [0.0; 3] };
        let error = check(&Immediates::of(&params)).expect_err("too long").to_string();
        assert!(error.contains("probe: 20 bytes of immediates, expected 8"), "{error}");
        check(&Immediates::unchecked(&[0; 8])).expect("as many bytes");
        crate::shared_struct! {
            struct Swapped {
                scale: f32,
                count: u32,
            }
        }
        let error = check(&Immediates::of(&Swapped { scale: 1.0, count: 1 })).expect_err("swapped").to_string();
        assert!(error.contains("immediates: member 0 is `scale` of F32 at byte 0 in Rust, `count` of U32"), "{error}");
    }
}
