// tools/join-shader adds: shared/stub_matrices.wgsl shared/attention.wgsl
// attention_coop.wgsl: causal attention of f16 on matrix units. src/ops/attention/coop.rs explains the method,
// src/ops/attention/generate.rs writes the entry point, its sizes and its tiles (see shared/stub_matrices.wgsl)
//   A workgroup has ROWS of one head, whose f16 matrices stay in registers, and walks over blocks of COLUMNS:
//   forward       rows are queries, columns keys;  weights = exp(score - most);  out += weights v
//   backward_q    rows are queries, columns keys;  dscores = weights (dout v - delta);  dq += dscores k;  before that
//                 delta = dout . out
//   backward_kv   rows are keys, columns queries;  dv += weights dout;  dk += dscores q
//   qkv, dqkv (B, T, 3, NH, HS);  out, dout (B, T, NH, HS);  lse, delta (B, NH, T)
//   x_tile, y_tile: what belongs to the columns;  sums, slopes: products in f32;  weights, dscores: products to come
const LAZY_GROWTH = 8.0; // how far scores may outgrow what they are compared to: exp(8) is far below f16's largest

@group(0) @binding(0) var<storage, read> qkv: array<Half8>;
@group(0) @binding(1) var<storage, read_write> out: array<Half8>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(1) var<storage, read> dout: array<Half8>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<Half8>;

@group(0) @binding(3) var<storage, read_write> delta_out: array<f32>;
@group(0) @binding(5) var<storage, read> out_in: array<Half8>;

var<workgroup> most: array<f32, ROW_PARTS>;       // what a row's scores are compared to, once for each of its parts
var<workgroup> total: array<f32, ROW_PARTS>;      // sums of a part's weights
var<workgroup> shrink: array<f32, ROWS>;      // what the row's sums so far must be multiplied by
var<workgroup> grown: atomic<u32>;            // 1 if that is not 1 in some row
var<workgroup> kept_lse: array<f32, QUERIES_KEPT>;    // of queries, be they rows or columns
var<workgroup> kept_delta: array<f32, QUERIES_KEPT>;

// A loop over `count` pieces, a workgroup's width of them a turn: how many turns, and whether the last is not full. A
// constant number of turns lets drivers write them out; of `piece < count` they write the body twice and branch.
fn turns(count: u32) -> u32 { return (count + THREADS - 1u) / THREADS; }
fn uneven(count: u32) -> bool { return count % THREADS != 0u; }

// Index of the first Half8 of a position's q (part 0), k (1) or v (2), and of its out.
fn qkv_at(at: Place, t: u32, part: u32) -> u32 {
    return (((at.b * params.positions + t) * 3u + part) * params.heads + at.h) * (HEAD_SIZE / 8u);
}
fn out_at(at: Place, t: u32) -> u32 { return ((at.b * params.positions + t) * params.heads + at.h) * (HEAD_SIZE / 8u); }

// Puts `width` elements of every row's q, k or v into `weights`, from where matrices are loaded; zeros past the end.
fn stage_qkv(at: Place, part: u32, start: u32, width: u32, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * width / 8u); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * width / 8u) && piece >= ROWS * width / 8u { break; }
        let r = piece / (width / 8u);
        let c = piece % (width / 8u);
        var eight = Half8();
        if at.first + r < params.positions { eight = qkv[qkv_at(at, at.first + r, part) + start / 8u + c]; }
        put_weights(r * WEIGHTS_STRIDE + c * 8u, eight.low);
        put_weights(r * WEIGHTS_STRIDE + c * 8u + 4u, eight.high);
    }
}

fn stage_dout(at: Place, start: u32, width: u32, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * width / 8u); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * width / 8u) && piece >= ROWS * width / 8u { break; }
        let r = piece / (width / 8u);
        let c = piece % (width / 8u);
        var eight = Half8();
        if at.first + r < params.positions { eight = dout[out_at(at, at.first + r) + start / 8u + c]; }
        put_weights(r * WEIGHTS_STRIDE + c * 8u, eight.low);
        put_weights(r * WEIGHTS_STRIDE + c * 8u + 4u, eight.high);
    }
}

// One piece of a line of both tiles.
fn put_tiles(line: u32, c: u32, x: Half8, y: Half8) {
    let i = line * TILE_STRIDE + c * 8u;
    put_x(i, x.low);
    put_x(i + 4u, x.high);
    put_y(i, y.low);
    put_y(i + 4u, y.high);
}

// Keys and values of the columns; zeros past the end.
fn fill_keys(at: Place, first_column: u32, thread: u32) {
    for (var turn = 0u; turn < turns(COLUMNS * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(COLUMNS * (HEAD_SIZE / 8u)) && piece >= COLUMNS * (HEAD_SIZE / 8u) { break; }
        let line = line_of(piece);
        let c = place_in_line(piece);
        let t = first_column + line;
        var k = Half8();
        var v = Half8();
        if t < params.positions {
            k = qkv[qkv_at(at, t, 1u) + c];
            v = qkv[qkv_at(at, t, 2u) + c];
        }
        put_tiles(line, c, k, v);
    }
}

// Queries and gradients of the columns, and what is kept of them; zeros past the end.
fn fill_queries(at: Place, first_column: u32, thread: u32) {
    for (var turn = 0u; turn < turns(COLUMNS * (HEAD_SIZE / 8u)); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(COLUMNS * (HEAD_SIZE / 8u)) && piece >= COLUMNS * (HEAD_SIZE / 8u) { break; }
        let line = line_of(piece);
        let c = place_in_line(piece);
        let t = first_column + line;
        var q = Half8();
        var g = Half8();
        if t < params.positions {
            q = qkv[qkv_at(at, t, 0u) + c];
            g = dout[out_at(at, t) + c];
        }
        put_tiles(line, c, q, g);
    }
    for (var turn = 0u; turn < turns(COLUMNS); turn++) {
        let i = thread + turn * THREADS;
        if uneven(COLUMNS) && i >= COLUMNS { break; }
        let t = min(first_column + i, params.positions - 1u);
        kept_lse[i] = lse[at.statistics + t];
        kept_delta[i] = delta[at.statistics + t];
    }
}

// Sums of dout out over a row: four invocations a row leave theirs in `sums`, then one adds them.
fn begin_delta(at: Place, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * 4u); turn++) {
        let item = thread + turn * THREADS;
        if uneven(ROWS * 4u) && item >= ROWS * 4u { break; }
        let r = item / 4u;
        var sum = vec4(0.0);
        if at.first + r < params.positions {
            let start = out_at(at, at.first + r);
            for (var turn_of_row = 0u; turn_of_row < (HEAD_SIZE / 8u + 3u) / 4u; turn_of_row++) {
                let c = item % 4u + turn_of_row * 4u;
                if HEAD_SIZE % 32u != 0u && c >= HEAD_SIZE / 8u { break; }
                let d = dout[start + c];
                let o = out_in[start + c];
                sum += vec4<f32>(d.low) * vec4<f32>(o.low) + vec4<f32>(d.high) * vec4<f32>(o.high);
            }
        }
        put_sums(r * SUMS_STRIDE + item % 4u * 4u, sum);
    }
}

fn keep_delta(at: Place, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS); turn++) {
        let r = thread + turn * THREADS;
        if uneven(ROWS) && r >= ROWS { break; }
        let i = r * SUMS_STRIDE;
        let four = (sum_at(i) + sum_at(i + 4u)) + (sum_at(i + 8u) + sum_at(i + 12u));
        kept_delta[r] = (four.x + four.y) + (four.z + four.w);
        let t = at.first + r;
        kept_lse[r] = lse[at.statistics + min(t, params.positions - 1u)];
        if t < params.positions { delta_out[at.statistics + t] = kept_delta[r]; }
    }
}

fn begin(thread: u32) {
    for (var turn = 0u; turn < turns(ROW_PARTS); turn++) {
        let item = thread + turn * THREADS;
        if uneven(ROW_PARTS) && item >= ROW_PARTS { break; }
        most[item] = LOW;
        total[item] = 0.0;
    }
}

// From scores in `sums` to weights. A row is shared by PARTS_PER_ROW invocations, each of which looks for its largest
// score by itself, so that nobody waits for another one.
fn weigh(at: Place, first_column: u32, thread: u32) {
    for (var turn = 0u; turn < turns(ROW_PARTS); turn++) {
        let item = thread + turn * THREADS;
        if uneven(ROW_PARTS) && item >= ROW_PARTS { break; }
        let r = item / PARTS_PER_ROW;
        let row = at.first + r;
        var largest = vec4(LOW);
        for (var c = 0u; c < COLUMNS; c += 4u) {
            let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            largest = max(largest, select(vec4(LOW), sum_at(r * SUMS_STRIDE + c), visible));
        }
        let above = max(max(largest.x, largest.y), max(largest.z, largest.w)) * params.scale;
        let before = most[item];
        let now = select(before, above, above > before + LAZY_GROWTH);
        let factor = exp(before - now);
        var sum = vec4(0.0);
        for (var turn_of_row = 0u; turn_of_row < (COLUMNS / 4u + PARTS_PER_ROW - 1u) / PARTS_PER_ROW; turn_of_row++) {
            let c = (item % PARTS_PER_ROW + turn_of_row * PARTS_PER_ROW) * 4u;
            if COLUMNS / 4u % PARTS_PER_ROW != 0u && c >= COLUMNS { break; }
            let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            let weight = select(vec4(0.0), exp(sum_at(r * SUMS_STRIDE + c) * params.scale - vec4(now)), visible);
            put_weights(r * WEIGHTS_STRIDE + c, vec4<f16>(weight));
            sum += weight;
        }
        total[item] = total[item] * factor + ((sum.x + sum.y) + (sum.z + sum.w));
        most[item] = now;
        if item % PARTS_PER_ROW == 0u { shrink[r] = factor; }
        if now > before { atomicStore(&grown, 1u); }
    }
}

// Column of the head where column c of `sums` belongs: each subgroup's `width` columns from `start` on lie side by side.
fn head_column(c: u32, start: u32, width: u32) -> u32 { return (c / width) * (HEAD_SIZE / GRID_N) + start + c % width; }

// Multiplies what lies in `sums` by what its row has shrunk to.
fn rescale(width: u32, thread: u32) {
    let across = GRID_N * width / 4u;
    for (var turn = 0u; turn < turns(ROWS * across); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * across) && piece >= ROWS * across { break; }
        let r = piece / across;
        let i = r * SUMS_STRIDE + piece % across * 4u;
        put_sums(i, sum_at(i) * shrink[r]);
    }
}

fn row_total(r: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS_PER_ROW; part++) { sum += total[r * PARTS_PER_ROW + part]; }
    return sum;
}

fn finish_lse(at: Place, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS); turn++) {
        let r = thread + turn * THREADS;
        if uneven(ROWS) && r >= ROWS { break; }
        if at.first + r < params.positions {
            lse_out[at.statistics + at.first + r] = most[r * PARTS_PER_ROW] + log(row_total(r));
        }
    }
}

// Eight of `sums` from element i on, times `factor`.
fn eight_sums(i: u32, factor: f32) -> Half8 {
    return Half8(vec4<f16>(sum_at(i) * factor), vec4<f16>(sum_at(i + 4u) * factor));
}

fn finish_out(at: Place, start: u32, width: u32, thread: u32) {
    let across = GRID_N * width / 8u;
    for (var turn = 0u; turn < turns(ROWS * across); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * across) && piece >= ROWS * across { break; }
        let r = piece / across;
        let c = piece % across * 8u;
        if at.first + r >= params.positions { continue; }
        let i = out_at(at, at.first + r) + head_column(c, start, width) / 8u;
        out[i] = eight_sums(r * SUMS_STRIDE + c, 1.0 / row_total(r));
    }
}

// From scores in `sums` and dout v in `slopes` to dscores, for queries as rows.
fn slope_of_queries(at: Place, first_column: u32, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * COLUMNS / 4u); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * COLUMNS / 4u) && piece >= ROWS * COLUMNS / 4u { break; }
        let r = piece / (COLUMNS / 4u);
        let c = piece % (COLUMNS / 4u) * 4u;
        let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(at.first + r);
        let below = min(sum_at(r * SUMS_STRIDE + c) * params.scale - vec4(kept_lse[r]), vec4(0.0));
        let weight = select(vec4(0.0), exp(below), visible);
        put_weights(r * WEIGHTS_STRIDE + c, vec4<f16>(weight * (slope_at(r * SUMS_STRIDE + c) - vec4(kept_delta[r]))));
    }
}

// The same, and the weights, for keys as rows.
fn slope_of_keys(at: Place, first_column: u32, thread: u32) {
    for (var turn = 0u; turn < turns(ROWS * COLUMNS / 4u); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * COLUMNS / 4u) && piece >= ROWS * COLUMNS / 4u { break; }
        let r = piece / (COLUMNS / 4u);
        let c = piece % (COLUMNS / 4u) * 4u;
        let query = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u);
        let visible = (query >= vec4(at.first + r)) & (query < vec4(params.positions));
        let query_lse = vec4(kept_lse[c], kept_lse[c + 1u], kept_lse[c + 2u], kept_lse[c + 3u]);
        let query_delta = vec4(kept_delta[c], kept_delta[c + 1u], kept_delta[c + 2u], kept_delta[c + 3u]);
        let below = min(sum_at(r * SUMS_STRIDE + c) * params.scale - query_lse, vec4(0.0));
        let weight = select(vec4(0.0), exp(below), visible);
        put_weights(r * WEIGHTS_STRIDE + c, vec4<f16>(weight));
        put_dscores(r * WEIGHTS_STRIDE + c, vec4<f16>(weight * (slope_at(r * SUMS_STRIDE + c) - query_delta)));
    }
}

fn finish_dqkv(at: Place, part: u32, factor: f32, start: u32, width: u32, thread: u32) {
    let across = GRID_N * width / 8u;
    for (var turn = 0u; turn < turns(ROWS * across); turn++) {
        let piece = thread + turn * THREADS;
        if uneven(ROWS * across) && piece >= ROWS * across { break; }
        let r = piece / across;
        let c = piece % across * 8u;
        if at.first + r >= params.positions { continue; }
        let i = qkv_at(at, at.first + r, part) + head_column(c, start, width) / 8u;
        dqkv[i] = eight_sums(r * SUMS_STRIDE + c, factor);
    }
}
