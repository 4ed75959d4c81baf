// tools/join-shader adds: shared/stub.wgsl shared/group_tree.wgsl sums.wgsl
// sums_parts.wgsl: the kernels of sums.wgsl that add parts of a product
const NO_SQUARES = 0xffffffffu;

@group(0) @binding(0) var<storage, read> parts: array<Vec>;
@group(0) @binding(1) var<storage, read_write> dweight: array<Vec>;
@group(0) @binding(2) var<storage, read_write> squares: array<f32>;

fn sum_parts(block: u32, lane: u32) {
    let first = block * WORKGROUP * KEPT + lane;
    var before: array<Vec, KEPT>;
    var sums: array<Vec, KEPT>;
    for (var k = 0u; k < KEPT; k++) {
        before[k] = Vec();
        sums[k] = Vec();
    }
    let last = params.count - 1u; // read in place of elements past the end
    // read first, so that this load overlaps those of the parts
    if (params.adds & 1u) != 0u {
        for (var k = 0u; k < KEPT; k++) { before[k] = dweight[min(first + k * WORKGROUP, last)]; }
    }
    for (var part = 0u; part < params.parts; part++) {
        for (var k = 0u; k < KEPT; k++) { sums[k] += parts[part * params.count + min(first + k * WORKGROUP, last)]; }
    }
    var square = 0.0;
    for (var k = 0u; k < KEPT; k++) {
        let i = first + k * WORKGROUP;
        if i < params.count {
            let sum = before[k] + sums[k];
            dweight[i] = sum;
            square += dot_product(sum, sum);
        }
    }
    if params.first_square == NO_SQUARES { return; }
    let total = group_sum(lane, square);
    if lane == 0u { squares[params.first_square + block] = total; }
}

@compute @workgroup_size(WORKGROUP)
fn add_parts(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let number = group_index(group, groups);
    if number >= params.blocks { return; }
    sum_parts(number, lane_of(invocation));
}

@compute @workgroup_size(WORKGROUP)
fn add_both(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let number = group_index(group, groups);
    let lane = lane_of(invocation);
    if number < params.blocks {
        sum_parts(number, lane);
    } else {
        sum_rows(number - params.blocks, lane);
    }
}
