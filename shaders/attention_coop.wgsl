// tools/join-shader adds: shared/stub_matrices.wgsl shared/attention.wgsl
// attention_coop.wgsl: causal attention of f16 on matrix units: the shared part of its kernels.
// src/ops/attention/coop.rs explains the method. src/ops/attention/generate writes the entry points, their sizes and
// tiles (see shared/stub_matrices.wgsl).
//   A workgroup has ROWS rows of one head, whose f16 matrices stay in registers, and iterates over blocks of COLUMNS:
//   forward       rows are queries, columns keys;  weights = exp(score - most);  out += weights v
//   backward_q    rows are queries, columns keys;  dscores = weights (dout v - delta);  dq += dscores k;  before that
//                 delta = dout . out
//   backward_kv   rows are keys, columns queries;  dv += weights dout;  dk += dscores q
//   qkv, dqkv (B, T, 3, NH, HS);  out, dout (B, T, NH, HS);  lse, delta (B, NH, T)
//   Positions past the end are loaded as the last one. Only rows that are not stored see such keys, and the weights of
//   such queries are 0.
@group(0) @binding(0) var<storage, read> qkv: array<Half8>;
@group(0) @binding(1) var<storage, read_write> out: array<Half8>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(1) var<storage, read> dout: array<Half8>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<Half8>;

@group(0) @binding(3) var<storage, read_write> delta_out: array<f32>;
@group(0) @binding(5) var<storage, read> out_in: array<Half8>;

const EXPONENT = 1.4426950408889634 * SCALE; // exp(SCALE x) = exp2(EXPONENT x)
const INVERSE_SCALE = 1.0 / SCALE;
const LAZY_GROWTH = 8.0; // largest excess of a score over its row's reference; exp(8) is far below the largest f16

// Sums of scores begin with `score_starts`, minus the reference of each query. The reference is a score near the row's
// largest in the forward pass and lse in the backward pass. Sums of dout v begin with `slope_starts`, minus delta.
// Queries are rows, or columns where rows are keys. Scores are not scaled; the scale is in EXPONENT.
var<workgroup> score_starts: array<f32, STARTS>;
var<workgroup> slope_starts: array<f32, STARTS>;
var<workgroup> delta_parts: array<f32, ROWS * DELTA_PARTS>;

// For a loop over `count` pieces, one per invocation in each iteration: the number of iterations, and whether the last
// is incomplete. Drivers unroll a constant number of iterations; for `piece < count` they emit the body twice, with
// branches.
fn turns(count: u32) -> u32 { return (count + THREADS - 1u) / THREADS; }
fn uneven(count: u32) -> bool { return count % THREADS != 0u; }

// Index of the first Half8 of a position's q (part 0), k (1) or v (2), and of its out.
fn qkv_at(at: Place, t: u32, part: u32) -> u32 {
    return (((at.b * params.positions + t) * 3u + part) * params.heads + at.h) * (HEAD_SIZE / 8u);
}
fn out_at(at: Place, t: u32) -> u32 { return ((at.b * params.positions + t) * params.heads + at.h) * (HEAD_SIZE / 8u); }

fn qkv_piece(at: Place, t: u32, part: u32, c: u32) -> Half8 {
    return qkv[qkv_at(at, min(t, params.positions - 1u), part) + c];
}
fn dout_piece(at: Place, t: u32, c: u32) -> Half8 { return dout[out_at(at, min(t, params.positions - 1u)) + c]; }

// Returns the part of a row's sum of dout out that invocation `part` of DELTA_PARTS computes.
fn delta_part(at: Place, row: u32, part: u32) -> vec4<f32> {
    let start = out_at(at, min(at.first + row, params.positions - 1u));
    var sum = vec4(0.0);
    for (var turn = 0u; turn < (HEAD_SIZE / 8u + DELTA_PARTS - 1u) / DELTA_PARTS; turn++) {
        let c = part + turn * DELTA_PARTS;
        if HEAD_SIZE / 8u % DELTA_PARTS != 0u && c >= HEAD_SIZE / 8u { break; }
        let d = dout[start + c];
        let o = out_in[start + c];
        sum += vec4<f32>(d.low) * vec4<f32>(o.low) + vec4<f32>(d.high) * vec4<f32>(o.high);
    }
    return sum;
}

// Sums dout out over rows: DELTA_PARTS invocations per row store their parts in `delta_parts`, then one adds them.
fn begin_delta(at: Place, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * DELTA_PARTS); turn++) {
        let item = thread + turn * THREADS;
        if uneven(ROWS * DELTA_PARTS) && item >= ROWS * DELTA_PARTS { break; }
        let four = delta_part(at, item / DELTA_PARTS, item % DELTA_PARTS);
        delta_parts[item] = (four.x + four.y) + (four.z + four.w);
    }
}
fn keep_delta(at: Place, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS); turn++) {
        let row = thread + turn * THREADS;
        if uneven(ROWS) && row >= ROWS { break; }
        var sum = 0.0;
        for (var part = 0u; part < DELTA_PARTS; part++) { sum += delta_parts[row * DELTA_PARTS + part]; }
        let t = at.first + row;
        score_starts[row] = -lse[at.statistics + min(t, params.positions - 1u)] * INVERSE_SCALE;
        slope_starts[row] = -sum;
        if t < params.positions { delta_out[at.statistics + t] = sum; }
    }
}

// Returns the growth of a row's reference, given the excess of its largest score: 0 unless the excess is above
// LAZY_GROWTH. In the first block the reference becomes the largest score, but never the value that masks keys: a row
// whose visible scores are all minus infinity has no weights.
fn growth_of(above: f32, begins: bool) -> f32 {
    return select(0.0, above, begins && above > 0.5 * LOW || above > LAZY_GROWTH * INVERSE_SCALE);
}

// Returns the initial values for a query's column: of its scores and of dout v.
fn column_starts(at: Place, t: u32) -> vec2<f32> {
    let index = at.statistics + min(t, params.positions - 1u);
    return vec2(select(LOW, -lse[index] * INVERSE_SCALE, t < params.positions), -delta[index]);
}

// Stores one piece of a line of the tiles: x, then y from line COLUMNS on.
fn put_piece(line: u32, c: u32, eight: Half8) {
    let i = line * TILE_STRIDE + c * 8u;
    put_tile(i, eight.low);
    put_tile(i + 4u, eight.high);
}
