// tools/join-shader adds: shared/widths/vec4.wgsl
// shared/gelu.wgsl: GELU(x) = 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), and its derivative, for any
// Vec.
const GELU_SCALE = 0.7978845608028654; // sqrt(2 / pi)
const GELU_CUBE = 0.044715;
const GELU_EXPONENT = -2.302208198144325; // -2 sqrt(2 / pi) log2(e)

// The gate is 2^-126 at -10 and 1 at 10; beyond these an exponential or a square would overflow
fn gelu_near(x: Vec) -> Vec { return clamp(x, Vec(-10.0), Vec(10.0)); }

// 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)), for values that `gelu_near` has clamped
fn gelu_gate(x: Vec) -> Vec {
    return Vec(1.0) / (Vec(1.0) + exp2(x * (GELU_EXPONENT + GELU_EXPONENT * GELU_CUBE * x * x)));
}

fn gelu(x: Vec) -> Vec { return x * gelu_gate(gelu_near(x)); }

fn gelu_slope(far: Vec) -> Vec {
    let x = gelu_near(far);
    let gate = gelu_gate(x);
    return gate + x * (gate - gate * gate) * (2.0 * GELU_SCALE + 6.0 * GELU_SCALE * GELU_CUBE * x * x);
}
