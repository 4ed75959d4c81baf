// tools/join-shader adds: shared/stub.wgsl
// matmul_parts.wgsl: dweight[i] += sum over parts of partials[part, i], in order; = where the gradient begins
//   partials (parts, count Vec);  dweight (count Vec);  one invocation per Vec of dweight
struct Params {
    count: u32,   // number of Vec
    parts: u32,
    adds: u32,    // 0 where dweight begins
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read> partials: array<Vec>;
@group(0) @binding(1) var<storage, read_write> dweight: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
       @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count { return; }
    // read first: it need not wait for the parts
    var before = Vec();
    if params.adds != 0u { before = dweight[i]; }
    var sum = Vec();
    for (var part = 0u; part < params.parts; part++) { sum += partials[part * params.count + i]; }
    dweight[i] = before + sum;
}
