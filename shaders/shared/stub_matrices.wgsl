// tools/join-shader adds: shared/widths/half8.wgsl
// shared/stub_matrices.wgsl: only for editors and tests, never part of a kernel: typical values of what the generators of
// kernels on matrix units write (src/ops/matrix_units.rs, src/ops/attention/generate.rs, src/ops/roof)

// the matrices of the adapter
const EDGE = 16u;
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
alias MatrixH = coop_mat16x16<f16, C>;

// attention_coop: sizes of a workgroup
const HEAD_SIZE = 64u;
const ROWS = 64u;
const COLUMNS = 32u;            // of a block
const THREADS = 128u;
const GRID_N = 1u;              // subgroups that share rows: each has its part of the columns, then of the head
const PARTS_PER_ROW = 2u;       // invocations that share a row of scores
const ROW_PARTS = 128u;         // ROWS * PARTS_PER_ROW
const QUERIES_KEPT = 64u;       // of whom log-sum-exp and delta are in workgroup memory
const TILE_STRIDE = 72u;        // elements from a line to the next, padding included: of x_tile and y_tile,
const SUMS_STRIDE = 36u;        // of sums and slopes,
const WEIGHTS_STRIDE = 40u;     // of weights and dscores

// attention_coop: where a Half8 of the columns' tiles belongs
fn line_of(piece: u32) -> u32 { return piece / 8u; }
fn place_in_line(piece: u32) -> u32 { return piece % 8u; }

// attention_coop: tiles in workgroup memory, of vectors as here or of scalars. i counts elements and is a multiple of 4.
var<workgroup> x_tile: array<vec4<f16>, 576>;
fn put_x(i: u32, four: vec4<f16>) { x_tile[i / 4u] = four; }
var<workgroup> y_tile: array<vec4<f16>, 576>;
fn put_y(i: u32, four: vec4<f16>) { y_tile[i / 4u] = four; }
var<workgroup> sums: array<vec4<f32>, 576>;
fn sum_at(i: u32) -> vec4<f32> { return sums[i / 4u]; }
fn put_sums(i: u32, four: vec4<f32>) { sums[i / 4u] = four; }
var<workgroup> slopes: array<vec4<f32>, 576>;
fn slope_at(i: u32) -> vec4<f32> { return slopes[i / 4u]; }
var<workgroup> weights: array<vec4<f16>, 640>;
fn put_weights(i: u32, four: vec4<f16>) { weights[i / 4u] = four; }
var<workgroup> dscores: array<vec4<f16>, 640>;
fn put_dscores(i: u32, four: vec4<f16>) { dscores[i / 4u] = four; }
