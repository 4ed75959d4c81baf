// matmul_row.forward, entry point forward, overrides [("WORKGROUP", 128.0)]
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
// matmul_row.wgsl: out(1,N) = a(1,K) b(N,K)ᵀ + bias(N): the product of a single row, limited by reading b
//   forward        one workgroup per element of out. Lanes read b along k, then their sums are added in a tree
//   forward_bias, forward_bias_gelu, forward_bias_residual   the same with a bias and an epilogue
//   Immediates and bindings are those of every matrix kernel; see src/ops/matmul/generate/mod.rs. m is 1.
struct MatmulImmediates {
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    a_offset: u32,
    b_offset: u32,
    out_offset: u32,
    bias_offset: u32,
    part_depth: u32,
}
var<immediate> params: MatmulImmediates;

@group(0) @binding(0) var<storage, read> a: array<Vec>;
@group(0) @binding(1) var<storage, read> b: array<Vec>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> gelu_out: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;

fn element(lane: u32, column: u32) -> f32 {
    let a0 = params.a_offset / ELEMENTS_PER_VEC;
    let b0 = (params.b_offset + column * params.b_stride) / ELEMENTS_PER_VEC;
    let end = params.k / ELEMENTS_PER_VEC;
    var sum = Vec();
    for (var i = lane; i < end; i += WORKGROUP) { sum += a[a0 + i] * b[b0 + i]; }
    return reduce_sum(lane, sum_elements(sum));
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let column = group_index(group, groups);
    if column >= params.n { return; }
    let x = element(lane, column);
    if lane == 0u { out[params.out_offset + column] = x; }
}

@compute @workgroup_size(WORKGROUP)
fn forward_bias(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) lane: u32) {
    let column = group_index(group, groups);
    if column >= params.n { return; }
    let x = element(lane, column);
    if lane == 0u { out[params.out_offset + column] = x + bias[params.bias_offset + column]; }
}

@compute @workgroup_size(WORKGROUP)
fn forward_bias_gelu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                     @builtin(local_invocation_index) lane: u32) {
    let column = group_index(group, groups);
    if column >= params.n { return; }
    let x = element(lane, column) + bias[params.bias_offset + column];
    if lane == 0u {
        out[params.out_offset + column] = x;
        // ELEMENTS_PER_VEC equal values: their sum divided by ELEMENTS_PER_VEC is exactly one of them
        gelu_out[params.out_offset + column] = sum_elements(gelu(Vec(x))) / f32(ELEMENTS_PER_VEC);
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward_bias_residual(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                         @builtin(local_invocation_index) lane: u32) {
    let column = group_index(group, groups);
    if column >= params.n { return; }
    let x = element(lane, column);
    let i = params.out_offset + column;
    if lane == 0u { out[i] = residual[i] + (x + bias[params.bias_offset + column]); }
}
