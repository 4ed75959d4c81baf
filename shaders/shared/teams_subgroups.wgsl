// tools/join-shader adds: shared/stub.wgsl shared/reduce.wgsl
// shared/teams_subgroups.wgsl: teams of TEAM neighbouring invocations, whole subgroups, that add up by subgroups. Here
// WORKGROUP is any multiple of TEAM.
const SUBGROUPS = TEAM / SUBGROUP; // of a team
struct Invocation { @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) place: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.subgroup * SUBGROUP + invocation.place; }

// By a product and a shift: NVIDIA's compiler has mistaken places in workgroup memory that came from a division by a
// number that is no power of two.
fn team_of(lane: u32) -> u32 { return (lane / SUBGROUP * ((65535u + SUBGROUPS) / SUBGROUPS)) >> 16u; }

var<workgroup> subgroup_sums: array<vec2<f32>, WORKGROUP>; // two slots, of which each needs a WORKGROUP / SUBGROUP

// Every invocation must call it: it holds a barrier. Calls that follow each other must use slots 0 and 1 in turn: the
// barrier of one tells that all have read the slot of the one before.
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
