//! Times the blocks of GPT-2 124M in meganeura, forward and backward. Prints a line for tools/peers/run.
//!
//! The model is twelve blocks of 768 channels over one sequence, without embedding and head. The loss is the mean of
//! the squared output. A session also updates weights; the learning rate is 0. Weights are random.

use std::time::{Duration, Instant};

use meganeura::nn::Linear;
use meganeura::{Graph, SessionConfig};

const LAYERS: usize = 12;
const HEADS: u32 = 12;
const CHANNELS: usize = 768;

fn graph(tokens: usize) -> Graph {
    let mut g = Graph::new();
    let mut x = g.input("x", &[tokens, CHANNELS]);
    for l in 0..LAYERS {
        let weight = |g: &mut Graph, name: &str| g.parameter(&format!("h.{l}.{name}"), &[CHANNELS]);
        let (ln1w, ln1b) = (weight(&mut g, "ln1w"), weight(&mut g, "ln1b"));
        let ln1 = g.layer_norm(x, ln1w, ln1b, 1e-5);
        // three products instead of GPT-2's single one of three times the width, because graphs have no split
        let [q, k, v] = ["q", "k", "v"]
            .map(|name| Linear::new(&mut g, &format!("h.{l}.{name}"), CHANNELS, CHANNELS).forward(&mut g, ln1));
        let atty = g.causal_attention(q, k, v, HEADS, HEADS, CHANNELS as u32 / HEADS);
        let attproj = Linear::new(&mut g, &format!("h.{l}.attproj"), CHANNELS, CHANNELS).forward(&mut g, atty);
        x = g.add(x, attproj);
        let (ln2w, ln2b) = (weight(&mut g, "ln2w"), weight(&mut g, "ln2b"));
        let ln2 = g.layer_norm(x, ln2w, ln2b, 1e-5);
        let fch = Linear::new(&mut g, &format!("h.{l}.fc"), CHANNELS, 4 * CHANNELS).forward(&mut g, ln2);
        let fch_gelu = g.gelu(fch);
        let fcproj = Linear::new(&mut g, &format!("h.{l}.fcproj"), 4 * CHANNELS, CHANNELS).forward(&mut g, fch_gelu);
        x = g.add(x, fcproj);
    }
    let squares = g.mul(x, x);
    let loss = g.mean_all(squares);
    g.set_outputs(vec![loss]);
    g
}

fn argument(name: &str, default: f64) -> f64 {
    let mut arguments = std::env::args().skip_while(|a| a != name).skip(1);
    arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Returns `n` small pseudo-random numbers.
fn values(n: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0) * scale
    };
    (0..n).map(|_| next()).collect()
}

fn main() {
    let tokens = argument("--context", 64.0) as usize;
    let end = Duration::from_secs_f64(argument("--seconds", 60.0));
    let begin = Instant::now();
    let (mut session, _) = meganeura::build(&graph(tokens), SessionConfig::from_env());
    for (name, buffer) in session.plan().param_buffers.clone() {
        let n = session.plan().buffers[buffer.0 as usize] / 4;
        let norm = name.ends_with("ln1w") || name.ends_with("ln2w");
        session.set_parameter(&name, &if norm { vec![1.0; n] } else { values(n, 0.035) });
    }
    session.set_learning_rate(0.0);
    session.set_input("x", &values(tokens * CHANNELS, 1.0));
    session.step();
    session.wait();
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < 20 && begin.elapsed() < end) {
        let before = Instant::now();
        session.step();
        session.wait();
        times.push(before.elapsed().as_secs_f64() * 1e3);
    }
    // a time would mean nothing if the device computed nothing
    let loss = session.read_loss();
    if !(loss.is_finite() && loss > 0.0) {
        eprintln!("the loss is {loss}, expected a positive number");
        std::process::exit(1);
    }
    times.sort_by(f64::total_cmp);
    let remark =
        format!("meganeura 0.3.0, 1 x {tokens}, {} steps, {} dispatches", times.len(), session.plan().dispatches.len());
    println!("meganeura\tblocks\tf32\t1\t{:.3}\t{remark}", times[times.len() / 2]);
}
