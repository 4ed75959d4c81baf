// attention.backward_delta.hsv2, entry point backward_delta, overrides [("WG", 64.0)]
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
// shared/attention.wgsl: what the attention kernels are told, and where a workgroup of theirs is
struct P {
    positions: u32,    // T
    heads: u32,
    scale: f32,        // 1 / sqrt(HS)
    first: u32,        // a dispatch has workgroups `first` to `end` of those that all rows of all heads take
    end: u32,
    first_head: u32,   // of lse and delta, which may begin before the sequences at hand
}
var<immediate> p: P;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// Which head of which sequence and which run of rows a workgroup has, if any; and where the head is in lse and delta.
struct Place { b: u32, h: u32, statistics: u32, first: u32, valid: bool }

// Of `rows` rows a workgroup; with `last_first` those with the most keys come first.
fn place(index: u32, rows: u32, last_first: bool) -> Place {
    let group = p.first + index;
    let blocks = (p.positions + rows - 1u) / rows;
    let bh = group / blocks;
    let block = group % blocks;
    let first = select(block, blocks - 1u - block, last_first) * rows;
    return Place(bh / p.heads, bh % p.heads, (p.first_head + bh) * p.positions, first, group < p.end);
}
// attention.wgsl: causal attention, fused: no (T, T) matrix is ever in memory (Dao et al., FlashAttention)
//   score[t,s] = scale q[t] . k[s] for s <= t;  out[t] = sum over s of softmax(score)[t,s] v[s]
//   qkv, dqkv (B, T, 3, NH, HS);  out, dout (B, T, NH, HS);  lse, delta (B, NH, T): log-sum-exp of a row's scores,
//   and dout . out of a row
//   One lane per row, one workgroup per run of rows of one head. The other sequence index is uniform in a workgroup:
//   its rows are read once for all lanes.
//   forward         lanes are queries; online softmax over four keys at a time
//   backward_delta  one invocation per row and head
//   backward_q      lanes are queries: dq
//   backward_kv     lanes are keys: dk and dv. Two kernels and not one, so that no sum needs atomics
// The head size arrives as `const HSV`, its number of V. qkv, out and their gradients are stored as S.

// Index of the first V of one head's q (part 0), k (1) or v (2) at a position.
fn qkv_at(b: u32, t: u32, part: u32, h: u32) -> u32 { return (((b * p.positions + t) * 3u + part) * p.heads + h) * HSV; }
fn out_at(b: u32, t: u32, h: u32) -> u32 { return ((b * p.positions + t) * p.heads + h) * HSV; }

@group(0) @binding(0) var<storage, read> qkv: array<S>;
@group(0) @binding(1) var<storage, read_write> out: array<S>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WG, false);
    if !at.valid { return; }
    let t = at.first + lane;
    let row = min(t, p.positions - 1u); // lanes past the end compute the last row and write nothing
    var q: array<V, HSV>;
    var o: array<V, HSV>;
    let q0 = qkv_at(at.b, row, 0u, at.h);
    for (var i = 0u; i < HSV; i++) {
        q[i] = V(qkv[q0 + i]) * p.scale;
        o[i] = V();
    }
    var most = LOW;
    var sum = 0.0;
    let end = min(at.first + WG, p.positions);
    for (var s = 0u; s < end; s += 4u) {
        // past the end the last key is read again and masked away
        let k0 = qkv_at(at.b, s, 1u, at.h);
        let k1 = qkv_at(at.b, min(s + 1u, p.positions - 1u), 1u, at.h);
        let k2 = qkv_at(at.b, min(s + 2u, p.positions - 1u), 1u, at.h);
        let k3 = qkv_at(at.b, min(s + 3u, p.positions - 1u), 1u, at.h);
        var a0 = V();
        var a1 = V();
        var a2 = V();
        var a3 = V();
        for (var i = 0u; i < HSV; i++) {
            a0 += q[i] * V(qkv[k0 + i]);
            a1 += q[i] * V(qkv[k1 + i]);
            a2 += q[i] * V(qkv[k2 + i]);
            a3 += q[i] * V(qkv[k3 + i]);
        }
        let key = vec4(s, s + 1u, s + 2u, s + 3u);
        let score = select(vec4(LOW), vec4(sum_v(a0), sum_v(a1), sum_v(a2), sum_v(a3)), key <= vec4(row));
        let above = max(most, max(max(score.x, score.y), max(score.z, score.w)));
        // a masked score must weigh nothing even while no score has been seen
        let weight = select(vec4(0.0), exp(score - above), key <= vec4(row));
        let shrink = exp(most - above);
        sum = sum * shrink + ((weight.x + weight.y) + (weight.z + weight.w));
        most = above;
        let parts = p.heads * HSV; // from a key to its value
        for (var i = 0u; i < HSV; i++) {
            o[i] = o[i] * shrink + weight.x * V(qkv[k0 + parts + i]) + weight.y * V(qkv[k1 + parts + i])
                + weight.z * V(qkv[k2 + parts + i]) + weight.w * V(qkv[k3 + parts + i]);
        }
    }
    if t >= p.positions { return; }
    let inverse = 1.0 / sum;
    let o0 = out_at(at.b, t, at.h);
    for (var i = 0u; i < HSV; i++) { out[o0 + i] = S(o[i] * inverse); }
    lse_out[at.statistics + t] = most + log(sum);
}

@group(0) @binding(0) var<storage, read> dout_d: array<S>;
@group(0) @binding(1) var<storage, read> out_d: array<S>;
@group(0) @binding(2) var<storage, read_write> delta_out: array<f32>;

@compute @workgroup_size(WG)
fn backward_delta(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane; // (b, t, h)
    if i >= p.end { return; }
    var sum = 0.0;
    for (var k = 0u; k < HSV; k++) { sum += dot_v(V(dout_d[i * HSV + k]), V(out_d[i * HSV + k])); }
    let h = i % p.heads;
    let t = (i / p.heads) % p.positions;
    let b = i / (p.heads * p.positions);
    delta_out[(p.first_head + b * p.heads + h) * p.positions + t] = sum;
}

@group(0) @binding(1) var<storage, read> dout: array<S>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<S>;

@compute @workgroup_size(WG)
fn backward_q(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WG, false);
    if !at.valid { return; }
    let t = at.first + lane;
    let row = min(t, p.positions - 1u);
    var q: array<V, HSV>;
    var g: array<V, HSV>;
    var dq: array<V, HSV>;
    let q0 = qkv_at(at.b, row, 0u, at.h);
    let g0 = out_at(at.b, row, at.h);
    for (var i = 0u; i < HSV; i++) {
        q[i] = V(qkv[q0 + i]) * p.scale;
        g[i] = V(dout[g0 + i]);
        dq[i] = V();
    }
    let statistics = at.statistics + row;
    let row_lse = lse[statistics];
    let row_delta = delta[statistics];
    let end = min(at.first + WG, p.positions);
    for (var s = 0u; s < end; s++) {
        let k0 = qkv_at(at.b, s, 1u, at.h);
        let v0 = qkv_at(at.b, s, 2u, at.h);
        var score = V();
        var dweight = V();
        for (var i = 0u; i < HSV; i++) {
            score += q[i] * V(qkv[k0 + i]);
            dweight += g[i] * V(qkv[v0 + i]);
        }
        let weight = select(0.0, exp(min(sum_v(score) - row_lse, 0.0)), s <= row);
        let dscore = weight * (sum_v(dweight) - row_delta) * p.scale;
        for (var i = 0u; i < HSV; i++) { dq[i] += dscore * V(qkv[k0 + i]); }
    }
    if t >= p.positions { return; }
    for (var i = 0u; i < HSV; i++) { dqkv[q0 + i] = S(dq[i]); }
}

@compute @workgroup_size(WG)
fn backward_kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) lane: u32) {
    let at = place(group_index(group, groups), WG, false);
    if !at.valid { return; }
    let s = at.first + lane;
    let row = min(s, p.positions - 1u);
    var k: array<V, HSV>;
    var v: array<V, HSV>;
    var dk: array<V, HSV>;
    var dv: array<V, HSV>;
    let k0 = qkv_at(at.b, row, 1u, at.h);
    let v0 = qkv_at(at.b, row, 2u, at.h);
    for (var i = 0u; i < HSV; i++) {
        k[i] = V(qkv[k0 + i]) * p.scale;
        v[i] = V(qkv[v0 + i]);
        dk[i] = V();
        dv[i] = V();
    }
    let statistics = at.statistics;
    for (var t = at.first; t < p.positions; t++) {
        let q0 = qkv_at(at.b, t, 0u, at.h);
        let g0 = out_at(at.b, t, at.h);
        var score = V();
        var dweight = V();
        for (var i = 0u; i < HSV; i++) {
            score += k[i] * V(qkv[q0 + i]);
            dweight += v[i] * V(dout[g0 + i]);
        }
        let weight = select(0.0, exp(min(sum_v(score) - lse[statistics + t], 0.0)), row <= t);
        let dscore = weight * (sum_v(dweight) - delta[statistics + t]) * p.scale;
        for (var i = 0u; i < HSV; i++) {
            dv[i] += weight * V(dout[g0 + i]);
            dk[i] += dscore * V(qkv[q0 + i]);
        }
    }
    if s >= p.positions { return; }
    for (var i = 0u; i < HSV; i++) {
        dqkv[k0 + i] = S(dk[i]);
        dqkv[v0 + i] = S(dv[i]);
    }
}
const HSV: u32 = 2u;
