// gelu.wgsl: out = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
//   inp, out, dout (any number of V)
//   forward    one invocation per V
//   backward   one invocation per V; dout *= derivative(inp), in place: dout becomes dinp
struct P { count: u32 } // number of V
var<immediate> p: P;

const S = 0.7978845608028654; // sqrt(2 / pi)
const CUBE = 0.044715;

// tanh through one exponential of a non-positive number: it cannot overflow, and for |u| large it is exactly 1
fn tanh_v(u: V) -> V {
    let e = exp(-2.0 * abs(u));
    return sign(u) * (V(1.0) - e) / (V(1.0) + e);
}

@group(0) @binding(0) var<storage, read> inp: array<V>;
@group(0) @binding(1) var<storage, read_write> out: array<V>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    let x = inp[i];
    out[i] = 0.5 * x * (V(1.0) + tanh_v(S * (x + CUBE * x * x * x)));
}

@group(0) @binding(1) var<storage, read_write> dout: array<V>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    let x = inp[i];
    let t = tanh_v(S * (x + CUBE * x * x * x));
    // sech^2 = 1 - tanh^2
    let slope = 0.5 * (V(1.0) + t) + 0.5 * x * (V(1.0) - t * t) * S * (V(1.0) + 3.0 * CUBE * x * x);
    dout[i] *= slope;
}
