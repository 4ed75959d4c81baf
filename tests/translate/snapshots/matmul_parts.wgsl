// matmul_parts.add, entry point add, overrides [("WG", 64.0)]
// shared/vec4.wgsl: four f32 at a time, 16 bytes an access.
alias V = vec4<f32>;
alias U = vec4<u32>;
const VW = 4u;
fn sum_v(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn max_v(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn dot_v(a: V, b: V) -> f32 { return dot(a, b); }
fn columns_v(first: u32) -> U { return first + vec4(0u, 1u, 2u, 3u); } // the columns that a V has from `first` on
fn pick_v(v: V, i: u32) -> f32 { return v[i]; }
alias S = V;
// shared/single.wgsl: what memory of stored elements is moved in, S, is one V
const K = 1u; // V of an S
fn part(s: S, k: u32) -> V { return V(s); }
fn whole(first: V, last: V) -> S { return S(first); }
fn as_stored(x: V) -> V { return x; }
// shared/grid.wgsl: a one-dimensional index over a two-dimensional dispatch, since one dimension ends at 65,535 groups.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.y * groups.x + group.x; }
// shared/reduce.wgsl: the only reduction over a workgroup. A tree, so that the order of additions never changes.
override WG: u32 = 64u; // invocations of a workgroup, a power of two
var<workgroup> reduce_scratch: array<f32, WG>;

// Every invocation must call these: they hold barriers. The last barrier lets the scratch be used again at once.
fn reduce_sum(lane: u32, x: f32) -> f32 {
    reduce_scratch[lane] = x;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
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
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
    }
    workgroupBarrier();
    let most = reduce_scratch[0];
    workgroupBarrier();
    return most;
}

// Two sums at once, over each team of `team` neighbouring invocations, a power of two.
var<workgroup> pair_scratch: array<vec2<f32>, WG>;
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
// matmul_parts.wgsl: dweight[i] += sum over parts of partials[part, i], in order
//   partials (parts, count V);  dweight (count V);  one invocation per V of dweight
struct P {
    count: u32,   // number of V
    parts: u32,
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> partials: array<V>;
@group(0) @binding(1) var<storage, read_write> dweight: array<V>;

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
       @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count { return; }
    var sum = V();
    for (var part = 0u; part < p.parts; part++) { sum += partials[part * p.count + i]; }
    dweight[i] += sum;
}
