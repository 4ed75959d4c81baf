// compare.forward, entry point forward, overrides [("WORKGROUP", 64.0)]
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
// compare.wgsl: comparisons of two tensors
//   forward   compares bits, for runs that must be reproducible: one invocation per word
//             first, again (any number of words);  result: number of words that differ so far, and the lowest index
//             among them
//   near      compares numbers within a tolerance: one invocation per EACH elements
//             got (rows, LINE) f32 or f16, want (rows, LINE) f32;  result: number of elements so far that are out of
//             tolerance, the lowest index among them, and number of nonzero elements
//   Counts are exact in any order, so integer atomics do no harm here.
override HALF: bool = false;    // got holds f16, two in a word
const EACH = 64u;

struct CompareImmediates { count: u32 }
var<immediate> params: CompareImmediates;

struct CompareNearImmediates {
    count: u32,           // number of elements in this window
    base: u32,            // index of its first element
    line: u32,            // elements per row
    first_column: u32,    // first of the columns that are compared
    end_column: u32,
    tolerance: f32,       // largest |got - want|, to which
    stored: f32,          // this times |want| is added
}
var<immediate> near_params: CompareNearImmediates;

@group(0) @binding(0) var<storage, read> first: array<u32>;
@group(0) @binding(1) var<storage, read> again: array<u32>;
@group(0) @binding(2) var<storage, read_write> result: array<atomic<u32>, 2>;

@group(0) @binding(1) var<storage, read> want: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>, 3>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    if first[i] != again[i] {
        atomicAdd(&result[0], 1u);
        atomicMin(&result[1], i);
    }
}

// Converts an f16 to f32, which is exact except for subnormal numbers; infinity and NaN become large numbers.
fn wide(half: u32) -> f32 {
    let exponent = (half >> 10u) & 31u;
    let mantissa = half & 1023u;
    let normal = bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u));
    let size = select(normal, f32(mantissa) * 5.9604645e-8, exponent == 0u);
    return select(size, -size, (half & 0x8000u) != 0u);
}

@compute @workgroup_size(WORKGROUP)
fn near(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let start = group_index(group, groups) * WORKGROUP * EACH + lane;
    var far = 0u;
    var lowest = 0xffffffffu;
    var nonzero = 0u;
    for (var turn = 0u; turn < EACH; turn++) {
        let i = start + turn * WORKGROUP;
        if i >= near_params.count { break; }
        let column = i % near_params.line;
        if column < near_params.first_column || column >= near_params.end_column { continue; }
        let wanted = want[i];
        var value = 0.0;
        // the test is on bits, because compilers may assume that no number is infinite or NaN
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
        let close = abs(value - bitcast<f32>(wanted))
            <= near_params.tolerance + near_params.stored * abs(bitcast<f32>(wanted));
        if !(finite && close) {
            far += 1u;
            lowest = min(lowest, near_params.base + i);
        }
    }
    if far > 0u {
        atomicAdd(&counts[0], far);
        atomicMin(&counts[1], lowest);
    }
    if nonzero > 0u { atomicAdd(&counts[2], nonzero); }
}
