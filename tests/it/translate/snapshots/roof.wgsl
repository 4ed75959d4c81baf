// roof.copy, entry point copy, overrides [("WORKGROUP", 64.0)]
alias Scalar = f32;
alias Vec4 = vec4<f32>;
override WORKGROUP: u32 = 64u;
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// roof.wgsl: kernels that measure an adapter's peak rates, with which other kernels are compared. Not part of a model.
//   copy   out[i] = inp[i] (any number of vec4);  one invocation per ROUNDS vec4, WORKGROUP apart
//   fused  out[i] (f32) = the sum of 16 numbers to each of which x = x a + b is applied 8 ROUNDS times;  one invocation
//          per element; the 16 begin at 0, 1/16, 2/16, ... and change in as many independent chains
//   Scalar is f32 or f16, Vec4 four of them.
struct RoofImmediates { count: u32, rounds: u32, a: f32, b: f32 }
var<immediate> params: RoofImmediates;

@group(0) @binding(0) var<storage, read> inp: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let first = group_index(group, groups) * WORKGROUP * params.rounds + lane;
    for (var round = 0u; round < params.rounds; round++) {
        let i = first + round * WORKGROUP;
        if i < params.count { out[i] = inp[i]; }
    }
}

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;

fn four(x: Vec4, a: Vec4, b: Vec4) -> Vec4 { return fma(fma(fma(fma(x, a, b), a, b), a, b), a, b); }

@compute @workgroup_size(WORKGROUP)
fn fused(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    let a = Vec4(Scalar(params.a));
    let b = Vec4(Scalar(params.b));
    var x0 = Vec4(0.0, 0.0625, 0.125, 0.1875);
    var x1 = Vec4(0.25, 0.3125, 0.375, 0.4375);
    var x2 = Vec4(0.5, 0.5625, 0.625, 0.6875);
    var x3 = Vec4(0.75, 0.8125, 0.875, 0.9375);
    for (var round = 0u; round < params.rounds; round++) {
        // eight steps per iteration, so that the loop itself costs little
        x0 = four(four(x0, a, b), a, b);
        x1 = four(four(x1, a, b), a, b);
        x2 = four(four(x2, a, b), a, b);
        x3 = four(four(x3, a, b), a, b);
    }
    let sum = vec4<f32>(x0) + vec4<f32>(x1) + vec4<f32>(x2) + vec4<f32>(x3);
    sums[i] = (sum.x + sum.y) + (sum.z + sum.w);
}
