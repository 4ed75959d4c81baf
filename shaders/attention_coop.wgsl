// attention_coop.wgsl: causal attention of f16 on matrix units; src/ops/attention/coop.rs says why
//   it is as it is, generate.rs writes the rest
//   A workgroup has ROWS of one head, whose f16 matrices stay in registers, and walks over blocks of COLUMNS:
//   forward       rows are queries, columns keys;  weights = exp(score - most);  out += weights v
//   backward_q    rows are queries, columns keys;  dscores = weights (dout v - delta);  dq += dscores k;  before that
//                 delta = dout . out
//   backward_kv   rows are keys, columns queries;  dv += weights dout;  dk += dscores q
//   qkv, dqkv (B, T, 3, NH, HS);  out, dout (B, T, NH, HS);  lse, delta (B, NH, T)
//   x_tile, y_tile: what belongs to the columns;  sums, slopes: products in f32;  weights, dscores: products to come
const LAZY = 8.0;    // how far scores may outgrow what they are compared to: exp(8) is far from f16's largest number

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(1) var<storage, read> dout: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> delta: array<f32>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<vec4<f16>>;

@group(0) @binding(3) var<storage, read_write> delta_out: array<f32>;
@group(0) @binding(5) var<storage, read> out_in: array<vec4<f16>>;

var<workgroup> most: array<f32, ITEMS>;       // what a row's scores are compared to, once for each of its parts
var<workgroup> total: array<f32, ITEMS>;      // sums of a part's weights
var<workgroup> shrink: array<f32, ROWS>;      // what the row's sums so far must be multiplied by
var<workgroup> grown: atomic<u32>;            // 1 if that is not 1 in some row
var<workgroup> kept_lse: array<f32, KEPT>;    // of queries, be they rows or columns
var<workgroup> kept_delta: array<f32, KEPT>;

// Which head and which rows a workgroup has; those with the most columns come first.
fn place(group: u32) -> Place {
    let blocks = (p.positions + ROWS - 1u) / ROWS;
    let bh = group / blocks;
    let block = group % blocks;
    return Place(bh / p.heads, bh % p.heads, select(block, blocks - 1u - block, LAST_FIRST) * ROWS,
                 bh < p.batch * p.heads);
}

// Index of the first vec4 of a position's q (part 0), k (1) or v (2), and of its out.
fn qkv_at(at: Place, t: u32, part: u32) -> u32 {
    return (((at.b * p.positions + t) * 3u + part) * p.heads + at.h) * (HEAD / 4u);
}
fn out_at(at: Place, t: u32) -> u32 { return ((at.b * p.positions + t) * p.heads + at.h) * (HEAD / 4u); }
fn statistics_at(at: Place, t: u32) -> u32 { return (at.b * p.heads + at.h) * p.positions + t; }

// Puts `width` elements of every row's q, k or v into `weights`, from where matrices are loaded; zeros past the end.
fn stage_qkv(at: Place, part: u32, start: u32, width: u32, thread: u32) {
    for (var piece = thread; piece < ROWS * width / 4u; piece += THREADS) {
        let r = piece / (width / 4u);
        let c = piece % (width / 4u);
        var four = vec4<f16>();
        if at.first + r < p.positions { four = qkv[qkv_at(at, at.first + r, part) + start / 4u + c]; }
        put_weights(r * WEIGHTS + c * 4u, four);
    }
}

fn stage_dout(at: Place, start: u32, width: u32, thread: u32) {
    for (var piece = thread; piece < ROWS * width / 4u; piece += THREADS) {
        let r = piece / (width / 4u);
        let c = piece % (width / 4u);
        var four = vec4<f16>();
        if at.first + r < p.positions { four = dout[out_at(at, at.first + r) + start / 4u + c]; }
        put_weights(r * WEIGHTS + c * 4u, four);
    }
}

// Keys and values of the columns; zeros past the end.
fn fill_keys(at: Place, first_column: u32, thread: u32) {
    for (var piece = thread; piece < COLUMNS * (HEAD / 4u); piece += THREADS) {
        let line = piece / (HEAD / 4u);
        let c = piece % (HEAD / 4u);
        let t = first_column + line;
        var k = vec4<f16>();
        var v = vec4<f16>();
        if t < p.positions {
            k = qkv[qkv_at(at, t, 1u) + c];
            v = qkv[qkv_at(at, t, 2u) + c];
        }
        put_x(line * LINE + c * 4u, k);
        put_y(line * LINE + c * 4u, v);
    }
}

// Queries and gradients of the columns, and what is kept of them; zeros past the end.
fn fill_queries(at: Place, first_column: u32, thread: u32) {
    for (var piece = thread; piece < COLUMNS * (HEAD / 4u); piece += THREADS) {
        let line = piece / (HEAD / 4u);
        let c = piece % (HEAD / 4u);
        let t = first_column + line;
        var q = vec4<f16>();
        var g = vec4<f16>();
        if t < p.positions {
            q = qkv[qkv_at(at, t, 0u) + c];
            g = dout[out_at(at, t) + c];
        }
        put_x(line * LINE + c * 4u, q);
        put_y(line * LINE + c * 4u, g);
    }
    for (var i = thread; i < COLUMNS; i += THREADS) {
        let t = min(first_column + i, p.positions - 1u);
        kept_lse[i] = lse[statistics_at(at, t)];
        kept_delta[i] = delta[statistics_at(at, t)];
    }
}

// Sums of dout out over a row: four invocations a row leave theirs in `sums`, then one adds them.
fn begin_delta(at: Place, thread: u32) {
    for (var item = thread; item < ROWS * 4u; item += THREADS) {
        let r = item / 4u;
        var sum = vec4(0.0);
        if at.first + r < p.positions {
            let start = out_at(at, at.first + r);
            for (var c = item % 4u; c < HEAD / 4u; c += 4u) {
                sum += vec4<f32>(dout[start + c]) * vec4<f32>(out_in[start + c]);
            }
        }
        put_sums(r * SUMS + item % 4u * 4u, sum);
    }
}

fn keep_delta(at: Place, thread: u32) {
    for (var r = thread; r < ROWS; r += THREADS) {
        let i = r * SUMS;
        let four = (sum_at(i) + sum_at(i + 4u)) + (sum_at(i + 8u) + sum_at(i + 12u));
        kept_delta[r] = (four.x + four.y) + (four.z + four.w);
        let t = at.first + r;
        kept_lse[r] = lse[statistics_at(at, min(t, p.positions - 1u))];
        if t < p.positions { delta_out[statistics_at(at, t)] = kept_delta[r]; }
    }
}

fn begin(thread: u32) {
    for (var item = thread; item < ITEMS; item += THREADS) {
        most[item] = LOW;
        total[item] = 0.0;
    }
}

// From scores in `sums` to weights. A row is shared by PARTS invocations, each of which looks for its largest score by
// itself, so that nobody waits for another one.
fn weigh(at: Place, first_column: u32, thread: u32) {
    for (var item = thread; item < ITEMS; item += THREADS) {
        let r = item / PARTS;
        let row = at.first + r;
        var largest = vec4(LOW);
        for (var c = 0u; c < COLUMNS; c += 4u) {
            let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            largest = max(largest, select(vec4(LOW), sum_at(r * SUMS + c), visible));
        }
        let above = max(max(largest.x, largest.y), max(largest.z, largest.w)) * p.scale;
        let before = most[item];
        let now = select(before, above, above > before + LAZY);
        let factor = exp(before - now);
        var sum = vec4(0.0);
        for (var c = item % PARTS * 4u; c < COLUMNS; c += PARTS * 4u) {
            let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(row);
            let weight = select(vec4(0.0), exp(sum_at(r * SUMS + c) * p.scale - vec4(now)), visible);
            put_weights(r * WEIGHTS + c, vec4<f16>(weight));
            sum += weight;
        }
        total[item] = total[item] * factor + ((sum.x + sum.y) + (sum.z + sum.w));
        most[item] = now;
        if item % PARTS == 0u { shrink[r] = factor; }
        if now > before { atomicStore(&grown, 1u); }
    }
}

// Column of the head where column c of `sums` belongs: each subgroup's `width` columns from `start` on lie side by side.
fn head_column(c: u32, start: u32, width: u32) -> u32 { return (c / width) * (HEAD / GRID_N) + start + c % width; }

// Multiplies what lies in `sums` by what its row has shrunk to.
fn rescale(width: u32, thread: u32) {
    let across = GRID_N * width / 4u;
    for (var piece = thread; piece < ROWS * across; piece += THREADS) {
        let r = piece / across;
        let i = r * SUMS + piece % across * 4u;
        put_sums(i, sum_at(i) * shrink[r]);
    }
}

fn row_total(r: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) { sum += total[r * PARTS + part]; }
    return sum;
}

fn finish_lse(at: Place, thread: u32) {
    for (var r = thread; r < ROWS; r += THREADS) {
        if at.first + r < p.positions {
            lse_out[statistics_at(at, at.first + r)] = most[r * PARTS] + log(row_total(r));
        }
    }
}

fn finish_out(at: Place, start: u32, width: u32, thread: u32) {
    let across = GRID_N * width / 4u;
    for (var piece = thread; piece < ROWS * across; piece += THREADS) {
        let r = piece / across;
        let c = piece % across * 4u;
        if at.first + r >= p.positions { continue; }
        let i = out_at(at, at.first + r) + head_column(c, start, width) / 4u;
        out[i] = vec4<f16>(sum_at(r * SUMS + c) * (1.0 / row_total(r)));
    }
}

// From scores in `sums` and dout v in `slopes` to dscores, for queries as rows.
fn slope_of_queries(at: Place, first_column: u32, thread: u32) {
    for (var piece = thread; piece < ROWS * COLUMNS / 4u; piece += THREADS) {
        let r = piece / (COLUMNS / 4u);
        let c = piece % (COLUMNS / 4u) * 4u;
        let visible = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u) <= vec4(at.first + r);
        let below = min(sum_at(r * SUMS + c) * p.scale - vec4(kept_lse[r]), vec4(0.0));
        let weight = select(vec4(0.0), exp(below), visible);
        put_weights(r * WEIGHTS + c, vec4<f16>(weight * (slope_at(r * SUMS + c) - vec4(kept_delta[r]))));
    }
}

// The same, and the weights, for keys as rows.
fn slope_of_keys(at: Place, first_column: u32, thread: u32) {
    for (var piece = thread; piece < ROWS * COLUMNS / 4u; piece += THREADS) {
        let r = piece / (COLUMNS / 4u);
        let c = piece % (COLUMNS / 4u) * 4u;
        let query = vec4(first_column + c) + vec4(0u, 1u, 2u, 3u);
        let visible = (query >= vec4(at.first + r)) & (query < vec4(p.positions));
        let query_lse = vec4(kept_lse[c], kept_lse[c + 1u], kept_lse[c + 2u], kept_lse[c + 3u]);
        let query_delta = vec4(kept_delta[c], kept_delta[c + 1u], kept_delta[c + 2u], kept_delta[c + 3u]);
        let below = min(sum_at(r * SUMS + c) * p.scale - query_lse, vec4(0.0));
        let weight = select(vec4(0.0), exp(below), visible);
        put_weights(r * WEIGHTS + c, vec4<f16>(weight));
        put_dscores(r * WEIGHTS + c, vec4<f16>(weight * (slope_at(r * SUMS + c) - query_delta)));
    }
}

fn finish_dqkv(at: Place, part: u32, factor: f32, start: u32, width: u32, thread: u32) {
    let across = GRID_N * width / 4u;
    for (var piece = thread; piece < ROWS * across; piece += THREADS) {
        let r = piece / across;
        let c = piece % across * 4u;
        if at.first + r >= p.positions { continue; }
        let i = qkv_at(at, at.first + r, part) + head_column(c, start, width) / 4u;
        dqkv[i] = vec4<f16>(sum_at(r * SUMS + c) * factor);
    }
}
