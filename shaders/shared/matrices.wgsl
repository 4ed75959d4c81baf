// tools/join-shader adds: shared/stub_matrices.wgsl
// shared/matrices.wgsl: conversions of every element. The SPIR-V pass `matrices` (src/gpu/spirv/matrices.rs) writes
// their bodies.
fn to_half(m: MatrixC) -> MatrixH { return MatrixH(); }
fn to_float(m: MatrixH) -> MatrixC { return MatrixC(); }
