// attention_step.forward.hsv2.channels2.parts64.outs1, entry point forward, overrides [("WG", 128.0)]
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
// attention_step.wgsl: attention of one new position, whose keys and values join those kept of all before it
//   fresh (3, NH, HS): q, k, v of position t;  cache (T, 3, NH, HS): rows 0..t-1 are read, k and v of row t written
//   out (NH, HS): out = sum over s <= t of softmax(scale q . k[s]) v[s];  at (1) u32: t
//   forward   one workgroup per head. WG keys at a time: a lane is a key for the scores, then a V of the output for the
//             sums. With more lanes than the output has V, each run of CHANNELS lanes sums every PARTS-th key.
//   forward_alone   the same for software adapters: every lane does all the work of a head. A load at an address that all
//             lanes share is one scalar load there, any other is a slow gather; four keys at a time share two exponentials
//   The head size arrives as `const HSV`, its number of V; CHANNELS is a power of two, PARTS = WG / CHANNELS, and a lane
//   has OUTS V of the output.
struct P {
    positions: u32,   // T, rows of the cache
    heads: u32,
    scale: f32,       // 1 / sqrt(HS)
}
var<immediate> p: P;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

var<workgroup> weights: array<f32, WG>;
var<workgroup> sums: array<V, WG>;

@group(0) @binding(0) var<storage, read> fresh: array<V>;
@group(0) @binding(1) var<storage, read> at: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<V>;
@group(0) @binding(3) var<storage, read_write> out: array<V>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let h = group_index(group, groups);
    if h >= p.heads { return; }
    let part = p.heads * HSV; // from q to k, and from k to v
    let row = 3u * part;
    let head = h * HSV;
    let t = min(at[0], p.positions - 1u);

    // The new position is never read back from the cache: no other lane has to see what is written here.
    for (var turn = 0u; turn < (HSV + WG - 1u) / WG; turn++) {
        let i = lane + turn * WG;
        if i < HSV {
            cache[t * row + part + head + i] = fresh[part + head + i];
            cache[t * row + 2u * part + head + i] = fresh[2u * part + head + i];
        }
    }
    var q: array<V, HSV>;
    var own = V();
    for (var i = 0u; i < HSV; i++) {
        q[i] = fresh[head + i] * p.scale;
        own += q[i] * fresh[part + head + i];
    }
    var most = sum_v(own);
    var sum = 1.0;
    let channel = lane % CHANNELS;
    let first_key = lane / CHANNELS;
    var o: array<V, OUTS>;
    for (var j = 0u; j < OUTS; j++) {
        let c = min(channel + j * CHANNELS, HSV - 1u);
        o[j] = select(V(), fresh[2u * part + head + c], first_key == 0u);
    }

    for (var first = 0u; first < t; first += WG) {
        let s = first + lane;
        let k = min(s, t - 1u) * row + part + head; // past the end the last key is read again and masked away
        var products = V();
        for (var i = 0u; i < HSV; i++) { products += q[i] * cache[k + i]; }
        let score = select(LOW, sum_v(products), s < t);
        let above = max(most, reduce_max(lane, score));
        let weight = select(0.0, exp(score - above), s < t);
        weights[lane] = weight;
        let shrink = exp(most - above);
        sum = sum * shrink + reduce_sum(lane, weight); // its barriers let every lane see all weights
        most = above;
        let count = min(WG, t - first);
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
        workgroupBarrier(); // before the next V takes the place of this one
    }
}

@compute @workgroup_size(WG)
fn forward_alone(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) lane: u32) {
    let h = group_index(group, groups);
    if h >= p.heads { return; }
    let part = p.heads * HSV;
    let row = 3u * part;
    let head = h * HSV;
    let t = min(at[0], p.positions - 1u);

    var q: array<V, HSV>;
    var o: array<V, HSV>;
    var own = V();
    for (var i = 0u; i < HSV; i++) {
        q[i] = fresh[head + i] * p.scale;
        o[i] = fresh[2u * part + head + i];
        own += q[i] * fresh[part + head + i];
    }
    var most = sum_v(own);
    var sum = 1.0;
    for (var first = 0u; first < t; first += 4u) {
        // past the end the last key is read again and masked away
        let key = min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(t - 1u)) * row + part + head;
        var a = V();
        var b = V();
        var c = V();
        var d = V();
        for (var i = 0u; i < HSV; i++) {
            a += q[i] * cache[key.x + i];
            b += q[i] * cache[key.y + i];
            c += q[i] * cache[key.z + i];
            d += q[i] * cache[key.w + i];
        }
        let inside = vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(t);
        let scores = select(vec4(LOW), vec4(sum_v(a), sum_v(b), sum_v(c), sum_v(d)), inside);
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
