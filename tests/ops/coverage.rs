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
        crate::bias::backward();
        crate::compare::forward();
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
        crate::residual::forward();
        crate::roof::copy();
        crate::roof::fused();
        crate::roof::matrix();
        crate::stepcontrol::accumulate();
        crate::stepcontrol::decide_clips_and_counts();
    });
    let all: BTreeSet<String> = wgpt::ops::all_kernels().into_iter().map(|kernel| kernel.name).collect();
    let missing: Vec<&String> = all.difference(&run).collect();
    assert!(missing.is_empty(), "no test runs {missing:?}");
}
