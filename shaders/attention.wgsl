// tools/join-shader adds: shared/stub.wgsl shared/attention.wgsl
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
