// shared/step.wgsl: the state that stays on the GPU from step to step, and a step's hyperparameters from the host.
// src/ops/stepcontrol.rs has the same structs.
struct State {
    beta1_power: f32,      // beta1 ^ updates applied
    beta2_power: f32,
    updates: u32,          // updates applied: Adam's t
    skipped: u32,          // updates skipped in all
    skipped_in_a_row: u32,
    apply: u32,            // 1 if this step's update is applied
    grad_scale: f32,       // factor of gradients: removes their unit and clips them
    reserved: u32,         // keeps the layout of checkpoints
    loss_scale: f32,       // factor of gradients, a power of two; 1 in f32
    clean_steps: u32,      // updates since the loss scale last changed
}
struct Hyper {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,             // largest gradient norm; 0 disables clipping
    inverse_tokens: f32,   // 1 / tokens of a step, which turns the sum of losses into the mean
    step: u32,
    grad_unit: f32,        // factor of gradients, in addition to the state's loss scale
    dynamic: u32,          // 1 if the loss scale is dynamic: overflows halve it
    skip_loss_z: f32,      // largest z-score of a loss, above which a step is skipped; 0 disables it
    skip_norm_z: f32,      // the same for the gradient norm
}
