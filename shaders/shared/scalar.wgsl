// shared/scalar.wgsl: one f32 at a time, for rows whose length 4 does not divide.
alias V = f32;
alias U = u32;
const VW = 1u;
fn sum_v(v: V) -> f32 { return v; }
fn max_v(v: V) -> f32 { return v; }
fn dot_v(a: V, b: V) -> f32 { return a * b; }
fn columns_v(first: u32) -> U { return first; } // the columns that a V has from `first` on
fn pick_v(v: V, i: u32) -> f32 { return v; }
