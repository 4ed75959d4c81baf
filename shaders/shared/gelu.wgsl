// tools/join-shader adds: shared/widths/vec4.wgsl
// shared/gelu.wgsl: GELU(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) and its derivative, of any Vec.
const GELU_SCALE = 0.7978845608028654; // sqrt(2 / pi)
const GELU_CUBE = 0.044715;

// tanh through one exponential of a non-positive number: it cannot overflow, and for |u| large it is exactly 1
fn gelu_tanh(x: Vec) -> Vec {
    let u = GELU_SCALE * (x + GELU_CUBE * x * x * x);
    let e = exp(-2.0 * abs(u));
    return sign(u) * (Vec(1.0) - e) / (Vec(1.0) + e);
}

fn gelu(x: Vec) -> Vec { return 0.5 * x * (Vec(1.0) + gelu_tanh(x)); }

fn gelu_slope(x: Vec) -> Vec {
    let t = gelu_tanh(x);
    // sech^2 = 1 - tanh^2
    return 0.5 * (Vec(1.0) + t) + 0.5 * x * (Vec(1.0) - t * t) * GELU_SCALE * (Vec(1.0) + 3.0 * GELU_CUBE * x * x);
}
