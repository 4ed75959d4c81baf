// compare.forward, entry point forward, overrides [("WG", 64.0)]
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
// compare.wgsl: two tensors against each other
//   forward   bits, for runs that must repeat: one invocation per word
//             first, again (any number of words);  result: words that differ so far, and the lowest index among them
//   near      numbers within a tolerance: one invocation per EACH elements
//             got (rows, LINE) f32 or f16, want (rows, LINE) f32;  result: elements so far that are far from what is wanted,
//             the lowest index among them, and elements that are not zero
//   Counting is exact in any order, so atomics on integers do no harm here.
override HALF: bool = false;    // got holds f16, two in a word
const EACH = 64u;

struct P { count: u32 }
var<immediate> p: P;

struct Near {
    count: u32,           // elements of this window
    base: u32,            // index of its first
    line: u32,            // elements of a row
    first_column: u32,    // of the columns that are compared
    end_column: u32,
    tolerance: f32,       // |got - want| may be this
    stored: f32,          // and this times |want|
}
var<immediate> near_p: Near;

@group(0) @binding(0) var<storage, read> first: array<u32>;
@group(0) @binding(1) var<storage, read> again: array<u32>;
@group(0) @binding(2) var<storage, read_write> result: array<atomic<u32>, 2>;

@group(0) @binding(1) var<storage, read> want: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>, 3>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    if first[i] != again[i] {
        atomicAdd(&result[0], 1u);
        atomicMin(&result[1], i);
    }
}

// An f16 as f32, all of whose numbers but subnormal ones are whole there; infinity and NaN become large numbers.
fn wide(half: u32) -> f32 {
    let exponent = (half >> 10u) & 31u;
    let mantissa = half & 1023u;
    let normal = bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u));
    let size = select(normal, f32(mantissa) * 5.9604645e-8, exponent == 0u);
    return select(size, -size, (half & 0x8000u) != 0u);
}

@compute @workgroup_size(WG)
fn near(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let start = group_index(group, groups) * WG * EACH + lane;
    var far = 0u;
    var lowest = 0xffffffffu;
    var nonzero = 0u;
    for (var turn = 0u; turn < EACH; turn++) {
        let i = start + turn * WG;
        if i >= near_p.count { break; }
        let column = i % near_p.line;
        if column < near_p.first_column || column >= near_p.end_column { continue; }
        let wanted = want[i];
        var value = 0.0;
        // compilers may assume that no number is infinite or NaN: their bits say so
        var finite = (wanted & 0x7f800000u) != 0x7f800000u;
        if HALF {
            let half = (first[i / 2u] >> (16u * (i % 2u))) & 0xffffu;
            value = wide(half);
            finite = finite && (half & 0x7c00u) != 0x7c00u;
            nonzero += u32((half & 0x7fffu) != 0u);
        } else {
            let word = first[i];
            value = bitcast<f32>(word);
            finite = finite && (word & 0x7f800000u) != 0x7f800000u;
            nonzero += u32((word & 0x7fffffffu) != 0u);
        }
        let close = abs(value - bitcast<f32>(wanted)) <= near_p.tolerance + near_p.stored * abs(bitcast<f32>(wanted));
        if !(finite && close) {
            far += 1u;
            lowest = min(lowest, near_p.base + i);
        }
    }
    if far > 0u {
        atomicAdd(&counts[0], far);
        atomicMin(&counts[1], lowest);
    }
    if nonzero > 0u { atomicAdd(&counts[2], nonzero); }
}
