// tools/join-shader adds: shared/stub.wgsl shared/reduce.wgsl
// shared/group_tree.wgsl: a sum and a maximum over a workgroup, by a tree in workgroup memory
struct Invocation { @builtin(local_invocation_index) lane: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.lane; }

// Every invocation must call these, because they contain barriers.
fn group_max(lane: u32, x: f32) -> f32 { return reduce_max(lane, x); }
fn group_sum(lane: u32, x: f32) -> f32 { return reduce_sum(lane, x); }
