// tools/join-shader adds: shared/stub.wgsl
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
