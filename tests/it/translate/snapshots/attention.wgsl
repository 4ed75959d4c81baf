// attention.backward_delta.hsv2, entry point backward_delta, overrides [("WORKGROUP", 64.0)]
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
// attention.wgsl: causal attention, fused: no (T, T) matrix is ever stored (Dao et al., FlashAttention)
//   score[t,s] = scale q[t] . k[s] for s <= t;  out[t] = sum over s of softmax(score)[t,s] v[s]
//   qkv, dqkv (B, T, 3, NH, HS);  out, dout (B, T, NH, HS);  lse, delta (B, NH, T): log-sum-exp of a row's scores,
//   and dout . out of a row
//   One lane per row, one workgroup per block of rows of one head. The other sequence index is uniform in a workgroup,
//   so its rows are read once for all lanes.
//   forward         lanes are queries; online softmax over four keys at a time
//   backward_delta  one invocation per row and head
//   backward_q      lanes are queries: dq
//   backward_kv     lanes are keys: dk and dv. It is separate from backward_q so that no sum needs atomics
// `const HSV` is the head size in Vec. qkv, out and their gradients are stored as Stored.

// Index of the first Vec of one head's q (part 0), k (1) or v (2) at a position.
fn qkv_at(b: u32, t: u32, part: u32, h: u32) -> u32 {
    return (((b * params.positions + t) * 3u + part) * params.heads + h) * HSV;
}
fn out_at(b: u32, t: u32, h: u32) -> u32 { return ((b * params.positions + t) * params.heads + h) * HSV; }

@group(0) @binding(0) var<storage, read> qkv: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WORKGROUP, false);
    if !at.valid { return; }
    let t = at.first + lane;
    let row = min(t, params.positions - 1u); // lanes past the end compute the last row and do not store it
    var q: array<Vec, HSV>;
    var o: array<Vec, HSV>;
    let q0 = qkv_at(at.b, row, 0u, at.h);
    for (var i = 0u; i < HSV; i++) {
        q[i] = Vec(qkv[q0 + i]) * params.scale;
        o[i] = Vec();
    }
    var most = LOW;
    var sum = 0.0;
    let end = min(at.first + WORKGROUP, params.positions);
    for (var s = 0u; s < end; s += 4u) {
        // past the end the last key is read again and masked
        let k0 = qkv_at(at.b, s, 1u, at.h);
        let k1 = qkv_at(at.b, min(s + 1u, params.positions - 1u), 1u, at.h);
        let k2 = qkv_at(at.b, min(s + 2u, params.positions - 1u), 1u, at.h);
        let k3 = qkv_at(at.b, min(s + 3u, params.positions - 1u), 1u, at.h);
        var a0 = Vec();
        var a1 = Vec();
        var a2 = Vec();
        var a3 = Vec();
        for (var i = 0u; i < HSV; i++) {
            a0 += q[i] * Vec(qkv[k0 + i]);
            a1 += q[i] * Vec(qkv[k1 + i]);
            a2 += q[i] * Vec(qkv[k2 + i]);
            a3 += q[i] * Vec(qkv[k3 + i]);
        }
        let key = vec4(s, s + 1u, s + 2u, s + 3u);
        let score = select(vec4(LOW), vec4(sum_elements(a0), sum_elements(a1), sum_elements(a2), sum_elements(a3)),
                           key <= vec4(row));
        let above = max(most, max(max(score.x, score.y), max(score.z, score.w)));
        // the weight of a masked score must be 0 even before any other score was read
        let weight = select(vec4(0.0), exp(score - above), key <= vec4(row));
        let shrink = exp(most - above);
        sum = sum * shrink + ((weight.x + weight.y) + (weight.z + weight.w));
        most = above;
        let parts = params.heads * HSV; // distance from a key to its value
        for (var i = 0u; i < HSV; i++) {
            o[i] = o[i] * shrink + weight.x * Vec(qkv[k0 + parts + i]) + weight.y * Vec(qkv[k1 + parts + i])
                + weight.z * Vec(qkv[k2 + parts + i]) + weight.w * Vec(qkv[k3 + parts + i]);
        }
    }
    if t >= params.positions { return; }
    let inverse = 1.0 / sum;
    let o0 = out_at(at.b, t, at.h);
    for (var i = 0u; i < HSV; i++) { out[o0 + i] = Stored(o[i] * inverse); }
    lse_out[at.statistics + t] = most + log(sum);
}

@group(0) @binding(0) var<storage, read> dout_d: array<Stored>;
@group(0) @binding(1) var<storage, read> out_d: array<Stored>;
@group(0) @binding(2) var<storage, read_write> delta_out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn backward_delta(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane; // (b, t, h)
    if i >= params.end { return; }
    var sum = 0.0;
    for (var k = 0u; k < HSV; k++) { sum += dot_product(Vec(dout_d[i * HSV + k]), Vec(out_d[i * HSV + k])); }
    let h = i % params.heads;
    let t = (i / params.heads) % params.positions;
    let b = i / (params.heads * params.positions);
    delta_out[(params.first_head + b * params.heads + h) * params.positions + t] = sum;
}

@group(0) @binding(1) var<storage, read> dout: array<Stored>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn backward_q(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WORKGROUP, false);
    if !at.valid { return; }
    let t = at.first + lane;
    let row = min(t, params.positions - 1u);
    var q: array<Vec, HSV>;
    var g: array<Vec, HSV>;
    var dq: array<Vec, HSV>;
    let q0 = qkv_at(at.b, row, 0u, at.h);
    let g0 = out_at(at.b, row, at.h);
    for (var i = 0u; i < HSV; i++) {
        q[i] = Vec(qkv[q0 + i]) * params.scale;
        g[i] = Vec(dout[g0 + i]);
        dq[i] = Vec();
    }
    let statistics = at.statistics + row;
    let row_lse = lse[statistics];
    let row_delta = delta[statistics];
    let end = min(at.first + WORKGROUP, params.positions);
    for (var s = 0u; s < end; s++) {
        let k0 = qkv_at(at.b, s, 1u, at.h);
        let v0 = qkv_at(at.b, s, 2u, at.h);
        var score = Vec();
        var dweight = Vec();
        for (var i = 0u; i < HSV; i++) {
            score += q[i] * Vec(qkv[k0 + i]);
            dweight += g[i] * Vec(qkv[v0 + i]);
        }
        let weight = select(0.0, exp(min(sum_elements(score) - row_lse, 0.0)), s <= row);
        let dscore = weight * (sum_elements(dweight) - row_delta) * params.scale;
        for (var i = 0u; i < HSV; i++) { dq[i] += dscore * Vec(qkv[k0 + i]); }
    }
    if t >= params.positions { return; }
    for (var i = 0u; i < HSV; i++) { dqkv[q0 + i] = Stored(dq[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn backward_kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WORKGROUP, false);
    if !at.valid { return; }
    let s = at.first + lane;
    let row = min(s, params.positions - 1u);
    var k: array<Vec, HSV>;
    var v: array<Vec, HSV>;
    var dk: array<Vec, HSV>;
    var dv: array<Vec, HSV>;
    let k0 = qkv_at(at.b, row, 1u, at.h);
    let v0 = qkv_at(at.b, row, 2u, at.h);
    for (var i = 0u; i < HSV; i++) {
        k[i] = Vec(qkv[k0 + i]) * params.scale;
        v[i] = Vec(qkv[v0 + i]);
        dk[i] = Vec();
        dv[i] = Vec();
    }
    let statistics = at.statistics;
    for (var t = at.first; t < params.positions; t++) {
        let q0 = qkv_at(at.b, t, 0u, at.h);
        let g0 = out_at(at.b, t, at.h);
        var score = Vec();
        var dweight = Vec();
        for (var i = 0u; i < HSV; i++) {
            score += k[i] * Vec(qkv[q0 + i]);
            dweight += v[i] * Vec(dout[g0 + i]);
        }
        let weight = select(0.0, exp(min(sum_elements(score) - lse[statistics + t], 0.0)), row <= t);
        let dscore = weight * (sum_elements(dweight) - delta[statistics + t]) * params.scale;
        for (var i = 0u; i < HSV; i++) {
            dv[i] += weight * Vec(dout[g0 + i]);
            dk[i] += dscore * Vec(qkv[q0 + i]);
        }
    }
    if s >= params.positions { return; }
    for (var i = 0u; i < HSV; i++) {
        dqkv[k0 + i] = Stored(dk[i]);
        dqkv[v0 + i] = Stored(dv[i]);
    }
}
const HSV: u32 = 2u;
