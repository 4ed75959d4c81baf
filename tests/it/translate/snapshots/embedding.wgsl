// embedding.forward, entry point forward, overrides [("WORKGROUP", 64.0)]
// shared/widths/vec4.wgsl: four f32 at a time, 16 bytes per access.
alias Vec = vec4<f32>;
alias UVec = vec4<u32>;
const ELEMENTS_PER_VEC = 4u;
fn sum_elements(v: Vec) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_element(v: Vec) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_product(a: Vec, b: Vec) -> f32 { return dot(a, b); }
fn columns_from(first: u32) -> UVec { return first + vec4(0u, 1u, 2u, 3u); } // columns of a Vec that starts at `first`
fn element_of(v: Vec, i: u32) -> f32 { return v[i]; }
alias Stored = Vec;
// shared/widths/single.wgsl: Stored, the unit of loads and stores, is one Vec
const VECS_PER_STORED = 1u; // Vec per Stored
fn unpack(s: Stored, k: u32) -> Vec { return Vec(s); }
fn pack(first: Vec, last: Vec) -> Stored { return Stored(first); }
fn as_stored(x: Vec) -> Vec { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, because one dimension has at most 65,535
// workgroups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the reduction over a workgroup, by a tree, so that the order of additions never changes.
override WORKGROUP: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

// Every invocation must call these, because they contain barriers. After the last barrier the scratch can be reused at
// once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}

fn reduce_max(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Computes two sums at once over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WORKGROUP>;
fn reduce_pairs(lane: u32, team: u32, x: vec2<f32>) -> vec2<f32> {
    pair_scratch[lane] = x;
    for (var half = team / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % team < half { pair_scratch[lane] += pair_scratch[lane + half]; }
    }
    workgroupBarrier();
    let total = pair_scratch[lane / team * team];
    workgroupBarrier();
    return total;
}
// embedding.wgsl: out[n,c] = wte[token[n],c] + wpe[n % T,c]
//   tokens (N) u32;  wte rows first.. of (V, C);  wpe (T, C);  out, dout (N, C);  dwte like wte;  dwpe like wpe
//   forward        one invocation per Vec of out. wte is bound in windows; tokens outside the window are skipped
//   forward_at     the same for positions from `at` on; `at` is in a buffer, so that one recording serves all positions
//   backward_wte   one workgroup per run of at most 128 rows of one token, in the order of n, so sums are reproducible
//                  without atomics. A token's only run is added to dwte; if it has several, they go to run_sums
//   backward_split one workgroup per token with several runs; adds their sums, in order, to dwte
//   backward_wpe   one invocation per Vec of dwpe; sums over the batch
struct EmbeddingImmediates {
    rows: u32,        // N of this window
    row0: u32,        // first n of this window, for the position
    positions: u32,   // T
    columns: u32,     // C / ELEMENTS_PER_VEC
    first: u32,       // first token of the wte window
    tokens: u32,      // tokens in the wte window
    adds: u32,        // backward_wpe: 0 where dwpe begins
}
var<immediate> params: EmbeddingImmediates;

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> wte: array<Vec>;
@group(0) @binding(2) var<storage, read> wpe: array<Vec>;
@group(0) @binding(3) var<storage, read_write> out: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.rows * params.columns { return; }
    let n = i / params.columns;
    let c = i - n * params.columns;
    let token = tokens[n];
    if token < params.first || token >= params.first + params.tokens { return; }
    let t = (params.row0 + n) % params.positions;
    out[i] = wte[(token - params.first) * params.columns + c] + wpe[t * params.columns + c];
}

@group(0) @binding(4) var<storage, read> at: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn forward_at(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.rows * params.columns { return; }
    let n = i / params.columns;
    let c = i - n * params.columns;
    let token = tokens[n];
    if token < params.first || token >= params.first + params.tokens { return; }
    let t = min(at[0] + params.row0 + n, params.positions - 1u);
    out[i] = wte[(token - params.first) * params.columns + c] + wpe[t * params.columns + c];
}

// buckets[0..3] = number of runs, number of runs in split buckets, number of split buckets.
// Then for each run its token, and its begin and end in order[], the runs of split buckets first.
// Then for each split bucket its token, its first run and the run after its last.
// order[] holds all n, sorted by token, equal tokens by n.
@group(0) @binding(0) var<storage, read> buckets: array<u32>;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> dout: array<Vec>;
@group(0) @binding(3) var<storage, read_write> dwte: array<Vec>;
@group(0) @binding(4) var<storage, read_write> run_sums: array<Vec>; // (runs of split buckets, C)

const HEADING = 3u; // words before the entries of buckets[]
const AT_ONCE = 2u; // rows whose loads an invocation issues before it uses the first

struct Entry { token: u32, begin: u32, end: u32 }
fn entry(i: u32) -> Entry {
    let at = HEADING + 3u * i;
    return Entry(buckets[at], buckets[at + 1u], buckets[at + 2u]);
}

// Adds the rows of a run to `before`, one after the other, so that windows do not change the order of additions.
fn add_rows(before: Vec, run: Entry, c: u32) -> Vec {
    var sum = before;
    for (var first = run.begin; first < run.end; first += AT_ONCE) {
        var n: array<u32, AT_ONCE>;
        var rows: array<Vec, AT_ONCE>;
        // past the end the last row is read again and not used
        for (var i = 0u; i < AT_ONCE; i++) { n[i] = order[min(first + i, run.end - 1u)] - params.row0; }
        for (var i = 0u; i < AT_ONCE; i++) { rows[i] = dout[select(0u, n[i], n[i] < params.rows) * params.columns + c]; }
        for (var i = 0u; i < AT_ONCE; i++) {
            // rows outside this window of dout belong to another dispatch
            if first + i < run.end && n[i] < params.rows { sum += rows[i]; }
        }
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn backward_wte(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) lane: u32) {
    let number = group_index(group, groups);
    if number >= buckets[0] { return; }
    let run = entry(number);
    if run.token < params.first || run.token >= params.first + params.tokens { return; }
    let is_split = number < buckets[1];
    let begins = order[run.begin] >= params.row0; // not in an earlier window
    for (var c = lane; c < params.columns; c += WORKGROUP) {
        if is_split {
            let to = number * params.columns + c;
            run_sums[to] = add_rows(select(run_sums[to], Vec(), begins), run, c);
        } else {
            let to = (run.token - params.first) * params.columns + c;
            dwte[to] = add_rows(dwte[to], run, c);
        }
    }
}

@group(0) @binding(1) var<storage, read> run_sums_in: array<Vec>;
@group(0) @binding(2) var<storage, read_write> dwte_split: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn backward_split(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let number = group_index(group, groups);
    if number >= buckets[2] { return; }
    let bucket = entry(buckets[0] + number);
    if bucket.token < params.first || bucket.token >= params.first + params.tokens { return; }
    for (var c = lane; c < params.columns; c += WORKGROUP) {
        var sum = Vec();
        for (var first = bucket.begin; first < bucket.end; first += AT_ONCE) {
            var sums: array<Vec, AT_ONCE>;
            for (var i = 0u; i < AT_ONCE; i++) {
                sums[i] = run_sums_in[min(first + i, bucket.end - 1u) * params.columns + c];
            }
            for (var i = 0u; i < AT_ONCE; i++) { if first + i < bucket.end { sum += sums[i]; } }
        }
        dwte_split[(bucket.token - params.first) * params.columns + c] += sum;
    }
}

@group(0) @binding(0) var<storage, read> dout_wpe: array<Vec>;
@group(0) @binding(1) var<storage, read_write> dwpe: array<Vec>;

@compute @workgroup_size(WORKGROUP)
fn backward_wpe(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.positions * params.columns { return; }
    let t = i / params.columns;
    let c = i - t * params.columns;
    // the first row of this window at position t
    var n = (t + params.positions - params.row0 % params.positions) % params.positions;
    var before = Vec();
    if params.adds != 0u { before = dwpe[i]; }
    var sum = Vec();
    for (; n < params.rows; n += params.positions) { sum += dout_wpe[n * params.columns + c]; }
    dwpe[i] = before + sum;
}
