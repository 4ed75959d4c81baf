// shared/scalar.wgsl: one f32 at a time, for rows whose length 4 does not divide.
alias V = f32;
alias U = u32;
const VW = 1u;
fn sum_v(v: V) -> f32 { return v; }
fn max_v(v: V) -> f32 { return v; }
fn dot_v(a: V, b: V) -> f32 { return a * b; }
