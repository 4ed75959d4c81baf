use wgpt::cases::roof::matrix_fed;
use wgpt::ops::roof;

use super::harness::{matrix_device, verify};

#[test]
fn a_fed_product_of_other_tiles_is_found() {
    let Some(device) = matrix_device() else { return };
    let caps = device.caps.clone();
    // scalars in workgroup memory and more subgroups than places, as on Metal
    let device = device.with("tiles for Metal", |caps| caps.backend = "Metal".into());
    for edge in caps.matrix_edges.iter().copied().filter(|edge| roof::without_fed(&caps, *edge).is_none()) {
        let fed = |strides| verify(&device, &matrix_fed(&device.caps, edge, 1, strides));
        fed([3, 1]).unwrap_or_else(|report| panic!("{report}"));
        let report = fed([1, 2]).expect_err("three times the first tile, not the second as well");
        assert!(report.contains("out") && report.contains("roof.matrix_fed"), "{report}");
    }
}
