//! Generation: a token costs the work of one position.

use std::time::Instant;

use wgpt::infer::Generator;
use wgpt::model::{Activations, Config};

use crate::common::generator::{load, model, open, tokens};

/// A token costs one position's work: attention over more keys is all that grows.
#[test]
fn a_late_token_costs_hardly_more_than_an_early_one() {
    let _turn = super::alone();
    let config = Config::new(1024, 257, 4, 4, 128).expect("config");
    let gpu = open();
    let params = load(&gpu, &model(config));
    let acts = Activations::inference(&gpu, &config, [1, 1024], true, 1).expect("memory");
    let mut generator = Generator::new(&gpu, config, &params, &acts, 1024).expect("recorded");
    let text = tokens(1010, 257);
    // the quickest of ten tokens at each of the two places, in turn, until the machine has let some through
    // undisturbed: what else it does only ever adds
    let mut quickest = |kept: usize| {
        generator.logits(&text[..kept]).expect("logits");
        let one = |generator: &mut Generator| {
            let begin = Instant::now();
            generator.next_logits(7).expect("logits");
            begin.elapsed().as_secs_f64()
        };
        (0..10).map(|_| one(&mut generator)).fold(f64::MAX, f64::min)
    };
    // attention is all arithmetic on a processor: with vectors of 256 bits and not 512 it weighs more (1.36 became 1.6)
    let most = if gpu.caps.software && gpu.caps.lanes < 16 { 2.0 } else { 1.5 };
    let (mut early, mut late) = (f64::MAX, f64::MAX);
    for round in 0..40 {
        early = early.min(quickest(5));
        late = late.min(quickest(995));
        if round >= 4 && late <= most * early {
            break;
        }
    }
    println!("token 10: {:.2} ms, token 1000: {:.2} ms, ratio {:.2}", 1e3 * early, 1e3 * late, late / early);
    assert!(late <= most * early, "token 1000 took {late} s, token 10 {early} s");
}
