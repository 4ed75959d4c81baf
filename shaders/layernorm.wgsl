// layernorm.wgsl: out[n,c] = xhat[n,c] * weight[c] + bias[c],  xhat = (inp - mean) * rstd,  rstd = 1 / sqrt(variance + 1e-5)
//   inp, xhat, out, dout, dinp, copy (N, C);  weight, bias, dweight, dbias (C);  rstd (N)
//   forward           one workgroup per row; two passes: the mean first, then the centred variance
//   affine            one invocation per V: out from xhat, with the bits of forward's
//   backward          one workgroup per row; dinp += : the gradient of the residual stream runs on through it
//   backward_copied   the same, and copy = dinp for the matrix products
//   backward_blocks   one invocation per V of a column and block of rows: partial sums of dweight and dbias
//   backward_params   adds the blocks' sums, in order, to dweight and dbias
struct P {
    rows: u32,
    columns: u32,      // C / VW
    inverse: f32,      // 1 / C
    block_rows: u32,   // rows of a block
    blocks: u32,
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> inp: array<V>;
@group(0) @binding(1) var<storage, read> weight: array<V>;
@group(0) @binding(2) var<storage, read> bias: array<V>;
@group(0) @binding(3) var<storage, read_write> xhat_out: array<S>;
@group(0) @binding(4) var<storage, read_write> out: array<S>;
@group(0) @binding(5) var<storage, read_write> rstd_out: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let row = n * p.columns;
    var sum = 0.0;
    for (var c = lane; c < p.columns; c += WG) { sum += sum_v(inp[row + c]); }
    let mean = reduce_sum(lane, sum) * p.inverse;
    sum = 0.0;
    for (var c = lane; c < p.columns; c += WG) {
        let d = inp[row + c] - V(mean);
        sum += dot_v(d, d);
    }
    let rstd = 1.0 / sqrt(reduce_sum(lane, sum) * p.inverse + 1e-5);
    for (var c = lane; c < p.columns; c += WG) {
        // from the normalised value as it is stored, so that affine gives the same
        let x = as_stored((inp[row + c] - V(mean)) * rstd);
        xhat_out[row + c] = S(x);
        out[row + c] = S(x * weight[c] + bias[c]);
    }
    if lane == 0u { rstd_out[n] = rstd; }
}

@group(0) @binding(0) var<storage, read> xhat_a: array<S>;
@group(0) @binding(3) var<storage, read_write> out_a: array<S>;

@compute @workgroup_size(WG)
fn affine(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.rows * p.columns { return; }
    let c = i % p.columns;
    out_a[i] = S(V(xhat_a[i]) * weight[c] + bias[c]);
}

@group(0) @binding(0) var<storage, read> dout: array<S>;
@group(0) @binding(1) var<storage, read> xhat: array<S>;
@group(0) @binding(2) var<storage, read> weight_b: array<V>;
@group(0) @binding(3) var<storage, read> rstd_in: array<f32>;
@group(0) @binding(4) var<storage, read_write> dinp: array<V>;
@group(0) @binding(5) var<storage, read_write> copy: array<S>;

// Means of g and of g xhat over the row, where g = weight dout.
fn row_means(n: u32, lane: u32) -> vec2<f32> {
    let row = n * p.columns;
    var sum = 0.0;
    var sum_xhat = 0.0;
    for (var c = lane; c < p.columns; c += WG) {
        let g = weight_b[c] * V(dout[row + c]);
        sum += sum_v(g);
        sum_xhat += dot_v(g, V(xhat[row + c]));
    }
    let mean_g = reduce_sum(lane, sum) * p.inverse;
    return vec2(mean_g, reduce_sum(lane, sum_xhat) * p.inverse);
}

fn gradient(n: u32, c: u32, means: vec2<f32>) -> V {
    let i = n * p.columns + c;
    return (weight_b[c] * V(dout[i]) - V(means.x) - V(xhat[i]) * means.y) * rstd_in[n];
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let means = row_means(n, lane);
    for (var c = lane; c < p.columns; c += WG) { dinp[n * p.columns + c] += gradient(n, c, means); }
}

@compute @workgroup_size(WG)
fn backward_copied(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let means = row_means(n, lane);
    for (var c = lane; c < p.columns; c += WG) {
        let d = dinp[n * p.columns + c] + gradient(n, c, means);
        dinp[n * p.columns + c] = d;
        copy[n * p.columns + c] = S(d);
    }
}

@group(0) @binding(0) var<storage, read> dout_p: array<S>;
@group(0) @binding(1) var<storage, read> xhat_p: array<S>;
@group(0) @binding(2) var<storage, read_write> block_sums: array<V>; // (blocks, 2, C)

@compute @workgroup_size(WG)
fn backward_blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    let block = i / p.columns;
    let c = i - block * p.columns;
    if block >= p.blocks { return; }
    var dweight = V();
    var dbias = V();
    let end = min(p.rows, (block + 1u) * p.block_rows);
    for (var n = block * p.block_rows; n < end; n++) {
        let g = V(dout_p[n * p.columns + c]);
        dweight += g * V(xhat_p[n * p.columns + c]);
        dbias += g;
    }
    block_sums[2u * block * p.columns + c] = dweight;
    block_sums[(2u * block + 1u) * p.columns + c] = dbias;
}

@group(0) @binding(0) var<storage, read> block_sums_in: array<V>;
@group(0) @binding(1) var<storage, read_write> dweight_out: array<V>;
@group(0) @binding(2) var<storage, read_write> dbias_out: array<V>;

@compute @workgroup_size(WG)
fn backward_params(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
    let c = group_index(group, groups) * WG + lane;
    if c >= p.columns { return; }
    var dweight = V();
    var dbias = V();
    for (var block = 0u; block < p.blocks; block++) {
        dweight += block_sums_in[2u * block * p.columns + c];
        dbias += block_sums_in[(2u * block + 1u) * p.columns + c];
    }
    dweight_out[c] += dweight;
    dbias_out[c] += dbias;
}
