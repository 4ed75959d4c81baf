// attention_step.forward.hsv2.channels2.parts64.outs1, entry point forward, overrides [("WORKGROUP", 128.0)]
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
// attention_step.wgsl: attention of one new position, whose keys and values are added to the cache of all earlier ones
//   fresh (3, NH, HS): q, k, v of position t;  cache (T, 3, NH, HS): rows 0..t-1 are read, k and v of row t written
//   out (NH, HS): out = sum over s <= t of softmax(scale q . k[s]) v[s];  at (1) u32: t
//   forward   one workgroup per head, WORKGROUP keys at a time. A lane has one key for the scores, then one Vec of the
//             output for the sums. If there are more lanes than Vec, each run of CHANNELS lanes sums every
//             PARTS-th key.
//   forward_alone   the same for software adapters: every lane does all the work of a head. There a load at an address
//             that all lanes share is one scalar load, and any other is a slow gather. Four keys share two
//             exponentials.
//   `const HSV` is the head size in Vec; CHANNELS is a power of two, PARTS = WORKGROUP / CHANNELS,
//   and a lane has OUTS Vec of the output.
struct AttentionStepImmediates {
    positions: u32,   // T, rows of the cache
    heads: u32,
    scale: f32,       // 1 / sqrt(HS)
}
var<immediate> params: AttentionStepImmediates;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

var<workgroup> weights: array<f32, WORKGROUP>;
var<workgroup> sums: array<Vec, WORKGROUP>;

@group(0) @binding(0) var<storage, read> fresh: array<Vec>;
@group(0) @binding(1) var<storage, read> at: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<Vec>;
@group(0) @binding(3) var<storage, read_write> out: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let h = group_index(group, groups);
    if h >= params.heads { return; }
    let part = params.heads * HSV; // distance from q to k, and from k to v
    let row = 3u * part;
    let head = h * HSV;
    let t = min(at[0], params.positions - 1u);

    // The new position is never read back from the cache, so other lanes need not see these writes.
    for (var turn = 0u; turn < (HSV + WORKGROUP - 1u) / WORKGROUP; turn++) {
        let i = lane + turn * WORKGROUP;
        if i < HSV {
            cache[t * row + part + head + i] = fresh[part + head + i];
            cache[t * row + 2u * part + head + i] = fresh[2u * part + head + i];
        }
    }
    var q: array<Vec, HSV>;
    var own = Vec();
    for (var i = 0u; i < HSV; i++) {
        q[i] = fresh[head + i] * params.scale;
        own += q[i] * fresh[part + head + i];
    }
    var most = sum_elements(own);
    var sum = 1.0;
    let channel = lane % CHANNELS;
    let first_key = lane / CHANNELS;
    var o: array<Vec, OUTS>;
    for (var j = 0u; j < OUTS; j++) {
        let c = min(channel + j * CHANNELS, HSV - 1u);
        o[j] = select(Vec(), fresh[2u * part + head + c], first_key == 0u);
    }

    for (var first = 0u; first < t; first += WORKGROUP) {
        let s = first + lane;
        let k = min(s, t - 1u) * row + part + head; // past the end the last key is read again and masked away
        var products = Vec();
        for (var i = 0u; i < HSV; i++) { products += q[i] * cache[k + i]; }
        let score = select(LOW, sum_elements(products), s < t);
        let above = max(most, reduce_max(lane, score));
        let weight = select(0.0, exp(score - above), s < t);
        weights[lane] = weight;
        let shrink = exp(most - above);
        sum = sum * shrink + reduce_sum(lane, weight); // its barriers let every lane see all weights
        most = above;
        let count = min(WORKGROUP, t - first);
        for (var j = 0u; j < OUTS; j++) {
            let v = first * row + 2u * part + head + min(channel + j * CHANNELS, HSV - 1u);
            var total = o[j] * shrink;
            for (var key = first_key; key < count; key += PARTS) { total += weights[key] * cache[v + key * row]; }
            o[j] = total;
        }
    }

    let inverse = 1.0 / sum;
    for (var j = 0u; j < OUTS; j++) {
        sums[lane] = o[j];
        workgroupBarrier();
        let c = channel + j * CHANNELS;
        if first_key == 0u && c < HSV {
            var total = sums[channel];
            for (var i = 1u; i < PARTS; i++) { total += sums[channel + i * CHANNELS]; }
            out[head + c] = total * inverse;
        }
        workgroupBarrier(); // before the next Vec takes the place of this one
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward_alone(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) lane: u32) {
    let h = group_index(group, groups);
    if h >= params.heads { return; }
    let part = params.heads * HSV;
    let row = 3u * part;
    let head = h * HSV;
    let t = min(at[0], params.positions - 1u);

    var q: array<Vec, HSV>;
    var o: array<Vec, HSV>;
    var own = Vec();
    for (var i = 0u; i < HSV; i++) {
        q[i] = fresh[head + i] * params.scale;
        o[i] = fresh[2u * part + head + i];
        own += q[i] * fresh[part + head + i];
    }
    var most = sum_elements(own);
    var sum = 1.0;
    for (var first = 0u; first < t; first += 4u) {
        // past the end the last key is read again and masked away
        let key = min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(t - 1u)) * row + part + head;
        var a = Vec();
        var b = Vec();
        var c = Vec();
        var d = Vec();
        for (var i = 0u; i < HSV; i++) {
            a += q[i] * cache[key.x + i];
            b += q[i] * cache[key.y + i];
            c += q[i] * cache[key.z + i];
            d += q[i] * cache[key.w + i];
        }
        let inside = vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(t);
        let scores =
            select(vec4(LOW), vec4(sum_elements(a), sum_elements(b), sum_elements(c), sum_elements(d)), inside);
        let above = max(most, max(max(scores.x, scores.y), max(scores.z, scores.w)));
        let weight = select(vec4(0.0), exp(scores - above), inside);
        let shrink = exp(most - above);
        sum = sum * shrink + ((weight.x + weight.y) + (weight.z + weight.w));
        most = above;
        let value = key + part;
        for (var i = 0u; i < HSV; i++) {
            o[i] = o[i] * shrink + ((weight.x * cache[value.x + i] + weight.y * cache[value.y + i])
                + (weight.z * cache[value.z + i] + weight.w * cache[value.w + i]));
        }
    }
    if lane == 0u {
        let inverse = 1.0 / sum;
        for (var i = 0u; i < HSV; i++) {
            cache[t * row + part + head + i] = fresh[part + head + i];
            cache[t * row + 2u * part + head + i] = fresh[2u * part + head + i];
            out[head + i] = o[i] * inverse;
        }
    }
}
const HSV: u32 = 2u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 64u;
const OUTS: u32 = 1u;
