// compare.wgsl: bits of two tensors against each other, for runs that must repeat.
//   first, again (any number of words);  result: words that differ so far, and the lowest index among them
//   forward   one invocation per word. Counting is exact in any order, so atomics on integers do no harm here.
struct P { count: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> first: array<u32>;
@group(0) @binding(1) var<storage, read> again: array<u32>;
@group(0) @binding(2) var<storage, read_write> result: array<atomic<u32>, 2>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    if first[i] != again[i] {
        atomicAdd(&result[0], 1u);
        atomicMin(&result[1], i);
    }
}
