// tools/join-shader adds: shared/stub.wgsl
// bias.wgsl: the gradient of a bias, dbias[c] += sum over n of dout[n,c]
//   dout (N, C);  dbias (C)
//   backward   one invocation per Stored of a row and block of rows; writes partial sums, which sums.wgsl adds to dbias
struct BiasImmediates {
    rows: u32,
    columns: u32,      // Stored of a row
    block_rows: u32,
    blocks: u32,
}
var<immediate> params: BiasImmediates;

@group(0) @binding(0) var<storage, read> dout: array<Stored>;
@group(0) @binding(1) var<storage, read_write> block_sums: array<Vec>; // (blocks, C)

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    let block = i / params.columns;
    let c = i - block * params.columns;
    if block >= params.blocks { return; }
    var sums: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { sums[k] = Vec(); }
    let end = min(params.rows, (block + 1u) * params.block_rows);
    for (var n = block * params.block_rows; n < end; n++) {
        let d = dout[n * params.columns + c];
        for (var k = 0u; k < VECS_PER_STORED; k++) { sums[k] += unpack(d, k); }
    }
    for (var k = 0u; k < VECS_PER_STORED; k++) { block_sums[i * VECS_PER_STORED + k] = sums[k]; }
}
