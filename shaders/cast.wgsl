// cast.wgsl: between f32 and what is stored
//   forward   out = inp, rounded;  inp, out (count S);  one invocation per S
//   widen     wide[i] = stored[first + i];  stored (any number of S);  wide (count S);  one invocation per S
struct P {
    count: u32,   // number of S
    first: u32,
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> inp: array<V>;
@group(0) @binding(1) var<storage, read_write> out: array<S>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    out[i] = whole(inp[i * K], inp[i * K + K - 1u]);
}

@group(0) @binding(0) var<storage, read> stored: array<S>;
@group(0) @binding(1) var<storage, read_write> wide: array<V>;

@compute @workgroup_size(WG)
fn widen(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    let s = stored[p.first + i];
    for (var k = 0u; k < K; k++) { wide[i * K + k] = part(s, k); }
}
