// layernorm.forward.team32.cols6, entry point forward, overrides [("WG", 128.0)]
// shared/vec4.wgsl: four f32 at a time, 16 bytes an access.
alias V = vec4<f32>;
alias U = vec4<u32>;
const VW = 4u;
fn sum_v(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_v(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_v(a: V, b: V) -> f32 { return dot(a, b); }
fn columns_v(first: u32) -> U { return first + vec4(0u, 1u, 2u, 3u); } // the columns that a V has from `first` on
fn pick_v(v: V, i: u32) -> f32 { return v[i]; }
alias S = V;
// shared/single.wgsl: what memory of stored elements is moved in, S, is one V
const K = 1u; // V of an S
fn part(s: S, k: u32) -> V { return V(s); }
fn whole(first: V, last: V) -> S { return S(first); }
fn as_stored(x: V) -> V { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, since one dimension ends at 65,535 groups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the only reduction over a workgroup. A tree, so that the order of additions never changes.
override WG: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WG>;

// Every invocation must call these: they hold barriers. The last barrier lets the scratch be used again at once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
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
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Two sums at once, over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WG>;
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
// layernorm.wgsl: out[n,c] = xhat[n,c] * weight[c] + bias[c],  xhat = (inp - mean) * rstd,  rstd = 1 / sqrt(variance + 1e-5)
//   inp, xhat, out, dout, dinp, wide (N, C);  weight, bias, dweight, dbias, dsum (C);  rstd (N)
//   A row belongs to a team of TEAM invocations, each of which keeps COLS of its S: everything is read once.
//   forward           the mean first, then the centred variance
//   affine            one invocation per S: out from xhat, with the bits of forward's
//   backward          one workgroup per block of rows; dinp += : the gradient of the residual stream runs on through it; in
//                     variants dinp = , where it begins, and wide = dinp + , where it ends; partial sums of dweight, dbias
//                     and of dinp before it is rounded
//   backward_params   adds the blocks' sums, in order, to dweight and dbias; in a variant also to dsum
struct P {
    rows: u32,
    columns: u32,      // S of a row
    inverse: f32,      // 1 / C
    block_rows: u32,   // rows of a block
    blocks: u32,
}
var<immediate> p: P;

const KEPT = COLS * K; // V that an invocation keeps of a row

// The column, in V, of what member `member` of a team keeps i-th: K neighbours of every S.
fn column(member: u32, i: u32) -> u32 { return (member + i / K * TEAM) * K + i % K; }

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
    var x: array<V, KEPT>;
    var sum = 0.0;
    for (var i = 0u; i < KEPT; i++) {
        let c = column(member, i);
        x[i] = V();
        if c < p.columns * K {
            x[i] = inp[row * K + c];
            sum += sum_v(x[i]);
        }
    }
    let mean = reduce_pairs(lane, TEAM, vec2(sum, 0.0)).x * p.inverse;
    sum = 0.0;
    for (var i = 0u; i < KEPT; i++) {
        if column(member, i) < p.columns * K {
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
            var xhat: array<V, K>;
            var y: array<V, K>;
            for (var k = 0u; k < K; k++) {
                xhat[k] = as_stored(x[i * K + k] * rstd);
                y[k] = xhat[k] * weight[c * K + k] + bias[c * K + k];
            }
            xhat_out[row + c] = whole(xhat[0], xhat[K - 1u]);
            out[row + c] = whole(y[0], y[K - 1u]);
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
    let xhat = xhat_a[i];
    var y: array<V, K>;
    for (var k = 0u; k < K; k++) { y[k] = part(xhat, k) * weight[c * K + k] + bias[c * K + k]; }
    out_a[i] = whole(y[0], y[K - 1u]);
}

@group(0) @binding(0) var<storage, read> dout: array<S>;
@group(0) @binding(1) var<storage, read> xhat_in: array<S>;
@group(0) @binding(2) var<storage, read> weight_b: array<V>;
@group(0) @binding(3) var<storage, read> rstd_in: array<f32>;
@group(0) @binding(4) var<storage, read_write> dinp: array<S>;
@group(0) @binding(5) var<storage, read_write> block_sums: array<V>; // (blocks, 3, C): dweight, dbias, sums of dinp
@group(0) @binding(6) var<storage, read_write> wide: array<V>;

var<workgroup> team_sums: array<V, WG>;

// Adds what the teams have of one column, in order; their first member gets the sum.
fn over_teams(lane: u32, x: V) -> V {
    workgroupBarrier();
    team_sums[lane] = x;
    workgroupBarrier();
    var sum = V();
    for (var team = 0u; team < WG / TEAM; team++) { sum += team_sums[team * TEAM + lane % TEAM]; }
    return sum;
}

// An invocation has the same columns in every row of the block, so it sums them on the way.
@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let block = group_index(group, groups);
    if block >= p.blocks { return; }
    let member = lane % TEAM;
    var dweight: array<V, KEPT>;
    var dbias: array<V, KEPT>;
    var dsum: array<V, KEPT>;
    for (var i = 0u; i < KEPT; i++) {
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
        var xhat: array<V, KEPT>;
        var g: array<V, KEPT>;
        var sums = vec2(0.0);
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            let inside = c < p.columns && n < end;
            let at = row + select(0u, c, inside);
            let d_all = dout[at];
            let xhat_all = xhat_in[at];
            for (var k = 0u; k < K; k++) {
                let j = i * K + k;
                xhat[j] = V();
                g[j] = V();
                if inside {
                    let d = part(d_all, k);
                    xhat[j] = part(xhat_all, k);
                    g[j] = weight_b[c * K + k] * d;
                    dweight[j] += d * xhat[j];
                    dbias[j] += d;
                    sums += vec2(sum_v(g[j]), dot_v(g[j], xhat[j]));
                }
            }
        }
        let means = reduce_pairs(lane, TEAM, sums) * p.inverse; // of g, of g xhat
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            if c < p.columns && n < end {
                let before = dinp_before(row + c); // which the launcher writes, as put_dinp and put_sum
                var d: array<V, K>;
                for (var k = 0u; k < K; k++) {
                    let j = i * K + k;
                    d[k] = part(before, k) + (g[j] - V(means.x) - xhat[j] * means.y) * rstd;
                    dsum[j] += d[k];
                }
                put_dinp(row + c, d[0], d[K - 1u]);
            }
        }
    }
    let columns = p.columns * K;
    for (var i = 0u; i < KEPT; i++) {
        let c = column(member, i);
        let to = 3u * block * columns + c;
        let weight_sum = over_teams(lane, dweight[i]);
        let bias_sum = over_teams(lane, dbias[i]);
        let dinp_sum = over_teams(lane, dsum[i]);
        if lane < TEAM && c < columns {
            block_sums[to] = weight_sum;
            block_sums[to + columns] = bias_sum;
            block_sums[to + 2u * columns] = dinp_sum;
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
const TEAM: u32 = 32u;
const COLS: u32 = 6u;
fn dinp_before(i: u32) -> S { return dinp[i]; }
fn put_dinp(i: u32, first: V, last: V) { dinp[i] = whole(first, last); }
fn put_sum(c: u32, x: V) {  }
const PARTS: u32 = 16u;
