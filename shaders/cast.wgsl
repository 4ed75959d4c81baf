// tools/join-shader adds: shared/stub.wgsl
// cast.wgsl: conversions between f32 and the stored type
//   forward   out = inp, rounded;  inp, out (count Stored);  one invocation per Stored
//   widen     wide[i] = stored[first + i];  stored (any number of Stored);  wide (count Stored);  one invocation per
//             Stored
struct CastImmediates {
    count: u32,   // number of Stored
    first: u32,
}
var<immediate> params: CastImmediates;

@group(0) @binding(0) var<storage, read> inp: array<Vec>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    out[i] = pack(inp[i * VECS_PER_STORED], inp[i * VECS_PER_STORED + VECS_PER_STORED - 1u]);
}

@group(0) @binding(0) var<storage, read> stored: array<Stored>;
@group(0) @binding(1) var<storage, read_write> wide: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn widen(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let s = stored[params.first + i];
    for (var k = 0u; k < VECS_PER_STORED; k++) { wide[i * VECS_PER_STORED + k] = unpack(s, k); }
}
