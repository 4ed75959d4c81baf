// cast.forward.f16.wide, entry point forward, overrides [("WORKGROUP", 64.0)]
enable f16;
// shared/widths/vec4.wgsl: four f32 at a time, 16 bytes per access.
alias Vec = vec4<f32>;
alias UVec = vec4<u32>;
const ELEMENTS_PER_VEC = 4u;
fn sum_elements(v: Vec) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_element(v: Vec) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_product(a: Vec, b: Vec) -> f32 { return dot(a, b); }
fn columns_from(first: u32) -> UVec { return first + vec4(0u, 1u, 2u, 3u); } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v[i]; }
// shared/widths/half8.wgsl: eight neighbouring f16, 16 bytes, which an invocation loads or stores at once
struct Half8 { low: vec4<f16>, high: vec4<f16> }
// shared/widths/pair.wgsl: Stored, the unit of loads and stores, is two Vec: 16 bytes of f16
alias Stored = Half8;
const VECS_PER_STORED = 2u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(select(s.low, s.high, k == 1u)); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(vec4<f16>(first), vec4<f16>(last)); }
// shared/widths/half.wgsl: rounds an f32 to f16 and returns it as f32. It uses integers, because drivers remove a
// conversion to f16 and back.
fn as_stored(x: Vec) -> Vec {
    let bits = bitcast<UVec>(x);
    let odd = (bits >> UVec(13u)) & UVec(1u);
    let normal = bitcast<Vec>((bits + UVec(0xfffu) + odd) & UVec(0xffffe000u));
    // numbers below the smallest normal one are multiples of 2^-24
    return select(normal, round(x * 16777216.0) * 5.9604644775390625e-8, abs(x) < Vec(6.103515625e-5));
}
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
// cast.wgsl: conversions between f32 and the stored type
//   forward   out = inp, rounded;  inp, out (count Stored);  one invocation per Stored
//   widen     wide[i] = stored[first + i];  stored (any number of Stored);  wide (count Stored);  one invocation per
//             Stored
struct CastImmediates {
    count: u32,   // number of Stored
    first: u32,
}
var<immediate> params: CastImmediates;

@group(0) @binding(0) var<storage, read> inp: array<Vec>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    out[i] = pack(inp[i * VECS_PER_STORED], inp[i * VECS_PER_STORED + VECS_PER_STORED - 1u]);
}

@group(0) @binding(0) var<storage, read> stored: array<Stored>;
@group(0) @binding(1) var<storage, read_write> wide: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn widen(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let s = stored[params.first + i];
    for (var k = 0u; k < VECS_PER_STORED; k++) { wide[i * VECS_PER_STORED + k] = unpack(s, k); }
}
