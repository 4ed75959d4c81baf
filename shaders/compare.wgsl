// tools/join-shader adds: shared/stub.wgsl
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
