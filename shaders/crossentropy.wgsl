// tools/join-shader adds: shared/stub.wgsl shared/step.wgsl shared/group_tree.wgsl
// crossentropy.wgsl: losses[n] = -log softmax(logits[n, 0..V])[target[n]];  dlogits = (softmax - onehot) * scale
//   logits (N, Vp), of which the first V columns count;  targets (N) u32, 0xffffffff for an ignored row
//   forward            one workgroup per row; losses only. A row is read twice, so workgroups for long rows are large
//                      enough that the rows in flight fit the L2
//   forward_backward   the same, and logits become dlogits in place; the padded columns become 0
struct CrossentropyImmediates {
    rows: u32,
    vocab: u32,    // V
    stride: u32,   // Stored per row
    scale: f32,    // factor of the gradient, in addition to the state's loss scale
}
var<immediate> params: CrossentropyImmediates;

const IGNORED = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> logits: array<Stored>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read> state: State;

const LOW = -3.0e38; // stands for minus infinity, which fast math may drop
const ELEMENTS_PER_STORED = ELEMENTS_PER_VEC * VECS_PER_STORED; // elements per Stored

// The row's largest logit, and the sum of exponentials below it.
fn softmax_row(row: u32, lane: u32) -> vec2<f32> {
    // one pass: each lane keeps its own maximum and rescales its sum when the maximum grows
    var most = LOW;
    var sum = 0.0;
    for (var c = lane; c * ELEMENTS_PER_STORED < params.vocab; c += WORKGROUP) {
        let all = logits[row + c];
        for (var k = 0u; k < VECS_PER_STORED; k++) {
            let counts = columns_from(c * ELEMENTS_PER_STORED + k * ELEMENTS_PER_VEC) < UVec(params.vocab);
            let x = select(Vec(LOW), unpack(all, k), counts);
            let largest = max_element(x);
            if largest > most {
                sum *= exp(most - largest);
                most = largest;
            }
            sum += sum_elements(select(Vec(), exp(x - Vec(most)), counts));
        }
    }
    let row_most = group_max(lane, most);
    return vec2(row_most, group_sum(lane, sum * exp(most - row_most)));
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, invocation: Invocation) {
    let n = group_index(group, groups);
    if n >= params.rows { return; }
    let lane = lane_of(invocation);
    let s = softmax_row(n * params.stride, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
}

fn row_loss(n: u32, s: vec2<f32>) -> f32 {
    let target_token = targets[n];
    if target_token == IGNORED { return 0.0; }
    let v = unpack(logits[n * params.stride + target_token / ELEMENTS_PER_STORED],
                   target_token / ELEMENTS_PER_VEC % VECS_PER_STORED);
    return log(s.y) + s.x - element_of(v, target_token % ELEMENTS_PER_VEC);
}

@compute @workgroup_size(WORKGROUP)
fn forward_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    invocation: Invocation) {
    let n = group_index(group, groups);
    if n >= params.rows { return; }
    let lane = lane_of(invocation);
    let row = n * params.stride;
    let s = softmax_row(row, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
    // the target's logit must be read before any lane overwrites it
    storageBarrier();
    workgroupBarrier();
    let target_token = targets[n];
    let scale = select(params.scale * state.loss_scale, 0.0, target_token == IGNORED);
    let factor = scale / s.y;
    for (var c = lane; c < params.stride; c += WORKGROUP) {
        let all = logits[row + c];
        var d: array<Vec, VECS_PER_STORED>;
        for (var k = 0u; k < VECS_PER_STORED; k++) {
            let columns = columns_from(c * ELEMENTS_PER_STORED + k * ELEMENTS_PER_VEC);
            let slope = exp(unpack(all, k) - Vec(s.x)) * factor - select(Vec(), Vec(scale), columns == UVec(target_token));
            d[k] = select(Vec(), slope, columns < UVec(params.vocab));
        }
        logits[row + c] = pack(d[0], d[VECS_PER_STORED - 1u]);
    }
}
