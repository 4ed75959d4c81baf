// sums.add.parts, entry point add_parts, overrides [("WORKGROUP", 128.0)]
// shared/widths/vec4.wgsl: four f32 at a time, 16 bytes per access.
alias Vec = vec4<f32>;
alias UVec = vec4<u32>;
const ELEMENTS_PER_VEC = 4u;
fn sum_elements(v: Vec) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_element(v: Vec) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_product(a: Vec, b: Vec) -> f32 { return dot(a, b); }
fn columns_from(first: u32) -> UVec { return first + vec4(0u, 1u, 2u, 3u); } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v[i]; }
alias Stored = Vec;
// shared/widths/single.wgsl: Stored, the unit of loads and stores, is one Vec
const VECS_PER_STORED = 1u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(s); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(first); }
fn as_stored(x: Vec) -> Vec { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the reduction over a workgroup, by a tree, so that the order of additions never changes.
override WORKGROUP: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

// Every invocation must call these, because they contain barriers. After the last barrier the scratch can be reused at
// once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}

fn reduce_max(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Computes two sums at once over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WORKGROUP>;
fn reduce_pairs(lane: u32, team: u32, x: vec2<f32>) -> vec2<f32> {
    pair_scratch[lane] = x;
    for (var half = team / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % team < half { pair_scratch[lane] += pair_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = pair_scratch[lane / team * team];
    workgroupBarrier();
    return total;
}
// sums.wgsl: adds partial sums to gradients, in a fixed order
//   parts (parts, count Vec);  dweight (count Vec): dweight[i] += sum over parts of parts[part, i]
//   squares: for each workgroup the sum of squares of the elements that it wrote to dweight
//   rows (rows, stride Vec), of which the first GRADIENTS * columns are used;  out0, out1, out2 (columns Vec):
//                                                   out_k[c] += sum over rows of rows[row, k * columns + c]
//   add_rows    out_k
//   add_parts   dweight: sums_parts.wgsl
//   add_both    dweight, and out_k in additional workgroups: sums_parts.wgsl
struct SumsImmediates {
    count: u32,        // Vec of dweight
    parts: u32,
    blocks: u32,       // workgroups that write dweight
    first_square: u32, // index of their first sum of squares, or NO_SQUARES if none are wanted
    rows: u32,
    stride: u32,       // Vec from a row to the next
    columns: u32,      // Vec of an out
    adds: u32,         // bits for dweight, out0, out1 and out2: 0 where they begin
}
var<immediate> params: SumsImmediates;

var<workgroup> shares: array<Vec, WORKGROUP>;

// SHARE invocations share a column. Each adds every SHARE-th row, then one adds their sums.
fn sum_rows(number: u32, lane: u32) {
    let across = WORKGROUP / SHARE;
    let runs = (params.columns + across - 1u) / across;
    let which = number / runs;
    let c = number % runs * across + lane % across;
    var sum = Vec();
    if c < params.columns && which < GRADIENTS {
        for (var row = lane / across; row < params.rows; row += SHARE) {
            sum += rows[row * params.stride + which * params.columns + c];
        }
    }
    shares[lane] = sum;
    workgroupBarrier();
    if lane >= across || c >= params.columns { return; }
    for (var share = 1u; share < SHARE; share++) { sum += shares[share * across + lane]; }
    put(which, c, sum, ((params.adds >> (which + 1u)) & 1u) != 0u); // the launcher writes GRADIENTS, rows, out_k and put
}

@compute @workgroup_size(WORKGROUP)
fn add_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    sum_rows(group_index(group, groups), lane);
}
@group(0) @binding(3) var<storage, read> rows: array<Vec>;
@group(0) @binding(4) var<storage, read_write> out0: array<Vec>;
fn put(which: u32, c: u32, sum: Vec, adds: bool) {
    var before = Vec();
    if which == 0u {
        if adds { before = out0[c]; }
        out0[c] = before + sum;
    }
}
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
const GRADIENTS: u32 = 1u;
const SHARE: u32 = 16u;
const KEPT: u32 = 2u;
// shared/group_tree.wgsl: a sum and a maximum over a workgroup, by a tree in workgroup memory
struct Invocation { @builtin(local_invocation_index) lane: u32 }
fn lane_of(invocation: Invocation) -> u32 { return invocation.lane; }

// Every invocation must call these, because they contain barriers.
fn group_max(lane: u32, x: f32) -> f32 { return reduce_max(lane, x); }
fn group_sum(lane: u32, x: f32) -> f32 { return reduce_sum(lane, x); }
