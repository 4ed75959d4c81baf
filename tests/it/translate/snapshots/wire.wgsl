// wire.narrow.bf16, entry point narrow, overrides [("WORKGROUP", 64.0)]
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
// shared/step.wgsl: the state that stays on the GPU from step to step, and a step's hyperparameters from the host.
// src/ops/stepcontrol.rs has the same structs.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // factor of gradients: removes their unit and clips them
    reserved: u32,         // keeps the layout of checkpoints
    loss_scale: f32,       // factor of gradients, a power of two; 1 in f32
    clean_steps: u32,      // updates since the loss scale last changed
}
struct Hyper {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,             // largest gradient norm; 0 disables clipping
    inverse_tokens: f32,   // 1 / tokens of a step, which turns the sum of losses into the mean
    step: u32,
    grad_unit: f32,        // factor of gradients, in addition to the state's loss scale
    dynamic: u32,          // 1 if the loss scale is dynamic: overflows halve it
    skip_loss_z: f32,      // largest z-score of a loss, above which a step is skipped; 0 disables it
    skip_norm_z: f32,      // the same for the gradient norm
}
// wire.wgsl: conversion of gradients to the 16 bits that devices send: bf16, or f16 after scaling to its range
//   narrow   packed = wide * scale / loss scale, rounded to the nearest, ties to even;
//            wide (count vec4);  packed (count vec2)
//   widen    the conversion back;  one invocation per vec4
// Except for products with powers of two the arithmetic is on integers, because adapters differ in denormal numbers,
// NaN and division. Values beyond the format's range become infinite, and infinity and NaN are kept, so that the norm
// becomes non-finite. Each format sets MANTISSA (bits), BIAS (of the exponent), and TINY_STEP, the distance of its
// denormal numbers, with its inverse TINY_STEPS; both are 0 in bf16, whose denormal numbers become zero.
const SHIFT = 23u - MANTISSA;                              // number of bits of an f32 that are dropped
const LEAST = (128u - BIAS) << 23u;                        // bits of the smallest normal number, as f32
const REBASE = (127u - BIAS) << MANTISSA;
const NOT_FINITE = (2u * BIAS + 1u) << MANTISSA;           // the exponent of infinity

struct WireImmediates {
    count: u32,    // number of vec4
    scale: f32,    // a power of two
}
var<immediate> params: WireImmediates;

@group(0) @binding(0) var<storage, read> wide: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: State;
@group(0) @binding(2) var<storage, read_write> packed: array<vec2<u32>>;

// Returns a / b of powers of two exactly, because a division may round.
fn quotient(a: f32, b: f32) -> f32 { return bitcast<f32>(bitcast<u32>(a) - bitcast<u32>(b) + 0x3f800000u); }

fn to_half(value: f32, factor: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size >= 0x7f800000u { return sign | NOT_FINITE | select(0u, 1u << (MANTISSA - 1u), size > 0x7f800000u); }
    let scaled = bitcast<u32>(value * factor) & 0x7fffffffu;
    let tiny = u32(round(bitcast<f32>(scaled) * TINY_STEPS));
    let rounded = (scaled + (1u << (SHIFT - 1u)) - 1u + ((scaled >> SHIFT) & 1u)) >> SHIFT;
    return sign | select(min(rounded - REBASE, NOT_FINITE), tiny, scaled < LEAST);
}

@compute @workgroup_size(WORKGROUP)
fn narrow(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let factor = quotient(params.scale, state.loss_scale);
    let four = wide[i];
    packed[i] = vec2(to_half(four.x, factor) | (to_half(four.y, factor) << 16u),
                     to_half(four.z, factor) | (to_half(four.w, factor) << 16u));
}

@group(0) @binding(0) var<storage, read> sent: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

fn from_half(half: u32, factor: f32) -> f32 {
    let size = half & 0x7fffu;
    let sign = (half & 0x8000u) << 16u;
    if size >= NOT_FINITE { return bitcast<f32>(sign | 0x7f800000u | ((size - NOT_FINITE) << SHIFT)); }
    let normal = bitcast<f32>((size + REBASE) << SHIFT);
    let value = select(normal, f32(size) * TINY_STEP, size < (1u << MANTISSA));
    return bitcast<f32>(bitcast<u32>(value * factor) | sign);
}

@compute @workgroup_size(WORKGROUP)
fn widen(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let factor = quotient(state.loss_scale, params.scale);
    let two = sent[i];
    out[i] = vec4(from_half(two.x & 0xffffu, factor), from_half(two.x >> 16u, factor),
                  from_half(two.y & 0xffffu, factor), from_half(two.y >> 16u, factor));
}
const MANTISSA = 7u;
const BIAS = 127u;
const TINY_STEPS = 0.0;
const TINY_STEP = 0.0;
