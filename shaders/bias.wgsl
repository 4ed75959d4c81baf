// bias.wgsl: the gradient of a bias, dbias[c] += sum over n of dout[n,c]
//   dout (N, C);  dbias (C)
//   backward_blocks   one invocation per S of a row and block of rows: partial sums
//   backward          adds the blocks' sums, in order, to dbias
struct P {
    rows: u32,
    columns: u32,      // S of a row; of `backward` V
    block_rows: u32,
    blocks: u32,
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> dout: array<S>;
@group(0) @binding(1) var<storage, read_write> block_sums: array<V>; // (blocks, C)

@compute @workgroup_size(WG)
fn backward_blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    let block = i / p.columns;
    let c = i - block * p.columns;
    if block >= p.blocks { return; }
    var sums: array<V, K>;
    for (var k = 0u; k < K; k++) { sums[k] = V(); }
    let end = min(p.rows, (block + 1u) * p.block_rows);
    for (var n = block * p.block_rows; n < end; n++) {
        let d = dout[n * p.columns + c];
        for (var k = 0u; k < K; k++) { sums[k] += part(d, k); }
    }
    for (var k = 0u; k < K; k++) { block_sums[i * K + k] = sums[k]; }
}

@group(0) @binding(0) var<storage, read> block_sums_in: array<V>;
@group(0) @binding(1) var<storage, read_write> dbias: array<V>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
    let c = group_index(group, groups) * WG + lane;
    if c >= p.columns { return; }
    var sum = V();
    for (var block = 0u; block < p.blocks; block++) { sum += block_sums_in[block * p.columns + c]; }
    dbias[c] += sum;
}
