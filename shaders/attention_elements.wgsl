// tools/join-shader adds: shared/stub_matrices.wgsl shared/matrices.wgsl shared/attention.wgsl attention_coop.wgsl
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
