// tools/join-shader adds: shared/stub_matrices.wgsl shared/stub_gelu.wgsl
// shared/gelu_matrices.wgsl: GELU of every element as it is stored. The SPIR-V pass `matrices` writes the loop round what it
// calls, and puts `zero` between the conversions: compilers drop one there and back.
fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }
fn gelu_of_stored(x: f32) -> f32 { return gelu(stored(x, unknown_zero())); }
fn gelus(m: MatrixC) -> MatrixC { _ = gelu_of_stored(0.0); return m; }
