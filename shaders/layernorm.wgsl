// tools/join-shader adds: shared/stub.wgsl shared/teams_tree.wgsl
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
