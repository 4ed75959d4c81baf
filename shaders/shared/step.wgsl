// shared/step.wgsl: what lives on the GPU from step to step, and what the host says of a step; src/ops/stepcontrol.rs has
// the same structs.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // what gradients are multiplied by: their unit taken out, then clipped
    reserved: u32,         // keeps the layout of checkpoints
    loss_scale: f32,       // a power of two that the gradients are multiplied by; 1 in f32
    clean_steps: u32,      // updates since the loss scale last changed
}
struct Hyper {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,             // largest gradient norm; 0 switches clipping off
    inverse_tokens: f32,   // 1 / tokens of a step: from a sum of losses to their mean
    step: u32,
    grad_unit: f32,        // gradients are multiples of this and of the state's loss scale
    dynamic: u32,          // 1 if the state's loss scale follows overflows
    skip_loss_z: f32,      // a step is skipped if its loss's z-score is above this; 0 switches it off
    skip_norm_z: f32,      // the same of its gradient norm
}
