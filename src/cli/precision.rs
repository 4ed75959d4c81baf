//! `--precision`, which several commands take.

use wgpt::error::{Error, Fault, Result};
use wgpt::gpu::{self, Caps, Elem};
use wgpt::ops::matmul;
pub use wgpt::train::settings::Precision;

/// Returns the element type of a precision on the adapter of a run.
pub fn resolve(precision: Precision, device: Option<&str>) -> Result<Elem> {
    match precision {
        Precision::F32 => Ok(Elem::F32),
        Precision::F16 => Ok(Elem::F16),
        Precision::Auto => Ok(on(precision, &gpu::adapter::find(device)?)),
    }
}

/// Returns the element type on a known adapter: `auto` is f16 on a GPU with matrix units that the kernels can use.
pub fn on(precision: Precision, caps: &Caps) -> Elem {
    let offered = caps.f16 && !caps.software && matmul::choose::without_matrices(caps).is_none();
    if precision == Precision::F16 || precision == Precision::Auto && offered { Elem::F16 } else { Elem::F32 }
}

/// Returns whether a run may be in f32. It then computes with the widest vectors of a software adapter, which has the
/// cooperative matrices of f16 at its default width only.
pub fn may_be_f32(precision: Precision) -> bool {
    precision != Precision::F16
}

/// Checks that an open adapter stores this element type.
pub fn check(elem: Elem, caps: &Caps) -> Result<()> {
    if elem == Elem::F16 && !caps.f16 {
        let fault = Fault::at("--precision", format!("{} has no f16", caps.name)).expected("an adapter that has");
        return Err(Error::device(fault.advice("try --precision f32")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpt::gpu::Vendor;

    #[test]
    fn auto_is_f16_where_matrix_units_can_be_used_even_if_products_do_without() {
        let caps = Caps {
            f16: true,
            subgroups: true,
            subgroup_sizes: (16, 16),
            matrix_edges: vec![16],
            max_workgroup_bytes: 48 << 10,
            max_invocations: 1024,
            ..Caps::webgpu_defaults()
        };
        let alchemist =
            Caps { vendor: Vendor::Intel, name: "Intel(R) Arc(tm) A770 Graphics (DG2)".into(), ..caps.clone() };
        assert!(matmul::choose::is_faster_without_matrices(&alchemist));
        for (caps, expected) in [
            (&caps, Elem::F16),
            (&alchemist, Elem::F16),
            (&Caps { software: true, ..caps.clone() }, Elem::F32),
            (&Caps { matrix_edges: Vec::new(), ..caps.clone() }, Elem::F32),
        ] {
            assert_eq!(on(Precision::Auto, caps), expected, "{caps:?}");
        }
    }
}
