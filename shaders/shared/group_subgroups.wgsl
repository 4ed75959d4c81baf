// tools/join-shader adds: shared/stub.wgsl shared/reduce.wgsl
// shared/group_subgroups.wgsl: a sum and a maximum over a workgroup of whole subgroups, by subgroup operations
struct Invocation { @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) place: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.subgroup * SUBGROUP + invocation.place; }

// Maps floats to integers in the same order, because some GPUs have one instruction for a subgroup's maximum only of
// integers.
fn ordered(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
}
fn from_ordered(x: u32) -> f32 { return bitcast<f32>(x ^ select(0xffffffffu, 0x80000000u, x >= 0x80000000u)); }

var<workgroup> group_maxima: array<u32, WORKGROUP>; // of each subgroup
var<workgroup> group_sums: array<f32, WORKGROUP>;

// Every invocation must call each of these once, because they contain a barrier. After it every subgroup combines all
// results.
fn group_max(lane: u32, x: f32) -> f32 {
    let of_subgroup = subgroupMax(ordered(x));
    if lane % SUBGROUP == 0u { group_maxima[lane / SUBGROUP] = of_subgroup; }
    workgroupBarrier();
    var most = 0u;
    for (var i = lane % SUBGROUP; i < WORKGROUP / SUBGROUP; i += SUBGROUP) { most = max(most, group_maxima[i]); }
    return from_ordered(subgroupMax(most));
}

fn group_sum(lane: u32, x: f32) -> f32 {
    let of_subgroup = subgroupAdd(x);
    if lane % SUBGROUP == 0u { group_sums[lane / SUBGROUP] = of_subgroup; }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = lane % SUBGROUP; i < WORKGROUP / SUBGROUP; i += SUBGROUP) { sum += group_sums[i]; }
    return subgroupAdd(sum);
}
