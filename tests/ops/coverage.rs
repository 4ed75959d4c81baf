//! That no kernel is without a test.

use std::collections::BTreeSet;

use crate::harness::list_kernels;

#[test]
fn every_kernel_is_run_against_its_reference() {
    let run = list_kernels(|| {
        crate::adamw::forward();
        crate::attention::small_heads();
        crate::attention::large_heads();
        crate::attention::real_sizes();
        crate::attention::steps();
        crate::attention::heads_of_half();
        crate::attention::on_matrices();
        crate::attention::large_heads_on_matrices();
        crate::attention::matrices_in_all_sizes_of_workgroup_memory();
        crate::bias::backward();
        crate::cast::forward();
        crate::cast::widen();
        crate::compare::forward();
        crate::compare::near();
        crate::crossentropy::forward_and_backward();
        crate::embedding::forward_and_backward();
        crate::embedding::positions_from_a_start();
        crate::gelu::forward_and_backward();
        crate::gradnorm::forward();
        crate::layernorm::forward_and_backward();
        crate::matmul::forward();
        crate::matmul::backward_inp();
        crate::matmul::backward_weight();
        crate::matmul::large_tiles();
        crate::matmul::large_tiles_in_windows();
        crate::matmul::windows_and_folded_grids();
        crate::matmul_half::fused_ends();
        crate::matmul_half::fused_ends_of_large_tiles();
        crate::matmul_half::products_of_half();
        crate::matmul_half::products_of_half_in_other_modes();
        crate::matmul_half::products_of_half_with_edge_16();
        crate::matmul_half::large_tiles_of_half();
        crate::matmul_half::half_in_windows_and_folded_grids();
        crate::residual::forward();
        crate::roof::copy();
        crate::roof::fused();
        crate::roof::matrix();
        crate::roof::matrix_fed();
        crate::stepcontrol::accumulate();
        crate::stepcontrol::decide_clips_and_counts();
    });
    let all: BTreeSet<String> = wgpt::ops::all_kernels().into_iter().map(|kernel| kernel.name()).collect();
    // every kernel, but matrix kernels of one text and several tile shapes once, and every tile shape once
    let text = |name: &String| without_tiles(name).0;
    let shape = |name: &String| without_tiles(name).1;
    let missing = |of: &dyn Fn(&String) -> String| {
        let run: BTreeSet<String> = run.iter().map(of).collect();
        all.iter().map(of).filter(|name| !run.contains(name)).collect::<BTreeSet<_>>()
    };
    let missing: Vec<String> = missing(&text).into_iter().chain(missing(&shape)).collect();
    assert!(missing.is_empty(), "no test runs {missing:?}");
}

/// A matrix kernel's name without its tiles and edge, and its algorithm with them.
fn without_tiles(name: &str) -> (String, String) {
    let is_tile = |part: &str| part.contains('x') && part.split('x').all(|size| size.parse::<u32>().is_ok());
    let is_edge = |part: &str| part.strip_prefix('e').is_some_and(|edge| edge.parse::<u32>().is_ok());
    let (tiles, text): (Vec<&str>, Vec<&str>) = name.split('.').partition(|part| is_tile(part) || is_edge(part));
    (text.join("."), format!("{} {}", name.split('.').next().unwrap_or_default(), tiles.join(".")))
}
