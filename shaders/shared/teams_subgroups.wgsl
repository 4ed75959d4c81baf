// tools/join-shader adds: shared/stub.wgsl shared/reduce.wgsl
// shared/teams_subgroups.wgsl: teams of TEAM neighbouring invocations, whole subgroups, which add up by subgroup
// operations. Here WORKGROUP is any multiple of TEAM.
const SUBGROUPS = TEAM / SUBGROUP; // subgroups of a team
struct Invocation { @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) place: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.subgroup * SUBGROUP + invocation.place; }

// Divides by a product and a shift, because NVIDIA's compiler has used wrong addresses in workgroup memory where an
// index came from a division by anything but a power of two.
fn team_of(lane: u32) -> u32 { return (lane / SUBGROUP * ((65535u + SUBGROUPS) / SUBGROUPS)) >> 16u; }

var<workgroup> subgroup_sums: array<vec2<f32>, WORKGROUP>; // two slots, each of WORKGROUP / SUBGROUP elements

// Every invocation must call it, because it contains a barrier. Consecutive calls must alternate between slots 0 and 1:
// the barrier of one call guarantees that all invocations have read the slot of the previous call.
fn reduce_team(lane: u32, slot: u32, x: vec2<f32>) -> vec2<f32> {
    let sum = subgroupAdd(x);
    if SUBGROUPS == 1u { return sum; }
    let sums = slot * (WORKGROUP / SUBGROUP);
    if lane % SUBGROUP == 0u { subgroup_sums[sums + lane / SUBGROUP] = sum; }
    workgroupBarrier();
    var total = vec2(0.0);
    for (var i = 0u; i < SUBGROUPS; i++) { total += subgroup_sums[sums + team_of(lane) * SUBGROUPS + i]; }
    return total;
}
