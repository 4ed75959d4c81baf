// tools/join-shader adds: shared/stub.wgsl shared/step.wgsl
// adamw.wgsl: AdamW with decoupled weight decay (Loshchilov and Hutter), as llm.c's adamw.cuh
//   g = grad_scale grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   m_hat = m / (1 - beta1^t);  denominator = sqrt(v / (1 - beta2^t)) + eps
//   param -= lr (m_hat / denominator + weight_decay param)
//   param, grad, m, v, copy (count Stored);  one invocation per Stored. Writes nothing in a step that is skipped.
//   forward          param, m and v
//   forward_copied   the same, and copy = param for the matrix products
struct AdamwImmediates {
    count: u32,    // number of Stored
    decays: u32,   // 1 if weight decay applies
}
var<immediate> params: AdamwImmediates;

@group(0) @binding(0) var<storage, read_write> param: array<Vec>;
@group(0) @binding(1) var<storage, read> grad: array<Vec>;
@group(0) @binding(2) var<storage, read_write> m: array<Vec>;
@group(0) @binding(3) var<storage, read_write> v: array<Vec>;
@group(0) @binding(4) var<storage, read> state: State;
@group(0) @binding(5) var<storage, read> hyper: Hyper;

@group(0) @binding(6) var<storage, read_write> copy: array<Stored>;

fn update(i: u32) -> Vec {
    let g = grad[i] * state.grad_scale;
    let m_next = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
    let v_next = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
    m[i] = m_next;
    v[i] = v_next;
    let m_hat = m_next / (1.0 - state.beta1_power);
    let denominator = sqrt(v_next / (1.0 - state.beta2_power)) + Vec(hyper.eps);
    let decay = select(0.0, hyper.weight_decay, params.decays == 1u);
    let updated = param[i] - hyper.lr * (m_hat / denominator + decay * param[i]);
    param[i] = updated;
    return updated;
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count || state.apply == 0u { return; }
    for (var k = 0u; k < VECS_PER_STORED; k++) { _ = update(i * VECS_PER_STORED + k); }
}

@compute @workgroup_size(WORKGROUP)
fn forward_copied(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * WORKGROUP + lane;
    if i >= params.count || state.apply == 0u { return; }
    var updated: array<Vec, VECS_PER_STORED>;
    for (var k = 0u; k < VECS_PER_STORED; k++) { updated[k] = update(i * VECS_PER_STORED + k); }
    copy[i] = pack(updated[0], updated[VECS_PER_STORED - 1u]);
}
