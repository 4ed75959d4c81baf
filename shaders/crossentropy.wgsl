// crossentropy.wgsl: losses[n] = -log softmax(logits[n, 0..V])[target[n]];  dlogits = (softmax - onehot) * scale
//   logits (N, Vp), of which the first V columns count;  targets (N) u32, 0xffffffff for a row that does not count
//   forward            one workgroup per row; losses only
//   forward_backward   the same, and logits become dlogits in place; the padded columns become 0
struct P {
    rows: u32,
    vocab: u32,    // V
    stride: u32,   // S of a row
    scale: f32,    // times the state's loss scale: what the gradient is multiplied by
}
var<immediate> p: P;

const IGNORED = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> logits: array<S>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read> state: State;

const LOW = -3.0e38; // stands for minus infinity, which fast math may drop
const ELEMENTS = VW * K; // of an S

// The row's largest logit, and the sum of exponentials below it.
fn softmax_row(row: u32, lane: u32) -> vec2<f32> {
    // one pass: each lane keeps its own maximum and rescales its sum when that grows
    var most = LOW;
    var sum = 0.0;
    for (var c = lane; c * ELEMENTS < p.vocab; c += WG) {
        let all = logits[row + c];
        for (var k = 0u; k < K; k++) {
            let counts = columns_v(c * ELEMENTS + k * VW) < U(p.vocab);
            let x = select(V(LOW), part(all, k), counts);
            let largest = max_v(x);
            if largest > most {
                sum *= exp(most - largest);
                most = largest;
            }
            sum += sum_v(select(V(), exp(x - V(most)), counts));
        }
    }
    let row_most = reduce_max(lane, most);
    return vec2(row_most, reduce_sum(lane, sum * exp(most - row_most)));
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let s = softmax_row(n * p.stride, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
}

fn row_loss(n: u32, s: vec2<f32>) -> f32 {
    let target_token = targets[n];
    if target_token == IGNORED { return 0.0; }
    let v = part(logits[n * p.stride + target_token / ELEMENTS], target_token / VW % K);
    return log(s.y) + s.x - pick_v(v, target_token % VW);
}

@compute @workgroup_size(WG)
fn forward_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) lane: u32) {
    let n = group_index(group, groups);
    if n >= p.rows { return; }
    let row = n * p.stride;
    let s = softmax_row(row, lane);
    if lane == 0u { losses[n] = row_loss(n, s); }
    // the target's logit must be read before any lane overwrites it
    storageBarrier();
    workgroupBarrier();
    let target_token = targets[n];
    let scale = select(p.scale * state.loss_scale, 0.0, target_token == IGNORED);
    let factor = scale / s.y;
    for (var c = lane; c < p.stride; c += WG) {
        let all = logits[row + c];
        var d: array<V, K>;
        for (var k = 0u; k < K; k++) {
            let columns = columns_v(c * ELEMENTS + k * VW);
            let slope = exp(part(all, k) - V(s.x)) * factor - select(V(), V(scale), columns == U(target_token));
            d[k] = select(V(), slope, columns < U(p.vocab));
        }
        logits[row + c] = whole(d[0], d[K - 1u]);
    }
}
