// tools/join-shader adds: shared/stub.wgsl shared/reduce.wgsl
// shared/teams_tree.wgsl: teams of TEAM neighbouring invocations, a power of two, which add up by a tree in workgroup
// memory
struct Invocation { @builtin(local_invocation_index) lane: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.lane; }
fn team_of(lane: u32) -> u32 { return lane / TEAM; }

// Every invocation must call it, because it contains barriers.
fn reduce_team(lane: u32, slot: u32, x: vec2<f32>) -> vec2<f32> { return reduce_pairs(lane, TEAM, x); }
