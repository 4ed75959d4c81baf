// tools/join-shader adds: shared/stub.wgsl
// gradnorm.wgsl: the sum of squares of gradients, first stage of two; stepcontrol.wgsl has the second.
//   grads (count Vec);  partials (groups): one sum per workgroup, from `first` on
struct GradnormImmediates {
    count: u32,    // number of Vec
    first: u32,    // index of this window's first sum
    groups: u32,   // number of workgroups of this window
    share: u32,    // number of Vec that a workgroup sums
}
var<immediate> params: GradnormImmediates;

@group(0) @binding(0) var<storage, read> grads: array<Vec>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let g = group_index(group, groups);
    if g >= params.groups { return; }
    // a workgroup's share is contiguous in memory, for pages and caches
    let end = min(params.count, (g + 1u) * params.share);
    // two sums, for shorter chains of additions and a smaller rounding error
    var s0 = Vec();
    var s1 = Vec();
    var i = g * params.share + lane;
    for (; i + WORKGROUP < end; i += 2u * WORKGROUP) {
        let a = grads[i];
        let b = grads[i + WORKGROUP];
        s0 += a * a;
        s1 += b * b;
    }
    if i < end {
        let a = grads[i];
        s0 += a * a;
    }
    let total = reduce_sum(lane, sum_elements(s0 + s1));
    if lane == 0u { partials[params.first + g] = total; }
}
