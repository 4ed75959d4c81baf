// tools/join-shader adds: shared/stub_matrices.wgsl shared/stub_gelu.wgsl
// shared/gelu_slope_matrices.wgsl: every element times GELU's derivative at the element of `pre`. The SPIR-V pass
// `matrices` writes the loop around the call.
fn times_slope(x: f32, pre: f32) -> f32 { return x * gelu_slope(pre); }
fn times_slopes(m: MatrixC, pre: MatrixC) -> MatrixC { _ = times_slope(0.0, 0.0); return m; }
