// tools/join-shader adds: shared/widths/vec4.wgsl shared/widths/half8.wgsl
// shared/widths/pair.wgsl: Stored, the unit of loads and stores, is two Vec: 16 bytes of f16
alias Stored = Half8;
const VECS_PER_STORED = 2u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(select(s.low, s.high, k == 1u)); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(vec4<f16>(first), vec4<f16>(last)); }
