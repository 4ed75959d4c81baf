// layernorm.wgsl: out[n,c] = xhat[n,c] * weight[c] + bias[c],  xhat = (inp - mean) * rstd,  rstd = 1 / sqrt(variance + 1e-5)
//   inp, xhat, out, dout, dinp, copy (N, C);  weight, bias, dweight, dbias, dsum (C);  rstd (N)
//   A row belongs to a team of TEAM invocations, each of which keeps COLS of its V: everything is read once.
//   forward           the mean first, then the centred variance
//   affine            one invocation per V: out from xhat, with the bits of forward's
//   backward          one workgroup per block of rows; dinp += : the gradient of the residual stream runs on through it;
//                     partial sums of dweight, dbias and dinp; in a variant also copy = dinp for the matrix products
//   backward_params   adds the blocks' sums, in order, to dweight and dbias; in a variant also to dsum
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
    let n = group_index(group, groups) * (WG / TEAM) + lane / TEAM;
    let row = min(n, p.rows - 1u) * p.columns; // past the end the last row is read and nothing written
    let member = lane % TEAM;
    var x: array<V, COLS>;
    var sum = 0.0;
    for (var i = 0u; i < COLS; i++) {
        let c = member + i * TEAM;
        x[i] = V();
        if c < p.columns {
            x[i] = inp[row + c];
            sum += sum_v(x[i]);
        }
    }
    let mean = reduce_pairs(lane, TEAM, vec2(sum, 0.0)).x * p.inverse;
    sum = 0.0;
    for (var i = 0u; i < COLS; i++) {
        if member + i * TEAM < p.columns {
            x[i] -= V(mean);
            sum += dot_v(x[i], x[i]);
        }
    }
    let rstd = 1.0 / sqrt(reduce_pairs(lane, TEAM, vec2(sum, 0.0)).x * p.inverse + 1e-5);
    if n >= p.rows { return; }
    for (var i = 0u; i < COLS; i++) {
        let c = member + i * TEAM;
        if c < p.columns {
            // from the normalised value as it is stored, so that affine gives the same
            let xhat = as_stored(x[i] * rstd);
            xhat_out[row + c] = S(xhat);
            out[row + c] = S(xhat * weight[c] + bias[c]);
        }
    }
    if member == 0u { rstd_out[n] = rstd; }
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
@group(0) @binding(1) var<storage, read> xhat_in: array<S>;
@group(0) @binding(2) var<storage, read> weight_b: array<V>;
@group(0) @binding(3) var<storage, read> rstd_in: array<f32>;
@group(0) @binding(4) var<storage, read_write> dinp: array<V>;
@group(0) @binding(5) var<storage, read_write> block_sums: array<V>; // (blocks, 3, C): dweight, dbias, sums of dinp
@group(0) @binding(6) var<storage, read_write> copy: array<S>; // of put_copy, which the launcher writes, as put_sum

var<workgroup> team_sums: array<V, WG>;

// Adds what the teams have of one column, in order; their first member gets the sum.
fn over_teams(lane: u32, x: V) -> V {
    workgroupBarrier();
    team_sums[lane] = x;
    workgroupBarrier();
    var sum = V();
    for (var i = lane % TEAM; i < WG; i += TEAM) { sum += team_sums[i]; }
    return sum;
}

// An invocation has the same columns in every row of the block, so it sums them on the way.
@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let block = group_index(group, groups);
    if block >= p.blocks { return; }
    let member = lane % TEAM;
    var dweight: array<V, COLS>;
    var dbias: array<V, COLS>;
    var dsum: array<V, COLS>;
    for (var i = 0u; i < COLS; i++) {
        dweight[i] = V();
        dbias[i] = V();
        dsum[i] = V();
    }
    let end = min(p.rows, (block + 1u) * p.block_rows);
    for (var first = block * p.block_rows; first < end; first += WG / TEAM) {
        let n = first + lane / TEAM;
        let last = min(n, p.rows - 1u); // past the end a row is read again and nothing comes of it
        let row = last * p.columns;
        let rstd = rstd_in[last];
        var xhat: array<V, COLS>;
        var g: array<V, COLS>;
        var sums = vec2(0.0);
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            xhat[i] = V();
            g[i] = V();
            if c < p.columns && n < end {
                let d = V(dout[row + c]);
                xhat[i] = V(xhat_in[row + c]);
                g[i] = weight_b[c] * d;
                dweight[i] += d * xhat[i];
                dbias[i] += d;
                sums += vec2(sum_v(g[i]), dot_v(g[i], xhat[i]));
            }
        }
        let means = reduce_pairs(lane, TEAM, sums) * p.inverse; // of g, of g xhat
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            if c < p.columns && n < end {
                let d = dinp[row + c] + (g[i] - V(means.x) - xhat[i] * means.y) * rstd;
                dinp[row + c] = d;
                put_copy(row + c, d);
                dsum[i] += d;
            }
        }
    }
    for (var i = 0u; i < COLS; i++) {
        let c = member + i * TEAM;
        let to = 3u * block * p.columns + c;
        let weight_sum = over_teams(lane, dweight[i]);
        let bias_sum = over_teams(lane, dbias[i]);
        let dinp_sum = over_teams(lane, dsum[i]);
        if lane < TEAM && c < p.columns {
            block_sums[to] = weight_sum;
            block_sums[to + p.columns] = bias_sum;
            block_sums[to + 2u * p.columns] = dinp_sum;
        }
    }
}

@group(0) @binding(0) var<storage, read> block_sums_in: array<V>;
@group(0) @binding(1) var<storage, read_write> dweight_out: array<V>;
@group(0) @binding(2) var<storage, read_write> dbias_out: array<V>;
@group(0) @binding(3) var<storage, read_write> dsum_out: array<V>;

// PARTS invocations share a column: each adds every so many blocks, then one adds what they have.
@compute @workgroup_size(WG)
fn backward_params(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
    let across = WG / PARTS;
    let runs = (p.columns + across - 1u) / across;
    let number = group_index(group, groups);
    let which = number / runs;
    let c = number % runs * across + lane % across;
    var sum = V();
    if c < p.columns && which < 3u {
        for (var block = lane / across; block < p.blocks; block += PARTS) {
            sum += block_sums_in[(3u * block + which) * p.columns + c];
        }
    }
    team_sums[lane] = sum;
    workgroupBarrier();
    if lane >= across || c >= p.columns { return; }
    for (var part = 1u; part < PARTS; part++) { sum += team_sums[part * across + lane]; }
    if which == 0u { dweight_out[c] += sum; }
    if which == 1u { dbias_out[c] += sum; }
    if which == 2u { put_sum(c, sum); }
}
