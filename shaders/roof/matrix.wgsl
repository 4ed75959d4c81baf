// tools/join-shader adds: shared/stub_matrices.wgsl shared/reduce.wgsl
// roof/matrix.wgsl: measures an adapter's peak rate of products of cooperative matrices, with all operands in
// registers.
//   operands (4 EDGE, EDGE) f16: a0, a1, b0, b1, each EDGE x EDGE;  out (4 groups EDGE, EDGE) f32
//   matrix   one workgroup of one subgroup per four tiles of out: ROUNDS times a0 b0, a0 b1, a1 b0, a1 b1
// MatrixA, MatrixB and MatrixC are matrices of EDGE x EDGE. src/ops/roof/fed.rs feeds the same products from workgroup
// memory.
struct RoofMatrixImmediates { groups: u32, rounds: u32 }
var<immediate> params: RoofMatrixImmediates;

@group(0) @binding(0) var<storage, read> operands: array<f16>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn matrix(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    // group_index() cannot be used: naga assumes that a function's arguments differ between invocations
    let index = group.y * groups.x + group.x;
    if index >= params.groups { return; }
    let a0 = coopLoadT<MatrixA>(&operands[0], EDGE);
    let a1 = coopLoadT<MatrixA>(&operands[EDGE * EDGE], EDGE);
    let b0 = coopLoadT<MatrixB>(&operands[2u * EDGE * EDGE], EDGE);
    let b1 = coopLoadT<MatrixB>(&operands[3u * EDGE * EDGE], EDGE);
    var c00 = MatrixC();
    var c01 = MatrixC();
    var c10 = MatrixC();
    var c11 = MatrixC();
    for (var round = 0u; round < params.rounds; round++) {
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
    }
    // naga emits the arguments of a store in the wrong order unless each has a name
    let first = 4u * index * EDGE * EDGE;
    let second = first + EDGE * EDGE;
    let third = second + EDGE * EDGE;
    let fourth = third + EDGE * EDGE;
    let r00 = c00;
    let r01 = c01;
    let r10 = c10;
    let r11 = c11;
    coopStoreT(r00, &out[first], EDGE);
    coopStoreT(r01, &out[second], EDGE);
    coopStoreT(r10, &out[third], EDGE);
    coopStoreT(r11, &out[fourth], EDGE);
}
