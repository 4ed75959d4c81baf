// shared/widths/scalar.wgsl: one f32 at a time, for rows whose length is not a multiple of 4.
alias Vec = f32;
alias UVec = u32;
const ELEMENTS_PER_VEC = 1u;
fn sum_elements(v: Vec) -> f32 { return v; }
fn max_element(v: Vec) -> f32 { return v; }
fn dot_product(a: Vec, b: Vec) -> f32 { return a * b; }
fn columns_from(first: u32) -> UVec { return first; } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v; }
