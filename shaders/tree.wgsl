// tools/join-shader adds: shared/stub.wgsl
// tree.wgsl: left += right, one addition of the tree that sums over ranks
//   left, right (any number of Vec);  one invocation per Vec
struct TreeImmediates { count: u32 } // number of Vec
var<immediate> params: TreeImmediates;

@group(0) @binding(0) var<storage, read_write> left: array<Vec>;
@group(0) @binding(1) var<storage, read> right: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
       @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    left[i] = left[i] + right[i];
}
