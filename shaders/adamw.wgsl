// adamw.wgsl: AdamW with decoupled weight decay (Loshchilov and Hutter), as llm.c's adamw.cuh
//   g = grad * grad_scale;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   param -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd param)
//   param, grad, m, v, copy (count S);  one invocation per S. Does nothing at all in a step that is skipped.
//   forward          param, m and v
//   forward_copied   the same, and copy = param for the matrix products
struct P {
    count: u32,    // number of S
    decays: u32,   // 1 if weight decay applies
}
var<immediate> p: P;

@group(0) @binding(0) var<storage, read_write> param: array<V>;
@group(0) @binding(1) var<storage, read> grad: array<V>;
@group(0) @binding(2) var<storage, read_write> m: array<V>;
@group(0) @binding(3) var<storage, read_write> v: array<V>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read> hyper: Hyper;

@group(0) @binding(6) var<storage, read_write> copy: array<S>;

fn update(i: u32) -> V {
    let g = grad[i] * state.grad_scale;
    let first = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
    let second = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
    m[i] = first;
    v[i] = second;
    let mean = first / (1.0 - state.beta1_power);
    let spread = sqrt(second / (1.0 - state.beta2_power)) + V(hyper.eps);
    let decay = select(0.0, hyper.weight_decay, p.decays == 1u);
    let now = param[i] - hyper.lr * (mean / spread + decay * param[i]);
    param[i] = now;
    return now;
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count || state.apply == 0u { return; }
    for (var k = 0u; k < K; k++) { _ = update(i * K + k); }
}

@compute @workgroup_size(WG)
fn forward_copied(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WG + lane;
    if i >= p.count || state.apply == 0u { return; }
    var now: array<V, K>;
    for (var k = 0u; k < K; k++) { now[k] = update(i * K + k); }
    copy[i] = whole(now[0], now[K - 1u]);
}
