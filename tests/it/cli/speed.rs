//! The speed of a run in its records.

use super::{metrics, text_file, train};

#[test]
fn no_step_of_many_small_ones_is_told_to_be_far_faster_than_the_others() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let outcome = train(
        dir,
        &["--steps", "300", "--val-every", "60", "--checkpoint-every", "70", "--log-every", "1", "--out", "run"],
    )
    .ends_with(0);
    let lines = metrics(&dir.join("run"));
    let number = |line: &serde_json::Value, key: &str| line[key].as_f64();
    let steps: Vec<f64> = lines.iter().filter_map(|line| number(line, "ms")).collect();
    assert_eq!(steps.len(), 300);
    let mut sorted = steps.clone();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted[0] >= 0.1 * sorted[150], "{} ms, median {} ms", sorted[0], sorted[150]);

    // steps and pauses together are no more than all the time that there was
    let pauses: f64 = lines.iter().filter_map(|line| number(line, "pause_ms")).sum();
    let seconds = (steps.iter().sum::<f64>() + pauses) / 1e3;
    assert!(seconds > 0.0 && seconds < outcome.seconds, "{seconds} s of {}", outcome.seconds);

    // one number for all readers
    let events = super::scalars(&dir.join("run"));
    let printed = outcome.out.lines().filter(|line| line.ends_with(" tok/s") || line.contains(" tok/s | "));
    for (line, printed) in lines[1..].iter().zip(printed) {
        let (ms, speed) = (number(line, "ms").expect("ms"), number(line, "tokens_per_s").expect("tokens_per_s"));
        assert!((speed * ms / 32e3 - 1.0).abs() < 1e-5, "{line}");
        let shown = wgpt::units::count(speed.round() as u64);
        assert!(printed.contains(&format!("| {ms:.0} ms | {shown} tok/s")), "{printed}, {line}");
        let step = line["step"].as_u64().expect("step");
        let found = events.iter().find(|(s, name, _)| *s == step && name == "speed/tokens_per_s").expect("an event");
        assert_eq!(found.2, speed as f32, "step {step}");
    }
}
