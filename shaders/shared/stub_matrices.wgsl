// tools/join-shader adds: shared/widths/half8.wgsl
// shared/stub_matrices.wgsl: only for editors and tests, never part of a kernel: typical values of the names that the
// generators of kernels on matrix units write (src/ops/matrix_units.rs, src/ops/attention/generate, src/ops/roof)

// the matrices of the adapter
const EDGE = 16u;
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
alias MatrixH = coop_mat16x16<f16, C>;

// attention_coop: sizes of a workgroup
const HEAD_SIZE = 64u;
const ROWS = 64u;
const SUBGROUP_ROWS = 16u;      // rows of a subgroup
const COLUMNS = 32u;            // columns of a block
const PORTION = 32u;            // rows that pass through the tiles at once
const THREADS = 128u;
const DELTA_PARTS = 4u;         // invocations that share a row's sum of dout out
const STARTS = 64u;             // number of rows, or of columns where rows are keys
const TILE_STRIDE = 72u;        // elements from a line of the tiles to the next, including padding
const SCALE = 0.125;            // 1 / sqrt(HEAD_SIZE)
const ROWS_ARE_KEYS = false;

// attention_coop: position of a Half8 of the columns' tiles
fn line_of(piece: u32) -> u32 { return piece / 8u; }
fn place_in_line(piece: u32) -> u32 { return piece % 8u; }

// attention_coop: tiles in workgroup memory, of vectors as here or of scalars. i counts elements and is a multiple of
// 4.
var<workgroup> tiles: array<vec4<f16>, 1152>;   // x, then y
fn tile_at(i: u32) -> vec4<f16> { return tiles[i / 4u]; }
fn put_tile(i: u32, four: vec4<f16>) { tiles[i / 4u] = four; }
var<workgroup> weights: array<vec4<f16>, 640>;
var<workgroup> dscores: array<vec4<f16>, 640>;

// attention_elements
const SPILLED_STRIDE = 20u;
var<workgroup> spilled: array<vec4<f32>, 320>;  // one matrix for each row
fn spilled_at(i: u32) -> vec4<f32> { return spilled[i / 4u]; }
fn put_spilled(i: u32, four: vec4<f32>) { spilled[i / 4u] = four; }
const MASK_STRIDE = 52u;
var<workgroup> mask: array<vec4<f32>, 208>;     // windows of EDGE columns hide nothing, half or all
fn mask_at(i: u32) -> vec4<f32> { return mask[i / 4u]; }
fn put_mask(i: u32, four: vec4<f32>) { mask[i / 4u] = four; }

// attention_sums
const GRID_N = 1u;              // subgroups that share rows: each has its part of the columns, then of the head
const SUMS_STRIDE = 36u;
const WEIGHTS_STRIDE = 40u;
var<workgroup> sums: array<vec4<f32>, 576>;
fn sum_at(i: u32) -> vec4<f32> { return sums[i / 4u]; }
fn put_sum(i: u32, four: vec4<f32>) { sums[i / 4u] = four; }
var<workgroup> slopes: array<vec4<f32>, 576>;
fn slope_at(i: u32) -> vec4<f32> { return slopes[i / 4u]; }
fn put_slope(i: u32, four: vec4<f32>) { slopes[i / 4u] = four; }
fn put_weights(i: u32, four: vec4<f16>) { weights[i / 4u] = four; }
fn put_dscores(i: u32, four: vec4<f16>) { dscores[i / 4u] = four; }
