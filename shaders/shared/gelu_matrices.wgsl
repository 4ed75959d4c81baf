// tools/join-shader adds: shared/stub_matrices.wgsl shared/stub_gelu.wgsl
// shared/gelu_matrices.wgsl: GELU of every element, rounded as it is stored. The SPIR-V pass `matrices` writes the loop
// around the call, and adds `zero` between the two conversions, because compilers remove a conversion to f16 and back.
fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }
fn gelu_of_stored(x: f32) -> f32 { return gelu(stored(x, unknown_zero())); }
fn gelus(m: MatrixC) -> MatrixC { _ = gelu_of_stored(0.0); return m; }
