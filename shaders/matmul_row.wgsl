// tools/join-shader adds: shared/stub.wgsl shared/gelu.wgsl
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
