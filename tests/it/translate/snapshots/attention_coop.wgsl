// attention_coop.forward.hs16.64x32.2x1.e16, entry point main, overrides []
enable f16;
enable wgpu_cooperative_matrix;
diagnostic(off, derivative_uniformity);
const EDGE = 16u;
const HEAD_SIZE = 16u;
const ROWS = 64u;
const SUBGROUP_ROWS = 32u;
const COLUMNS = 32u;
const PORTION = 32u;
const THREADS = 64u;
const DELTA_PARTS = 4u;
const STARTS = 64u;
const TILE_STRIDE = 24u;
const SCALE = 0.25; // 1 / sqrt(HEAD_SIZE)
const ROWS_ARE_KEYS = false;
const LAST_FIRST = true;
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
fn line_of(piece: u32) -> u32 { return piece / 2u; }
fn place_in_line(piece: u32) -> u32 { return piece % 2u; }
var<workgroup> tiles: array<vec4<f16>, 384>;
fn tile_at(i: u32) -> vec4<f16> { return tiles[i / 4u]; }
fn put_tile(i: u32, four: vec4<f16>) {
    tiles[i / 4u] = four;
}
var<workgroup> weights: array<vec4<f16>, 640>;
var<workgroup> dscores: array<vec4<f16>, 640>;
const SPILLED_STRIDE = 20u;
var<workgroup> spilled: array<vec4<f32>, 320>;
fn spilled_at(i: u32) -> vec4<f32> { return spilled[i / 4u]; }
fn put_spilled(i: u32, four: vec4<f32>) {
    spilled[i / 4u] = four;
}
const MASK_STRIDE = 52u;
var<workgroup> mask: array<vec4<f32>, 208>;
fn mask_at(i: u32) -> vec4<f32> { return mask[i / 4u]; }
fn put_mask(i: u32, four: vec4<f32>) {
    mask[i / 4u] = four;
}
alias MatrixH = coop_mat16x16<f16, C>;
// shared/attention.wgsl: the immediates of attention kernels, and the position of a workgroup
struct AttentionImmediates {
    positions: u32,    // T
    heads: u32,
    scale: f32,        // 1 / sqrt(HS)
    first: u32,        // a dispatch has workgroups `first` to `end` of those for all rows of all heads
    end: u32,
    first_head: u32,   // first head in lse and delta, which may begin before this dispatch's sequences
}
var<immediate> params: AttentionImmediates;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// The head, sequence and block of rows of a workgroup, if it has any, and the head's position in lse and delta.
struct Place { b: u32, h: u32, statistics: u32, first: u32, valid: bool }

// Returns the position for workgroups of `rows` rows. With `last_first` rows with the most keys come first.
fn place(index: u32, rows: u32, last_first: bool) -> Place {
    let group = params.first + index;
    let blocks = (params.positions + rows - 1u) / rows;
    let bh = group / blocks;
    let block = group % blocks;
    let first = select(block, blocks - 1u - block, last_first) * rows;
    return Place(bh / params.heads, bh % params.heads, (params.first_head + bh) * params.positions, first,
                 group < params.end);
}
// shared/widths/half8.wgsl: eight neighbouring f16, 16 bytes, which an invocation loads or stores at once
struct Half8 { low: vec4<f16>, high: vec4<f16> }
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
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/matrices.wgsl: conversions of every element. The SPIR-V pass `matrices` (src/gpu/spirv/matrices.rs) writes
// their bodies.
fn to_half(m: MatrixC) -> MatrixH { return MatrixH(); }
fn to_float(m: MatrixH) -> MatrixC { return MatrixC(); }
// attention_elements.wgsl: the step from scores to weights where kernels can compute with elements of matrices; see
// src/ops/attention/generate/elements.rs. A matrix of scores begins with minus the references of its rows or columns.

var<workgroup> growths: array<f32, STARTS>; // growth of rows' references; at the end factors of rows' results

// Returns the mask's window of EDGE columns for a matrix, given the distance of its first column from its first row, a
// multiple of EDGE. The window hides nothing, half or all of the matrix. It is selected instead of computed, because a
// workgroup's position comes from a division, and NVIDIA's compiler has miscompiled indices that do.
fn mask_column(beyond: i32) -> u32 { return select(select(0u, EDGE, beyond == 0), 2u * EDGE, beyond > 0); }
fn begin_mask(thread: u32) {
    for (var turn = 0u; turn < turns(EDGE * EDGE); turn++) {
        let item = thread + turn * THREADS;
        if uneven(EDGE * EDGE) && item >= EDGE * EDGE { break; }
        let r = item / EDGE;
        let c = item % EDGE;
        if c >= EDGE * 3u / 4u { continue; }
        let column = vec4(c * 4u) + vec4(0u, 1u, 2u, 3u);
        let hidden = select(column > vec4(r + EDGE), column < vec4(r + EDGE), ROWS_ARE_KEYS);
        put_mask(r * MASK_STRIDE + c * 4u, select(vec4(0.0), vec4(LOW), hidden));
    }
}

// Functions of elements, and functions of matrices, in which the SPIR-V pass `matrices` applies them to every element.
fn larger(x: f32, y: f32) -> f32 { return max(x, y); }
fn larger_of(m: MatrixC, other: MatrixC) -> MatrixC { _ = larger(0.0, 0.0); return m; }
fn largest(m: MatrixC) -> f32 { return larger(LOW, 0.0); }
fn product(x: f32, y: f32) -> f32 { return x * y; }
fn times(m: MatrixC, by: MatrixC) -> MatrixC { _ = product(0.0, 0.0); return m; }

// forward
fn weight(score: f32) -> f32 { return exp2(score * EXPONENT); }
fn weights_of(m: MatrixC) -> MatrixC { _ = weight(0.0); return m; }
fn factor(growth: f32) -> f32 { return exp2(-growth * EXPONENT); }
fn factors_of(m: MatrixC) -> MatrixC { _ = factor(0.0); return m; }

// backward, where the log-sum-exp is known
fn known_weight(score: f32) -> f32 { return saturate(exp2(score * EXPONENT)); }
fn known_weights_of(m: MatrixC) -> MatrixC { _ = known_weight(0.0); return m; }

fn begin_starts(thread: u32) {
    for (var turn = 0u; turn < turns(ROWS); turn++) {
        let row = thread + turn * THREADS;
        if uneven(ROWS) && row >= ROWS { break; }
        score_starts[row] = 0.0;
    }
}

// Computes the growth of a row's reference from EDGE spilled maxima of its scores. In the first block the reference
// becomes the largest score; later it changes only if a score exceeds it by far.
fn grow(row: u32, begins: bool) {
    var four = spilled_at(row * SPILLED_STRIDE);
    for (var c = 4u; c < EDGE; c += 4u) { four = max(four, spilled_at(row * SPILLED_STRIDE + c)); }
    let above = max(max(four.x, four.y), max(four.z, four.w));
    let growth = growth_of(above, begins);
    growths[row] = growth;
    score_starts[row] -= growth;
}

// Computes a row's log-sum-exp, and the factor of its results, from EDGE spilled sums of its weights.
fn finish_row(at: Place, row: u32) {
    var four = spilled_at(row * SPILLED_STRIDE);
    for (var c = 4u; c < EDGE; c += 4u) { four += spilled_at(row * SPILLED_STRIDE + c); }
    let total = (four.x + four.y) + (four.z + four.w);
    growths[row] = 1.0 / total;
    let t = at.first + row;
    if t < params.positions { lse_out[at.statistics + t] = log(total) - score_starts[row] * SCALE; }
}

// Stores one piece of a line of the tiles.
fn piece_at(line: u32, c: u32) -> Half8 {
    let i = line * TILE_STRIDE + c * 8u;
    return Half8(tile_at(i), tile_at(i + 4u));
}

// Results are stored through the tiles.
fn finish_out(at: Place, first_row: u32, thread: u32) {
    for (var turn = 0u; turn < turns(PORTION * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(PORTION * (HEAD_SIZE / 8u)) && piece >= PORTION * (HEAD_SIZE / 8u) { break; }
        let line = line_of(piece);
        let c = place_in_line(piece);
        let t = at.first + first_row + line;
        if t < params.positions { out[out_at(at, t) + c] = piece_at(line, c); }
    }
}
fn finish_dqkv(at: Place, first_row: u32, part: u32, first_line: u32, thread: u32) {
    for (var turn = 0u; turn < turns(PORTION * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(PORTION * (HEAD_SIZE / 8u)) && piece >= PORTION * (HEAD_SIZE / 8u) { break; }
        let line = line_of(piece);
        let c = place_in_line(piece);
        let t = at.first + first_row + line;
        if t < params.positions { dqkv[qkv_at(at, t, part) + c] = piece_at(first_line + line, c); }
    }
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32)
 {
    let at = place(group_index(group, groups), ROWS, LAST_FIRST);
    if !at.valid { return; }
    let subgroup_row = (subgroup / 1u) * 32u;
    let subgroup_first = at.first + subgroup_row;
    let score_column = (subgroup % 1u) * 32u;
    let columns_base = score_column * 6u;
    let head_base = ((subgroup % 1u) * 16u) / 4u;
    let weights_base = subgroup_row * 10u;
    let weights_to = weights_base + score_column / 4u;
    let x_base = qkv_at(at, 0u, 1u);
    let qkv_line = 3u * params.heads * (HEAD_SIZE / 8u);
    let part_line = params.heads * (HEAD_SIZE / 8u);
    begin_mask(thread);
    begin_starts(thread);
    var r0_0 = MatrixA();
    var r1_0 = MatrixA();
    for (var turn = 0u; turn < turns(PORTION * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(PORTION * (HEAD_SIZE / 8u)) && piece >= PORTION * (HEAD_SIZE / 8u) { break; }
        let c = place_in_line(piece);
        let t = at.first + 0u + line_of(piece);
        put_piece(line_of(piece), c, qkv_piece(at, t, 0u, c));
    }
    workgroupBarrier();
    if (subgroup_row + 0u) / 32u == 0u {
        r0_0 = coopLoadT<MatrixA>(&tiles[(((subgroup_row + 0u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u], TILE_STRIDE / 4u);
    }
    if (subgroup_row + 16u) / 32u == 0u {
        r1_0 = coopLoadT<MatrixA>(&tiles[(((subgroup_row + 16u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u], TILE_STRIDE / 4u);
    }
    // everyone has loaded before the tiles are overwritten
    workgroupBarrier();
    for (var turn = 0u; turn < turns(PORTION * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(PORTION * (HEAD_SIZE / 8u)) && piece >= PORTION * (HEAD_SIZE / 8u) { break; }
        let c = place_in_line(piece);
        let t = at.first + 32u + line_of(piece);
        put_piece(line_of(piece), c, qkv_piece(at, t, 0u, c));
    }
    workgroupBarrier();
    if (subgroup_row + 0u) / 32u == 1u {
        r0_0 = coopLoadT<MatrixA>(&tiles[(((subgroup_row + 0u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u], TILE_STRIDE / 4u);
    }
    if (subgroup_row + 16u) / 32u == 1u {
        r1_0 = coopLoadT<MatrixA>(&tiles[(((subgroup_row + 16u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u], TILE_STRIDE / 4u);
    }
    // everyone has loaded before the tiles are overwritten
    workgroupBarrier();
    var o0_0_0 = MatrixC();
    var o0_1_0 = MatrixC();
    var total0 = MatrixC();
    var total1 = MatrixC();
    var first_column = 0u;
    let middle = at.first / COLUMNS * COLUMNS;
    let end = min(at.first + ROWS, params.positions);
    let line0 = line_of(thread + 0u);
    let place0 = place_in_line(thread + 0u);
    let to0 = line0 * 6u + place0 * 2u;
    var x_next0 = Half8();
    var y_next0 = Half8();
    let t0 = min(first_column + line0, params.positions - 1u);
    x_next0 = qkv[t0 * qkv_line + (x_base + place0)];
    y_next0 = qkv[t0 * qkv_line + (x_base + place0) + part_line];
    loop {
        if first_column >= middle { break; }
        let x0 = x_next0;
        tiles[to0 + 0u] = x0.low;
        tiles[to0 + 1u] = x0.high;
        let y0 = y_next0;
        tiles[to0 + 192u + 0u] = y0.low;
        tiles[to0 + 192u + 1u] = y0.high;
        // the tiles are complete before anyone reads them
        workgroupBarrier();
        var p0_0 = coopLoad<MatrixC>(&score_starts[subgroup_row + 0u], 0u);
        var p0_1 = coopLoad<MatrixC>(&score_starts[subgroup_row + 0u], 0u);
        var p1_0 = coopLoad<MatrixC>(&score_starts[subgroup_row + 16u], 0u);
        var p1_1 = coopLoad<MatrixC>(&score_starts[subgroup_row + 16u], 0u);
        let p0_by0 = coopLoad<MatrixB>(&tiles[columns_base + 0u], TILE_STRIDE / 4u);
        p0_0 = coopMultiplyAdd(r0_0, p0_by0, p0_0);
        p1_0 = coopMultiplyAdd(r1_0, p0_by0, p1_0);
        let p1_by0 = coopLoad<MatrixB>(&tiles[columns_base + 96u], TILE_STRIDE / 4u);
        p0_1 = coopMultiplyAdd(r0_0, p1_by0, p0_1);
        p1_1 = coopMultiplyAdd(r1_0, p1_by0, p1_1);
        let most0 = larger_of(p0_0, p0_1);
        let most1 = larger_of(p1_0, p1_1);
        let above = max(largest(most0), largest(most1));
        if first_column == 0u || subgroupAny(above > LAZY_GROWTH * INVERSE_SCALE) {
            let spilled_most0 = most0;
            let at_most0 = subgroup_row * 5u + 0u;
            let stride_most0 = 5u;
            coopStoreT(spilled_most0, &spilled[at_most0], stride_most0);
            let spilled_most1 = most1;
            let at_most1 = subgroup_row * 5u + 80u;
            let stride_most1 = 5u;
            coopStoreT(spilled_most1, &spilled[at_most1], stride_most1);
            subgroupBarrier();
            grow((subgroup_row + lane + 0u), first_column == 0u);
            subgroupBarrier();
            let growth0 = coopLoad<MatrixC>(&growths[subgroup_row + 0u], 0u);
            p0_0 = p0_0 - growth0;
            p0_1 = p0_1 - growth0;
            let growth1 = coopLoad<MatrixC>(&growths[subgroup_row + 16u], 0u);
            p1_0 = p1_0 - growth1;
            p1_1 = p1_1 - growth1;
            if first_column > 0u {
                let factor0 = factors_of(growth0);
                o0_0_0 = times(o0_0_0, factor0);
                total0 = times(total0, factor0);
                let factor1 = factors_of(growth1);
                o0_1_0 = times(o0_1_0, factor1);
                total1 = times(total1, factor1);
            }
        }
        let w0_0 = weights_of(p0_0);
        total0 = total0 + w0_0;
        let half_w0_0 = to_half(w0_0);
        let spilled_half_w0_0 = half_w0_0;
        let at_half_w0_0 = weights_to + 0u;
        let stride_half_w0_0 = 10u;
        coopStoreT(spilled_half_w0_0, &weights[at_half_w0_0], stride_half_w0_0);
        let w0_1 = weights_of(p0_1);
        total0 = total0 + w0_1;
        let half_w0_1 = to_half(w0_1);
        let spilled_half_w0_1 = half_w0_1;
        let at_half_w0_1 = weights_to + 4u;
        let stride_half_w0_1 = 10u;
        coopStoreT(spilled_half_w0_1, &weights[at_half_w0_1], stride_half_w0_1);
        let w1_0 = weights_of(p1_0);
        total1 = total1 + w1_0;
        let half_w1_0 = to_half(w1_0);
        let spilled_half_w1_0 = half_w1_0;
        let at_half_w1_0 = weights_to + 160u;
        let stride_half_w1_0 = 10u;
        coopStoreT(spilled_half_w1_0, &weights[at_half_w1_0], stride_half_w1_0);
        let w1_1 = weights_of(p1_1);
        total1 = total1 + w1_1;
        let half_w1_1 = to_half(w1_1);
        let spilled_half_w1_1 = half_w1_1;
        let at_half_w1_1 = weights_to + 164u;
        let stride_half_w1_1 = 10u;
        coopStoreT(spilled_half_w1_1, &weights[at_half_w1_1], stride_half_w1_1);
        subgroupBarrier();
        let t0 = min(first_column + COLUMNS + line0, params.positions - 1u);
        x_next0 = qkv[t0 * qkv_line + (x_base + place0)];
        y_next0 = qkv[t0 * qkv_line + (x_base + place0) + part_line];
        let a0_0_0 = coopLoadT<MatrixA>(&weights[weights_base + 0u], 10u);
        let a0_1_0 = coopLoadT<MatrixA>(&weights[weights_base + 160u], 10u);
        let b0_0_0 = coopLoadT<MatrixB>(&tiles[head_base + 192u], TILE_STRIDE / 4u);
        o0_0_0 = coopMultiplyAdd(a0_0_0, b0_0_0, o0_0_0);
        o0_1_0 = coopMultiplyAdd(a0_1_0, b0_0_0, o0_1_0);
        let a0_0_1 = coopLoadT<MatrixA>(&weights[weights_base + 4u], 10u);
        let a0_1_1 = coopLoadT<MatrixA>(&weights[weights_base + 164u], 10u);
        let b0_0_1 = coopLoadT<MatrixB>(&tiles[head_base + 288u], TILE_STRIDE / 4u);
        o0_0_0 = coopMultiplyAdd(a0_0_1, b0_0_1, o0_0_0);
        o0_1_0 = coopMultiplyAdd(a0_1_1, b0_0_1, o0_1_0);
        first_column += COLUMNS;
        // everyone has read the tiles before they are overwritten
        workgroupBarrier();
    }
    loop {
        if first_column >= end { break; }
        let x0 = x_next0;
        tiles[to0 + 0u] = x0.low;
        tiles[to0 + 1u] = x0.high;
        let y0 = y_next0;
        tiles[to0 + 192u + 0u] = y0.low;
        tiles[to0 + 192u + 1u] = y0.high;
        // the tiles are complete before anyone reads them
        workgroupBarrier();
        // a subgroup that sees nothing of the block has nothing to do
        let sees = first_column < subgroup_first + SUBGROUP_ROWS;
        // distance of the first column from the first row
        let beyond = i32(first_column + score_column) - i32(subgroup_first);
        if sees {
            var p0_0 = coopLoad<MatrixC>(&score_starts[subgroup_row + 0u], 0u);
            var p0_1 = coopLoad<MatrixC>(&score_starts[subgroup_row + 0u], 0u);
            var p1_0 = coopLoad<MatrixC>(&score_starts[subgroup_row + 16u], 0u);
            var p1_1 = coopLoad<MatrixC>(&score_starts[subgroup_row + 16u], 0u);
            let p0_by0 = coopLoad<MatrixB>(&tiles[columns_base + 0u], TILE_STRIDE / 4u);
            p0_0 = coopMultiplyAdd(r0_0, p0_by0, p0_0);
            p1_0 = coopMultiplyAdd(r1_0, p0_by0, p1_0);
            let p1_by0 = coopLoad<MatrixB>(&tiles[columns_base + 96u], TILE_STRIDE / 4u);
            p0_1 = coopMultiplyAdd(r0_0, p1_by0, p0_1);
            p1_1 = coopMultiplyAdd(r1_0, p1_by0, p1_1);
            p0_0 = p0_0 + coopLoadT<MatrixC>(&mask[(mask_column(beyond + 0)) / 4u], MASK_STRIDE / 4u);
            p1_0 = p1_0 + coopLoadT<MatrixC>(&mask[(mask_column(beyond + -16)) / 4u], MASK_STRIDE / 4u);
            p0_1 = p0_1 + coopLoadT<MatrixC>(&mask[(mask_column(beyond + 16)) / 4u], MASK_STRIDE / 4u);
            p1_1 = p1_1 + coopLoadT<MatrixC>(&mask[(mask_column(beyond + 0)) / 4u], MASK_STRIDE / 4u);
            let most0 = larger_of(p0_0, p0_1);
            let most1 = larger_of(p1_0, p1_1);
            let above = max(largest(most0), largest(most1));
            if first_column == 0u || subgroupAny(above > LAZY_GROWTH * INVERSE_SCALE) {
                let spilled_most0 = most0;
                let at_most0 = subgroup_row * 5u + 0u;
                let stride_most0 = 5u;
                coopStoreT(spilled_most0, &spilled[at_most0], stride_most0);
                let spilled_most1 = most1;
                let at_most1 = subgroup_row * 5u + 80u;
                let stride_most1 = 5u;
                coopStoreT(spilled_most1, &spilled[at_most1], stride_most1);
                subgroupBarrier();
                grow((subgroup_row + lane + 0u), first_column == 0u);
                subgroupBarrier();
                let growth0 = coopLoad<MatrixC>(&growths[subgroup_row + 0u], 0u);
                p0_0 = p0_0 - growth0;
                p0_1 = p0_1 - growth0;
                let growth1 = coopLoad<MatrixC>(&growths[subgroup_row + 16u], 0u);
                p1_0 = p1_0 - growth1;
                p1_1 = p1_1 - growth1;
                if first_column > 0u {
                    let factor0 = factors_of(growth0);
                    o0_0_0 = times(o0_0_0, factor0);
                    total0 = times(total0, factor0);
                    let factor1 = factors_of(growth1);
                    o0_1_0 = times(o0_1_0, factor1);
                    total1 = times(total1, factor1);
                }
            }
            let w0_0 = weights_of(p0_0);
            total0 = total0 + w0_0;
            let half_w0_0 = to_half(w0_0);
            let spilled_half_w0_0 = half_w0_0;
            let at_half_w0_0 = weights_to + 0u;
            let stride_half_w0_0 = 10u;
            coopStoreT(spilled_half_w0_0, &weights[at_half_w0_0], stride_half_w0_0);
            let w0_1 = weights_of(p0_1);
            total0 = total0 + w0_1;
            let half_w0_1 = to_half(w0_1);
            let spilled_half_w0_1 = half_w0_1;
            let at_half_w0_1 = weights_to + 4u;
            let stride_half_w0_1 = 10u;
            coopStoreT(spilled_half_w0_1, &weights[at_half_w0_1], stride_half_w0_1);
            let w1_0 = weights_of(p1_0);
            total1 = total1 + w1_0;
            let half_w1_0 = to_half(w1_0);
            let spilled_half_w1_0 = half_w1_0;
            let at_half_w1_0 = weights_to + 160u;
            let stride_half_w1_0 = 10u;
            coopStoreT(spilled_half_w1_0, &weights[at_half_w1_0], stride_half_w1_0);
            let w1_1 = weights_of(p1_1);
            total1 = total1 + w1_1;
            let half_w1_1 = to_half(w1_1);
            let spilled_half_w1_1 = half_w1_1;
            let at_half_w1_1 = weights_to + 164u;
            let stride_half_w1_1 = 10u;
            coopStoreT(spilled_half_w1_1, &weights[at_half_w1_1], stride_half_w1_1);
        }
        subgroupBarrier();
        let t0 = min(first_column + COLUMNS + line0, params.positions - 1u);
        x_next0 = qkv[t0 * qkv_line + (x_base + place0)];
        y_next0 = qkv[t0 * qkv_line + (x_base + place0) + part_line];
        if sees {
            let a0_0_0 = coopLoadT<MatrixA>(&weights[weights_base + 0u], 10u);
            let a0_1_0 = coopLoadT<MatrixA>(&weights[weights_base + 160u], 10u);
            let b0_0_0 = coopLoadT<MatrixB>(&tiles[head_base + 192u], TILE_STRIDE / 4u);
            o0_0_0 = coopMultiplyAdd(a0_0_0, b0_0_0, o0_0_0);
            o0_1_0 = coopMultiplyAdd(a0_1_0, b0_0_0, o0_1_0);
            let a0_0_1 = coopLoadT<MatrixA>(&weights[weights_base + 4u], 10u);
            let a0_1_1 = coopLoadT<MatrixA>(&weights[weights_base + 164u], 10u);
            let b0_0_1 = coopLoadT<MatrixB>(&tiles[head_base + 288u], TILE_STRIDE / 4u);
            o0_0_0 = coopMultiplyAdd(a0_0_1, b0_0_1, o0_0_0);
            o0_1_0 = coopMultiplyAdd(a0_1_1, b0_0_1, o0_1_0);
        }
        first_column += COLUMNS;
        // everyone has read the tiles before they are overwritten
        workgroupBarrier();
    }
    let spilled_total0 = total0;
    let at_total0 = subgroup_row * 5u + 0u;
    let stride_total0 = 5u;
    coopStoreT(spilled_total0, &spilled[at_total0], stride_total0);
    let spilled_total1 = total1;
    let at_total1 = subgroup_row * 5u + 80u;
    let stride_total1 = 5u;
    coopStoreT(spilled_total1, &spilled[at_total1], stride_total1);
    subgroupBarrier();
    finish_row(at, (subgroup_row + lane + 0u));
    subgroupBarrier();
    let inverse0 = coopLoad<MatrixC>(&growths[subgroup_row + 0u], 0u);
    o0_0_0 = times(o0_0_0, inverse0);
    let inverse1 = coopLoad<MatrixC>(&growths[subgroup_row + 16u], 0u);
    o0_1_0 = times(o0_1_0, inverse1);
    if (subgroup_row + 0u) / 32u == 0u {
        let result0_0_0_0 = to_half(o0_0_0);
        let spilled_result0_0_0_0 = result0_0_0_0;
        let at_result0_0_0_0 = head_base + (((subgroup_row + 0u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u;
        let stride_result0_0_0_0 = TILE_STRIDE / 4u;
        coopStoreT(spilled_result0_0_0_0, &tiles[at_result0_0_0_0], stride_result0_0_0_0);
    }
    if (subgroup_row + 16u) / 32u == 0u {
        let result0_1_0_0 = to_half(o0_1_0);
        let spilled_result0_1_0_0 = result0_1_0_0;
        let at_result0_1_0_0 = head_base + (((subgroup_row + 16u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u;
        let stride_result0_1_0_0 = TILE_STRIDE / 4u;
        coopStoreT(spilled_result0_1_0_0, &tiles[at_result0_1_0_0], stride_result0_1_0_0);
    }
    workgroupBarrier();
    finish_out(at, 0u, thread);
    workgroupBarrier();
    if (subgroup_row + 0u) / 32u == 1u {
        let result0_0_0_32 = to_half(o0_0_0);
        let spilled_result0_0_0_32 = result0_0_0_32;
        let at_result0_0_0_32 = head_base + (((subgroup_row + 0u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u;
        let stride_result0_0_0_32 = TILE_STRIDE / 4u;
        coopStoreT(spilled_result0_0_0_32, &tiles[at_result0_0_0_32], stride_result0_0_0_32);
    }
    if (subgroup_row + 16u) / 32u == 1u {
        let result0_1_0_32 = to_half(o0_1_0);
        let spilled_result0_1_0_32 = result0_1_0_32;
        let at_result0_1_0_32 = head_base + (((subgroup_row + 16u) % 32u) * TILE_STRIDE + 0u) / 4u + 0u;
        let stride_result0_1_0_32 = TILE_STRIDE / 4u;
        coopStoreT(spilled_result0_1_0_32, &tiles[at_result0_1_0_32], stride_result0_1_0_32);
    }
    workgroupBarrier();
    finish_out(at, 32u, thread);
}
