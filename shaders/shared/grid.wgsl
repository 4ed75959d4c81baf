// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, since one dimension ends at 65,535 groups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
