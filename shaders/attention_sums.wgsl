// tools/join-shader adds: shared/stub_matrices.wgsl shared/attention.wgsl attention_coop.wgsl
// attention_sums.wgsl: the step from scores to weights where matrices are opaque; see
// src/ops/attention/generate/sums.rs. A subgroup's rows of `sums` and `slopes` hold its products in f32. Only
// invocations of that subgroup read and write them.

var<workgroup> totals: array<f32, ROWS>; // sums of a row's weights

// Returns which of the four columns from `column` on a row sees, where the row is a query or a key.
fn seen(row: u32, column: u32) -> vec4<bool> {
    let columns = vec4(column) + vec4(0u, 1u, 2u, 3u);
    return select(columns <= vec4(row), columns >= vec4(row), vec4(ROWS_ARE_KEYS));
}

fn begin_starts(thread: u32) {
    for (var turn = 0u; turn < turns(ROWS); turn++) {
        let row = thread + turn * THREADS;
        if uneven(ROWS) && row >= ROWS { break; }
        score_starts[row] = 0.0;
        totals[row] = 0.0;
    }
}

// Turns a row's scores in `sums` into weights. Returns whether its results must be rescaled.
fn weigh(at: Place, row: u32, first_column: u32, is_cut: bool) -> bool {
    var scores: array<vec4<f32>, COLUMNS / 4u>;
    var largest = vec4(LOW);
    for (var i = 0u; i < COLUMNS / 4u; i++) {
        scores[i] = sum_at(row * SUMS_STRIDE + i * 4u) + vec4(score_starts[row]);
        if is_cut { scores[i] = select(vec4(LOW), scores[i], seen(at.first + row, first_column + i * 4u)); }
        largest = max(largest, scores[i]);
    }
    let above = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let growth = growth_of(above, first_column == 0u);
    var sum = vec4(0.0);
    for (var i = 0u; i < COLUMNS / 4u; i++) {
        let weight = exp2((scores[i] - vec4(growth)) * EXPONENT);
        put_weights(row * WEIGHTS_STRIDE + i * 4u, vec4<f16>(weight));
        sum += weight;
    }
    let factor = exp2(min(-growth * EXPONENT, 0.0));
    totals[row] = totals[row] * factor + ((sum.x + sum.y) + (sum.z + sum.w));
    score_starts[row] -= growth;
    slope_starts[row] = factor;
    return growth != 0.0;
}

// Multiplies a subgroup's rows of `sums` by each row's factor.
fn rescale(first_row: u32, width: u32, lane: u32, lanes: u32) {
    for (var piece = lane; piece < SUBGROUP_ROWS * (width / 4u); piece += lanes) {
        let row = first_row + piece % SUBGROUP_ROWS;
        let i = row * SUMS_STRIDE + piece / SUBGROUP_ROWS * 4u;
        put_sum(i, sum_at(i) * slope_starts[row]);
    }
}

fn finish_row(at: Place, row: u32) {
    let t = at.first + row;
    slope_starts[row] = 1.0 / totals[row];
    if t < params.positions { lse_out[at.statistics + t] = log(totals[row]) - score_starts[row] * SCALE; }
}

// Computes dscores from a subgroup's scores in `sums` and dout v in `slopes`, where rows are queries.
fn slopes_of_queries(at: Place, first_row: u32, start: u32, first_column: u32, is_cut: bool, lane: u32, lanes: u32) {
    for (var piece = lane; piece < SUBGROUP_ROWS * (COLUMNS / GRID_N / 4u); piece += lanes) {
        let row = first_row + piece % SUBGROUP_ROWS;
        let c = start + piece / SUBGROUP_ROWS * 4u;
        var weight = known_weights((sum_at(row * SUMS_STRIDE + c) + vec4(score_starts[row])) * EXPONENT);
        if is_cut { weight = select(vec4(0.0), weight, seen(at.first + row, first_column + c)); }
        put_dscores(row * WEIGHTS_STRIDE + c, vec4<f16>(weight * (slope_at(row * SUMS_STRIDE + c) + vec4(slope_starts[row]))));
    }
}

// Computes dscores and weights, where rows are keys.
fn slopes_of_keys(at: Place, first_row: u32, start: u32, first_column: u32, is_cut: bool, lane: u32, lanes: u32) {
    for (var piece = lane; piece < SUBGROUP_ROWS * (COLUMNS / GRID_N / 4u); piece += lanes) {
        let row = first_row + piece % SUBGROUP_ROWS;
        let c = start + piece / SUBGROUP_ROWS * 4u;
        let scores = vec4(score_starts[c], score_starts[c + 1u], score_starts[c + 2u], score_starts[c + 3u]);
        let slopes = vec4(slope_starts[c], slope_starts[c + 1u], slope_starts[c + 2u], slope_starts[c + 3u]);
        var weight = known_weights((sum_at(row * SUMS_STRIDE + c) + scores) * EXPONENT);
        if is_cut { weight = select(vec4(0.0), weight, seen(at.first + row, first_column + c)); }
        put_weights(row * WEIGHTS_STRIDE + c, vec4<f16>(weight));
        put_dscores(row * WEIGHTS_STRIDE + c, vec4<f16>(weight * (slope_at(row * SUMS_STRIDE + c) + slopes)));
    }
}
fn known_weights(exponents: vec4<f32>) -> vec4<f32> { return exp2(min(exponents, vec4(0.0))); }

// Returns eight elements of `sums` from element i on, times `factor`.
fn eight_sums(i: u32, factor: f32) -> Half8 {
    return Half8(vec4<f16>(sum_at(i) * factor), vec4<f16>(sum_at(i + 4u) * factor));
}

// Stores columns `to` to `to + width` of the results of a subgroup's rows, from column `start` of `sums` on.
fn finish_out(at: Place, first_row: u32, start: u32, to: u32, width: u32, lane: u32, lanes: u32) {
    for (var piece = lane; piece < SUBGROUP_ROWS * (width / 8u); piece += lanes) {
        let row = first_row + piece % SUBGROUP_ROWS;
        let c = piece / SUBGROUP_ROWS * 8u;
        if at.first + row >= params.positions { continue; }
        out[out_at(at, at.first + row) + (to + c) / 8u] = eight_sums(row * SUMS_STRIDE + start + c, slope_starts[row]);
    }
}
fn finish_dqkv(at: Place, part: u32, factor: f32, first_row: u32, start: u32, to: u32, width: u32, lane: u32, lanes: u32) {
    for (var piece = lane; piece < SUBGROUP_ROWS * (width / 8u); piece += lanes) {
        let row = first_row + piece % SUBGROUP_ROWS;
        let c = piece / SUBGROUP_ROWS * 8u;
        if at.first + row >= params.positions { continue; }
        dqkv[qkv_at(at, at.first + row, part) + (to + c) / 8u] = eight_sums(row * SUMS_STRIDE + start + c, factor);
    }
}
