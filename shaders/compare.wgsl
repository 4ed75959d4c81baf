// tools/join-shader adds: shared/stub.wgsl
// compare.wgsl: two tensors against each other
//   forward   bits, for runs that must repeat: one invocation per word
//             first, again (any number of words);  result: words that differ so far, and the lowest index among them
//   near      numbers within a tolerance: one invocation per EACH elements
//             got (rows, LINE) f32 or f16, want (rows, LINE) f32;  result: elements so far that are far from what is wanted,
//             the lowest index among them, and elements that are not zero
//   Counting is exact in any order, so atomics on integers do no harm here.
override HALF: bool = false;    // got holds f16, two in a word
const EACH = 64u;

struct CompareImmediates { count: u32 }
var<immediate> params: CompareImmediates;

struct CompareNearImmediates {
    count: u32,           // elements of this window
    base: u32,            // index of its first
    line: u32,            // elements of a row
    first_column: u32,    // of the columns that are compared
    end_column: u32,
    tolerance: f32,       // |got - want| may be this
    stored: f32,          // and this times |want|
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

// An f16 as f32, all of whose numbers but subnormal ones are whole there; infinity and NaN become large numbers.
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
