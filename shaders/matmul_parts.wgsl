// matmul_parts.wgsl: dweight[i] += sum over parts of partials[part, i], in order
//   partials (parts, count V);  dweight (count V);  one invocation per V of dweight
struct P {
    count: u32,   // number of V
    parts: u32,
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> partials: array<V>;
@group(0) @binding(1) var<storage, read_write> dweight: array<V>;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
       @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    var sum = V();
    for (var part = 0u; part < p.parts; part++) { sum += partials[part * p.count + i]; }
    dweight[i] += sum;
}
