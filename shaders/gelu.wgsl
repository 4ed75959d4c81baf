// gelu.wgsl: out = GELU(inp), of which shared/gelu.wgsl has the formula
//   inp, out, dout (any number of S)
//   forward    one invocation per S
//   backward   one invocation per S; dout *= derivative(inp), in place: dout becomes dinp
struct P { count: u32 } // number of S
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> inp: array<S>;
@group(0) @binding(1) var<storage, read_write> out: array<S>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    let x = inp[i];
    var y: array<V, K>;
    for (var k = 0u; k < K; k++) { y[k] = gelu(part(x, k)); }
    out[i] = whole(y[0], y[K - 1u]);
}

@group(0) @binding(1) var<storage, read_write> dout: array<S>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    let x = inp[i];
    let d = dout[i];
    var dx: array<V, K>;
    for (var k = 0u; k < K; k++) { dx[k] = part(d, k) * gelu_slope(part(x, k)); }
    dout[i] = whole(dx[0], dx[K - 1u]);
}
