// tools/join-shader adds: shared/stub.wgsl shared/gelu.wgsl
// gelu.wgsl: out = GELU(inp); shared/gelu.wgsl has the formula
//   inp, out, dout (any number of Stored)
//   forward    one invocation per Stored
//   backward   one invocation per Stored; dout *= derivative(inp), in place: dout becomes dinp
struct GeluImmediates { count: u32 } // number of Stored
var<immediate> params: GeluImmediates;

@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let x = inp[i];
    var y: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { y[k] = gelu(unpack(x, k)); }
    out[i] = pack(y[0], y[VECS_PER_STORED - 1u]);
}

@group(0) @binding(1) var<storage, read_write> dout: array<Stored>;

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let x = inp[i];
    let d = dout[i];
    var dx: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { dx[k] = unpack(d, k) * gelu_slope(unpack(x, k)); }
    dout[i] = pack(dx[0], dx[VECS_PER_STORED - 1u]);
}
