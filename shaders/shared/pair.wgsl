// shared/pair.wgsl: what memory of stored elements is moved in, S, is two V: 16 bytes of f16
struct S { low: vec4<f16>, high: vec4<f16> }
const K = 2u; // V of an S
fn part(s: S, k: u32) -> V { return V(select(s.low, s.high, k == 1u)); }
fn whole(first: V, last: V) -> S { return S(vec4<f16>(first), vec4<f16>(last)); }
