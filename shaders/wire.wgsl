// tools/join-shader adds: shared/stub.wgsl shared/step.wgsl
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
