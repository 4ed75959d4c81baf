// residual.wgsl: out = inp + branch. Its gradient is the identity for both, so there is no backward.
//   inp, branch, out (any number of V);  one invocation per V
struct P { count: u32 } // number of V
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> inp: array<V>;
@group(0) @binding(1) var<storage, read> branch: array<V>;
@group(0) @binding(2) var<storage, read_write> out: array<V>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    out[i] = inp[i] + branch[i];
}
