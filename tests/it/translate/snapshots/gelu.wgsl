// gelu.forward, entry point forward, overrides [("WORKGROUP", 64.0)]
// shared/widths/vec4.wgsl: four f32 at a time, 16 bytes per access.
alias Vec = vec4<f32>;
alias UVec = vec4<u32>;
const ELEMENTS_PER_VEC = 4u;
fn sum_elements(v: Vec) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_element(v: Vec) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_product(a: Vec, b: Vec) -> f32 { return dot(a, b); }
fn columns_from(first: u32) -> UVec { return first + vec4(0u, 1u, 2u, 3u); } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v[i]; }
alias Stored = Vec;
// shared/widths/single.wgsl: Stored, the unit of loads and stores, is one Vec
const VECS_PER_STORED = 1u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(s); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(first); }
fn as_stored(x: Vec) -> Vec { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the reduction over a workgroup, by a tree, so that the order of additions never changes.
override WORKGROUP: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

// Every invocation must call these, because they contain barriers. After the last barrier the scratch can be reused at
// once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}

fn reduce_max(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Computes two sums at once over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WORKGROUP>;
fn reduce_pairs(lane: u32, team: u32, x: vec2<f32>) -> vec2<f32> {
    pair_scratch[lane] = x;
    for (var half = team / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % team < half { pair_scratch[lane] += pair_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = pair_scratch[lane / team * team];
    workgroupBarrier();
    return total;
}
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
// gelu.wgsl: out = GELU(inp); shared/gelu.wgsl has the formula
//   inp, out, dout (any number of Stored)
//   forward    one invocation per Stored
//   backward   one invocation per Stored; dout *= derivative(inp), in place: dout becomes dinp
struct GeluImmediates { count: u32 } // number of Stored
var<immediate> params: GeluImmediates;

@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let x = inp[i];
    var y: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { y[k] = gelu(unpack(x, k)); }
    out[i] = pack(y[0], y[VECS_PER_STORED - 1u]);
}

@group(0) @binding(1) var<storage, read_write> dout: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let x = inp[i];
    let d = dout[i];
    var dx: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { dx[k] = unpack(d, k) * gelu_slope(unpack(x, k)); }
    dout[i] = pack(dx[0], dx[VECS_PER_STORED - 1u]);
}
