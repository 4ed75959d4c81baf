// attention_tiled.forward.hsv2.lanes1, entry point forward, overrides []
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
// shared/attention.wgsl: the immediates of attention kernels, and the position of a workgroup
struct AttentionImmediates {
    positions: u32,    // T
    heads: u32,
    scale: f32,        // 1 / sqrt(HS)
    first: u32,        // a dispatch has workgroups `first` to `end` of those for all rows of all heads
    end: u32,
    first_head: u32,   // first head in lse and delta, which may begin before this dispatch's sequences
}
var<immediate> params: AttentionImmediates;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// The head, sequence and block of rows of a workgroup, if it has any, and the head's position in lse and delta.
struct Place { b: u32, h: u32, statistics: u32, first: u32, valid: bool }

// Returns the position for workgroups of `rows` rows. With `last_first` rows with the most keys come first.
fn place(index: u32, rows: u32, last_first: bool) -> Place {
    let group = params.first + index;
    let blocks = (params.positions + rows - 1u) / rows;
    let bh = group / blocks;
    let block = group % blocks;
    let first = select(block, blocks - 1u - block, last_first) * rows;
    return Place(bh / params.heads, bh % params.heads, (params.first_head + bh) * params.positions, first,
                 group < params.end);
}
// attention_tiled.wgsl: attention.wgsl's forward and backward for GPUs without matrix units, and for f32
//   LANES invocations share a row, and each keeps VECS_PER_LANE of its Vec, so none needs an array as long as a head.
//   Workgroup memory holds keys and values of COLUMNS positions, in backward_kv queries and gradients, for all rows of
//   a workgroup. The lanes of a row store their parts of its dot products in workgroup memory, where every lane adds
//   all parts.
//   forward, backward_q   rows are queries
//   backward_kv           rows are keys
const THREADS = 128u;
const ROWS = THREADS / LANES;
const COLUMNS = 8u;
const VECS_PER_LANE = (HSV + LANES - 1u) / LANES;

// Two tiles of columns, X and Y, and the lanes' parts of dot products with them, for four columns each.
const X = 0u;
const Y = 1u;
var<workgroup> tiles: array<Vec, 2u * COLUMNS * HSV>;
var<workgroup> dots: array<vec4<f32>, 4u * THREADS>;

// Index of the first Vec of one head's q (part 0), k (1) or v (2) at a position, and of its out.
fn qkv_at(at: Place, t: u32, part: u32) -> u32 {
    return (((at.b * params.positions + t) * 3u + part) * params.heads + at.h) * HSV;
}
fn out_at(at: Place, t: u32) -> u32 { return ((at.b * params.positions + t) * params.heads + at.h) * HSV; }

// Returns which Vec of the head is an invocation's i-th, and whether it exists.
fn vec_of_lane(lane: u32, i: u32) -> u32 { return lane % LANES + i * LANES; }
fn in_head(j: u32) -> bool { return HSV % LANES == 0u || j < HSV; }

@group(0) @binding(0) var<storage, read> qkv: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(1) var<storage, read> dout: array<Stored>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<Stored>;

// Past the end the last position is loaded again and masked.
fn fill_keys(at: Place, first: u32, lane: u32) {
    for (var turn = 0u; turn < (COLUMNS * HSV + THREADS - 1u) / THREADS; turn++) {
        let i = lane + turn * THREADS;
        if COLUMNS * HSV % THREADS != 0u && i >= COLUMNS * HSV { break; }
        let t = min(first + i / HSV, params.positions - 1u);
        tiles[i] = Vec(qkv[qkv_at(at, t, 1u) + i % HSV]);
        tiles[COLUMNS * HSV + i] = Vec(qkv[qkv_at(at, t, 2u) + i % HSV]);
    }
}

fn fill_queries(at: Place, first: u32, lane: u32) {
    for (var turn = 0u; turn < (COLUMNS * HSV + THREADS - 1u) / THREADS; turn++) {
        let i = lane + turn * THREADS;
        if COLUMNS * HSV % THREADS != 0u && i >= COLUMNS * HSV { break; }
        let t = min(first + i / HSV, params.positions - 1u);
        tiles[i] = Vec(qkv[qkv_at(at, t, 0u) + i % HSV]);
        tiles[COLUMNS * HSV + i] = Vec(dout[out_at(at, t) + i % HSV]);
    }
}

alias LaneVecs = array<Vec, VECS_PER_LANE>;

fn dot_with(tile: u32, own: ptr<function, LaneVecs>, lane: u32) {
    for (var four = 0u; four < 2u; four++) {
        var a0 = Vec();
        var a1 = Vec();
        var a2 = Vec();
        var a3 = Vec();
        for (var i = 0u; i < VECS_PER_LANE; i++) {
            let j = vec_of_lane(lane, i);
            if !in_head(j) { continue; }
            let at = (tile * COLUMNS + four * 4u) * HSV + j;
            a0 += (*own)[i] * tiles[at];
            a1 += (*own)[i] * tiles[at + HSV];
            a2 += (*own)[i] * tiles[at + 2u * HSV];
            a3 += (*own)[i] * tiles[at + 3u * HSV];
        }
        dots[(tile * 2u + four) * THREADS + lane] =
            vec4(sum_elements(a0), sum_elements(a1), sum_elements(a2), sum_elements(a3));
    }
}

// Returns the dot products of a row with four columns, adding the lanes' parts in order.
fn dots_of(tile: u32, four: u32, lane: u32) -> vec4<f32> {
    let first = (tile * 2u + four) * THREADS + lane / LANES * LANES;
    var sum = vec4(0.0);
    for (var i = 0u; i < LANES; i++) { sum += dots[first + i]; }
    return sum;
}

// Returns the sum over four columns of weight times Vec j.
fn weighed(weight: vec4<f32>, tile: u32, four: u32, j: u32) -> Vec {
    let at = (tile * COLUMNS + four * 4u) * HSV + j;
    return weight.x * tiles[at] + weight.y * tiles[at + HSV] + weight.z * tiles[at + 2u * HSV]
        + weight.w * tiles[at + 3u * HSV];
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), ROWS, false);
    if !at.valid { return; }
    let t = at.first + lane / LANES;
    let row = min(t, params.positions - 1u); // rows past the end compute the last one and do not store it
    var q: LaneVecs;
    var o: LaneVecs;
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        q[i] = Vec();
        o[i] = Vec();
        if in_head(j) { q[i] = Vec(qkv[qkv_at(at, row, 0u) + j]) * params.scale; }
    }
    var most = LOW;
    var sum = 0.0;
    let end = min(at.first + ROWS, params.positions);
    for (var s = 0u; s < end; s += COLUMNS) {
        fill_keys(at, s, lane);
        workgroupBarrier();
        dot_with(X, &q, lane);
        workgroupBarrier();
        for (var four = 0u; four < 2u; four++) {
            let visible = vec4(s + four * 4u) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            let score = select(vec4(LOW), dots_of(X, four, lane), visible);
            let above = max(most, max(max(score.x, score.y), max(score.z, score.w)));
            let weight = select(vec4(0.0), exp(score - above), visible);
            let shrink = exp(most - above);
            sum = sum * shrink + ((weight.x + weight.y) + (weight.z + weight.w));
            most = above;
            for (var i = 0u; i < VECS_PER_LANE; i++) {
                let j = vec_of_lane(lane, i);
                if in_head(j) { o[i] = o[i] * shrink + weighed(weight, Y, four, j); }
            }
        }
        // all invocations must have read the tiles before they are overwritten
        workgroupBarrier();
    }
    if t >= params.positions { return; }
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        if in_head(j) { out[out_at(at, t) + j] = Stored(o[i] * (1.0 / sum)); }
    }
    if lane % LANES == 0u { lse_out[at.statistics + t] = most + log(sum); }
}

@compute @workgroup_size(THREADS)
fn backward_q(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), ROWS, false);
    if !at.valid { return; }
    let t = at.first + lane / LANES;
    let row = min(t, params.positions - 1u);
    var q: LaneVecs;
    var g: LaneVecs;
    var dq: LaneVecs;
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        q[i] = Vec();
        g[i] = Vec();
        dq[i] = Vec();
        if in_head(j) {
            q[i] = Vec(qkv[qkv_at(at, row, 0u) + j]) * params.scale;
            g[i] = Vec(dout[out_at(at, row) + j]);
        }
    }
    let statistics = at.statistics + row;
    let row_lse = vec4(lse[statistics]);
    let row_delta = vec4(delta[statistics]);
    let end = min(at.first + ROWS, params.positions);
    for (var s = 0u; s < end; s += COLUMNS) {
        fill_keys(at, s, lane);
        workgroupBarrier();
        dot_with(X, &q, lane);
        dot_with(Y, &g, lane);
        workgroupBarrier();
        for (var four = 0u; four < 2u; four++) {
            let visible = vec4(s + four * 4u) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            let weight = select(vec4(0.0), exp(min(dots_of(X, four, lane) - row_lse, vec4(0.0))), visible);
            let dscore = weight * (dots_of(Y, four, lane) - row_delta) * params.scale;
            for (var i = 0u; i < VECS_PER_LANE; i++) {
                let j = vec_of_lane(lane, i);
                if in_head(j) { dq[i] += weighed(dscore, X, four, j); }
            }
        }
        workgroupBarrier();
    }
    if t >= params.positions { return; }
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        if in_head(j) { dqkv[qkv_at(at, t, 0u) + j] = Stored(dq[i]); }
    }
}

@compute @workgroup_size(THREADS)
fn backward_kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), ROWS, false);
    if !at.valid { return; }
    let s = at.first + lane / LANES;
    let row = min(s, params.positions - 1u);
    var k: LaneVecs;
    var v: LaneVecs;
    var dk: LaneVecs;
    var dv: LaneVecs;
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        k[i] = Vec();
        v[i] = Vec();
        dk[i] = Vec();
        dv[i] = Vec();
        if in_head(j) {
            k[i] = Vec(qkv[qkv_at(at, row, 1u) + j]) * params.scale;
            v[i] = Vec(qkv[qkv_at(at, row, 2u) + j]);
        }
    }
    let statistics = at.statistics;
    for (var t = at.first / COLUMNS * COLUMNS; t < params.positions; t += COLUMNS) {
        fill_queries(at, t, lane);
        workgroupBarrier();
        dot_with(X, &k, lane);
        dot_with(Y, &v, lane);
        workgroupBarrier();
        for (var four = 0u; four < 2u; four++) {
            let query = vec4(t + four * 4u) + vec4(0u, 1u, 2u, 3u);
            let visible = (query >= vec4(row)) & (query < vec4(params.positions));
            let last = min(query, vec4(params.positions - 1u)) + vec4(statistics);
            let query_lse = vec4(lse[last.x], lse[last.y], lse[last.z], lse[last.w]);
            let query_delta = vec4(delta[last.x], delta[last.y], delta[last.z], delta[last.w]);
            let weight = select(vec4(0.0), exp(min(dots_of(X, four, lane) - query_lse, vec4(0.0))), visible);
            let dscore = weight * (dots_of(Y, four, lane) - query_delta) * params.scale;
            for (var i = 0u; i < VECS_PER_LANE; i++) {
                let j = vec_of_lane(lane, i);
                if in_head(j) {
                    dv[i] += weighed(weight, Y, four, j);
                    dk[i] += weighed(dscore, X, four, j);
                }
            }
        }
        workgroupBarrier();
    }
    if s >= params.positions { return; }
    for (var i = 0u; i < VECS_PER_LANE; i++) {
        let j = vec_of_lane(lane, i);
        if in_head(j) {
            dqkv[qkv_at(at, s, 1u) + j] = Stored(dk[i]);
            dqkv[qkv_at(at, s, 2u) + j] = Stored(dv[i]);
        }
    }
}
const HSV: u32 = 2u;
const LANES: u32 = 1u;
