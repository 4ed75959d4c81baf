// crossentropy.wgsl: losses[n] = -log softmax(logits[n, 0..V])[target[n]];  dlogits = (softmax - onehot) * scale
//   logits (N, Vp), of which the first V columns count;  targets (N) u32, 0xffffffff for a row that does not count
//   forward            one workgroup per row; losses only
//   forward_backward   the same, and logits become dlogits in place; the padded columns become 0
struct P {
    rows: u32,
    vocab: u32,    // V
    stride: u32,   // Vp
    scale: f32,    // times the state's loss scale: what the gradient is multiplied by
}
var<immediate> p: P;


const IGNORED = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> logits: array<E>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read> state: State;

// The row's largest logit, and the sum of exponentials below it.
fn softmax_row(row: u32, lane: u32) -> vec2<f32> {
    // one pass: each lane keeps its own maximum and rescales its sum when that grows
    var most = -3.0e38;
    var sum = 0.0;
    for (var c = lane; c < p.vocab; c += WG) {
        let x = f32(logits[row + c]);
        if x > most {
            sum *= exp(most - x);
            most = x;
        }
        sum += exp(x - most);
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
    return log(s.y) + s.x - f32(logits[n * p.stride + target_token]);
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
        var d = 0.0;
        if c < p.vocab {
            d = exp(f32(logits[row + c]) - s.x) * factor;
            if c == target_token { d -= scale; }
        }
        logits[row + c] = E(d);
    }
}
