// tools/join-shader adds: shared/stub.wgsl
// residual.wgsl: out = inp + branch. There is no backward, because both gradients are that of out.
//   inp, branch, out (any number of Vec);  one invocation per Vec
struct ResidualImmediates { count: u32 } // number of Vec
var<immediate> params: ResidualImmediates;

@group(0) @binding(0) var<storage, read> inp: array<Vec>;
@group(0) @binding(1) var<storage, read> branch: array<Vec>;
@group(0) @binding(2) var<storage, read_write> out: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    out[i] = inp[i] + branch[i];
}
