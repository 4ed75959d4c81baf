//! Times the blocks of GPT-2 124M in burn on Vulkan, forward and backward. Prints a line for tools/peers/run.
//!
//! The model is burn's own transformer with the norms first: twelve blocks of 768 channels with a causal mask, over one
//! sequence, without embedding, head and optimizer. The loss is the mean of the squared output. Weights are random.

use std::time::{Duration, Instant};

use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::transformer::{TransformerEncoderConfig, TransformerEncoderInput};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};

fn argument(name: &str, default: f64) -> f64 {
    let mut arguments = std::env::args().skip_while(|a| a != name).skip(1);
    arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let tokens = argument("--context", 64.0) as usize;
    let end = Duration::from_secs_f64(argument("--seconds", 60.0));
    let begin = Instant::now();
    let device = Device::vulkan(DeviceKind::default()).autodiff();
    let model =
        TransformerEncoderConfig::new(768, 4 * 768, 12, 12).with_norm_first(true).with_dropout(0.0).init(&device);
    let input = Tensor::<3>::random([1, tokens, 768], Distribution::Normal(0.0, 1.0), &device);
    let mask = generate_autoregressive_mask(1, tokens, &device);
    let loss = || {
        let out = model.forward(TransformerEncoderInput::new(input.clone()).mask_attn(mask.clone()));
        (out.clone() * out).mean()
    };
    let step = || {
        let gradients = loss().backward();
        device.sync().expect("the device computes");
        drop(gradients);
    };
    // a time would mean nothing if the device computes nothing
    let value: f32 = loss().into_scalar();
    if !(value.is_finite() && value > 0.0) {
        eprintln!("the loss is {value}, expected a positive number");
        std::process::exit(1);
    }
    // burn chooses kernels by trying them in the first steps; software Vulkan is too slow for many of these
    for _ in 0..3 {
        step();
        if begin.elapsed() > end / 2 {
            break;
        }
    }
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < 20 && begin.elapsed() < end) {
        let before = Instant::now();
        step();
        times.push(before.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("burn\tblocks\tf32\t1\t{:.3}\tburn 0.22.1, 1 x {tokens}, {} steps", times[times.len() / 2], times.len());
}
