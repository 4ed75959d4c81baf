// layernorm.forward.team32.cols6, entry point forward, overrides [("WORKGROUP", 128.0)]
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
// layernorm.wgsl: out[n,c] = xhat[n,c] * weight[c] + bias[c],  xhat = (inp - mean) * rstd,
//                 rstd = 1 / sqrt(variance + 1e-5)
//   inp, xhat, out, dout, dinp, dinp_f32 (N, C);  weight, bias, dweight, dbias, dsum (C);  rstd (N)
//   A team of TEAM invocations shares a row, and each keeps COLS of its Stored, so everything is read once. Sums over a
//   team are in shared/teams_tree.wgsl or shared/teams_subgroups.wgsl.
//   forward           the mean first, then the centred variance
//   affine            one invocation per Stored; computes out from xhat, with the same bits as forward
//   backward          one workgroup per block of rows. It accumulates dinp, the gradient of the residual stream.
//                     Variants overwrite dinp where the gradient begins, or write dinp_f32 = dinp + ... where it ends.
//                     Writes partial sums of dweight, dbias and of dinp before rounding, which sums.wgsl adds
struct LayernormImmediates {
    rows: u32,
    columns: u32,      // Stored per row
    inverse: f32,      // 1 / C
    block_rows: u32,   // rows of a block
    blocks: u32,
}
var<immediate> params: LayernormImmediates;

const VECS_KEPT = COLS * VECS_PER_STORED; // Vec of a row that an invocation keeps

// Returns the column, in Vec, of the i-th Vec that member `member` of a team keeps: VECS_PER_STORED neighbours of every
// Stored.
fn column(member: u32, i: u32) -> u32 {
    return (member + i / VECS_PER_STORED * TEAM) * VECS_PER_STORED + i % VECS_PER_STORED;
}

@group(0) @binding(0) var<storage, read> inp: array<Vec>;
@group(0) @binding(1) var<storage, read> weight: array<Vec>;
@group(0) @binding(2) var<storage, read> bias: array<Vec>;
@group(0) @binding(3) var<storage, read_write> xhat_out: array<Stored>;
@group(0) @binding(4) var<storage, read_write> out: array<Stored>;
@group(0) @binding(5) var<storage, read_write> rstd_out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let lane = lane_of(invocation);
    let team = team_of(lane);
    let n = group_index(group, groups) * (WORKGROUP / TEAM) + team;
    let row = min(n, params.rows - 1u) * params.columns; // past the end the last row is read and not stored
    let member = lane - team * TEAM;
    var x: array<Vec, VECS_KEPT>;
    var sum = 0.0;
    for (var i = 0u; i < VECS_KEPT; i++) {
        let c = column(member, i);
        x[i] = Vec();
        if c < params.columns * VECS_PER_STORED {
            x[i] = inp[row * VECS_PER_STORED + c];
            sum += sum_elements(x[i]);
        }
    }
    let mean = reduce_team(lane, 0u, vec2(sum, 0.0)).x * params.inverse;
    sum = 0.0;
    for (var i = 0u; i < VECS_KEPT; i++) {
        if column(member, i) < params.columns * VECS_PER_STORED {
            x[i] -= Vec(mean);
            sum += dot_product(x[i], x[i]);
        }
    }
    let rstd = 1.0 / sqrt(reduce_team(lane, 1u, vec2(sum, 0.0)).x * params.inverse + 1e-5);
    if n >= params.rows { return; }
    for (var i = 0u; i < COLS; i++) {
        let c = member + i * TEAM;
        if c < params.columns {
            // from the stored, rounded normalised value, so that affine computes the same
            var xhat: array<Vec, VECS_PER_STORED>;
            var y: array<Vec, VECS_PER_STORED>;
            for (var k = 0u; k < VECS_PER_STORED; k++) {
                xhat[k] = as_stored(x[i * VECS_PER_STORED + k] * rstd);
                y[k] = xhat[k] * weight[c * VECS_PER_STORED + k] + bias[c * VECS_PER_STORED + k];
            }
            xhat_out[row + c] = pack(xhat[0], xhat[VECS_PER_STORED - 1u]);
            out[row + c] = pack(y[0], y[VECS_PER_STORED - 1u]);
        }
    }
    if member == 0u { rstd_out[n] = rstd; }
}

@group(0) @binding(0) var<storage, read> xhat_a: array<Stored>;
@group(0) @binding(3) var<storage, read_write> out_a: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn affine(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.rows * params.columns { return; }
    let c = i % params.columns;
    let xhat = xhat_a[i];
    var y: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) {
        y[k] = unpack(xhat, k) * weight[c * VECS_PER_STORED + k] + bias[c * VECS_PER_STORED + k];
    }
    out_a[i] = pack(y[0], y[VECS_PER_STORED - 1u]);
}

@group(0) @binding(0) var<storage, read> dout: array<Stored>;
@group(0) @binding(1) var<storage, read> xhat_in: array<Stored>;
@group(0) @binding(2) var<storage, read> weight_b: array<Vec>;
@group(0) @binding(3) var<storage, read> rstd_in: array<f32>;
@group(0) @binding(4) var<storage, read_write> dinp: array<Stored>;
@group(0) @binding(5) var<storage, read_write> block_sums: array<Vec>; // (blocks, 3, C): dweight, dbias, sums of dinp
@group(0) @binding(6) var<storage, read_write> dinp_f32: array<Vec>;

var<workgroup> team_sums: array<Vec, WORKGROUP>;

// Adds the teams' sums of one column, in order. The first member gets the total.
fn over_teams(lane: u32, member: u32, x: Vec) -> Vec {
    if WORKGROUP == TEAM { return x; }
    workgroupBarrier();
    team_sums[lane] = x;
    workgroupBarrier();
    var sum = Vec();
    for (var team = 0u; team < WORKGROUP / TEAM; team++) { sum += team_sums[team * TEAM + member]; }
    return sum;
}

// An invocation has the same columns in every row of the block, so it sums them while it reads rows.
@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let block = group_index(group, groups);
    if block >= params.blocks { return; }
    let lane = lane_of(invocation);
    let team = team_of(lane);
    let member = lane - team * TEAM;
    var dweight: array<Vec, VECS_KEPT>;
    var dbias: array<Vec, VECS_KEPT>;
    var dsum: array<Vec, VECS_KEPT>;
    for (var i = 0u; i < VECS_KEPT; i++) {
        dweight[i] = Vec();
        dbias[i] = Vec();
        dsum[i] = Vec();
    }
    let end = min(params.rows, (block + 1u) * params.block_rows);
    var slot = 0u;
    for (var first = block * params.block_rows; first < end; first += WORKGROUP / TEAM) {
        let n = first + team;
        let last = min(n, params.rows - 1u); // past the end a row is read again and not used
        let row = last * params.columns;
        let rstd = rstd_in[last];
        var d: array<Stored, COLS>;
        var xhat: array<Stored, COLS>;
        var before: array<Stored, COLS>;
        // all loads of the row are issued before its sums wait for any of them
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            let at = row + select(0u, c, c < params.columns && n < end);
            d[i] = dout[at];
            xhat[i] = xhat_in[at];
            before[i] = load_dinp(at); // the launcher writes load_dinp and store_dinp
        }
        var sums = vec2(0.0);
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            if c < params.columns && n < end {
                for (var k = 0u; k < VECS_PER_STORED; k++) {
                    let j = i * VECS_PER_STORED + k;
                    let slope = unpack(d[i], k);
                    let x = unpack(xhat[i], k);
                    let g = weight_b[c * VECS_PER_STORED + k] * slope;
                    dweight[j] += slope * x;
                    dbias[j] += slope;
                    sums += vec2(sum_elements(g), dot_product(g, x));
                }
            }
        }
        let means = reduce_team(lane, slot, sums) * params.inverse; // of g, of g xhat
        slot = 1u - slot;
        for (var i = 0u; i < COLS; i++) {
            let c = member + i * TEAM;
            if c < params.columns && n < end {
                var y: array<Vec, VECS_PER_STORED>;
                for (var k = 0u; k < VECS_PER_STORED; k++) {
                    // g is computed again, because in its stored form it takes fewer registers than in f32
                    let g = weight_b[c * VECS_PER_STORED + k] * unpack(d[i], k);
                    y[k] = unpack(before[i], k) + (g - Vec(means.x) - unpack(xhat[i], k) * means.y) * rstd;
                    dsum[i * VECS_PER_STORED + k] += y[k];
                }
                store_dinp(row + c, y[0], y[VECS_PER_STORED - 1u]);
            }
        }
    }
    let columns = params.columns * VECS_PER_STORED;
    for (var i = 0u; i < VECS_KEPT; i++) {
        let c = column(member, i);
        let to = 3u * block * columns + c;
        let weight_sum = over_teams(lane, member, dweight[i]);
        let bias_sum = over_teams(lane, member, dbias[i]);
        let dinp_sum = over_teams(lane, member, dsum[i]);
        if team == 0u && c < columns {
            block_sums[to] = weight_sum;
            block_sums[to + columns] = bias_sum;
            block_sums[to + 2u * columns] = dinp_sum;
        }
    }
}
const TEAM: u32 = 32u;
const COLS: u32 = 6u;
// shared/teams_tree.wgsl: teams of TEAM neighbouring invocations, a power of two, which add up by a tree in workgroup
// memory
struct Invocation { @builtin(local_invocation_index) lane: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.lane; }
fn team_of(lane: u32) -> u32 { return lane / TEAM; }

// Every invocation must call it, because it contains barriers.
fn reduce_team(lane: u32, slot: u32, x: vec2<f32>) -> vec2<f32> { return reduce_pairs(lane, TEAM, x); }
fn load_dinp(i: u32) -> Stored { return dinp[i]; }
fn store_dinp(i: u32, first: Vec, last: Vec) { dinp[i] = pack(first, last); }
