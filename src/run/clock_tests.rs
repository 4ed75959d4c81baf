//! Times steps from streams of instants that are given as data.

use super::*;

fn report(step: usize) -> Report {
    Report { step: step as u32, ..bytemuck::Zeroable::zeroed() }
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

/// Times steps whose reports arrive at these milliseconds and share the remaining time at the end.
fn timed(arrivals: &[f64]) -> Vec<f64> {
    let start = Instant::now();
    let mut clock = Clock::new(1, start);
    let mut all = Vec::new();
    for (i, at) in arrivals.iter().enumerate() {
        clock.submitted(i + 1);
        clock.arrive(report(i + 1), None, start + ms(*at));
        all.extend(std::iter::from_fn(|| clock.oldest()));
    }
    clock.share();
    all.extend(std::iter::from_fn(|| clock.oldest()));
    let steps: Vec<usize> = all.iter().map(|(report, _)| report.step as usize).collect();
    assert_eq!(steps, (1..=arrivals.len()).collect::<Vec<_>>());
    all.into_iter().map(|(_, ms)| ms).collect()
}

/// Panics unless the steps' times add up to the last arrival and each is at least a tenth of the median.
#[track_caller]
fn even(arrivals: &[f64]) {
    let times = timed(arrivals);
    let (sum, end) = (times.iter().sum::<f64>(), arrivals[arrivals.len() - 1]);
    assert!((sum - end).abs() < 1e-3, "{sum} ms of {end}");
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let (least, median) = (sorted[0], sorted[sorted.len() / 2]);
    assert!(least >= 0.1 * median, "{least} ms, median {median}: {times:?}");
}

#[test]
fn reports_that_come_in_together_have_equal_shares() {
    // pairs, 0.15 ms apart
    let pairs: Vec<f64> = (0..300).map(|i| 40.0 * f64::from(i / 2 + 1) + 0.15 * f64::from(i % 2)).collect();
    even(&pairs);
    let times = timed(&pairs);
    for pair in times.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    // threes and fours, after a first step that compiles
    for together in [3, 4] {
        let at = |i: usize| 2000.0 + 25.0 * (i / together) as f64 + 0.05 * (i % together) as f64;
        even(&(0..300).map(at).collect::<Vec<_>>());
    }
    // steps apart from each other are timed one by one
    let apart: Vec<f64> = (1..=100).map(|i| 30.0 * f64::from(i) + f64::from(i % 7)).collect();
    even(&apart);
    assert!(timed(&apart)[10..].windows(2).any(|two| two[0] != two[1]));
}

/// Steps of 10 ms that end evenly, with a host that polls now and then and has at most four in flight.
#[test]
fn a_host_that_looks_late_makes_no_step_fast() {
    let mut random = 1_u32;
    for most in [1.0, 9.0, 19.0, 35.0] {
        let (mut arrivals, mut now, mut end) = (Vec::<f64>::new(), 0.0_f64, 0.0_f64);
        for step in 0..400 {
            // a step begins when the one before has ended, and when the one four before it is known to have
            end = f64::max(end, if step >= 4 { arrivals[step - 4] } else { 0.0 }) + 10.0;
            if now < end {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                now = end + most * f64::from(random >> 8) / f64::from(1 << 24);
            } else {
                now += 0.02;
            }
            arrivals.push(now);
        }
        even(&arrivals);
    }
}

#[test]
fn pauses_are_no_part_of_a_step() {
    let start = Instant::now();
    let mut clock = Clock::new(1, start);
    let mut at = 0.0;
    for step in 1..=20 {
        clock.submitted(step);
        at += 20.0;
        clock.arrive(report(step), None, start + ms(at));
        if step % 5 == 0 {
            // validation, which waits for the step
            clock.share();
            clock.paused(ms(500.0));
            at += 500.0;
        }
    }
    clock.share();
    for step in 1..=20 {
        let (report, time) = clock.oldest().expect("timed");
        assert_eq!(report.step, step);
        assert!((time - 20.0).abs() < 1e-6, "step {step}: {time} ms");
        let pause = clock.take_pause_ms(step as usize);
        assert_eq!(pause.map(f32::round), (step > 1 && step % 5 == 1).then_some(500.0), "step {step}");
    }
    assert!(clock.mean_ms().is_some_and(|mean| (mean - 20.0).abs() < 1e-6));
}

#[test]
fn the_first_step_does_not_count_for_the_mean() {
    let start = Instant::now();
    // alone, and together with the second
    for second in [3010.0, 3000.1] {
        let mut clock = Clock::new(7, start);
        let later = (9..30).map(|step| (step, 2940.0 + 10.0 * step as f64));
        for (step, at) in [(7, 3000.0), (8, second)].into_iter().chain(later) {
            clock.submitted(step);
            clock.arrive(report(step), None, start + ms(at));
        }
        clock.share();
        let mean = clock.mean_ms().expect("several steps");
        assert!((mean - 10.0).abs() < 2.0, "{mean} ms");
    }
}

#[test]
fn the_device_s_clock_tells_steps_apart_and_leaves_out_what_it_idled() {
    let start = Instant::now();
    let mut clock = Clock::new(1, start);
    let laps = |clock: &mut Clock, step: usize, begin_ms: f64, end_ms: f64| {
        // all reports arrive together
        clock.arrive(report(step), Some(Lap { begin_ms, end_ms }), start + ms(1000.0));
        let (timed, ms) = clock.oldest().expect("timed at once");
        assert_eq!(timed.step as usize, step);
        (ms, clock.take_pause_ms(step))
    };
    (1..=3).for_each(|step| clock.submitted(step));
    assert_eq!(laps(&mut clock, 1, 100.0, 400.0), (300.0, None));
    assert_eq!(laps(&mut clock, 2, 400.0, 410.0), (10.0, None));
    // the host had no batch for it in time
    assert_eq!(laps(&mut clock, 3, 415.0, 425.0), (15.0, None));
    // the device was idle for 60 of the 80 ms that the host spent on something else
    clock.paused(ms(80.0));
    clock.submitted(4);
    assert_eq!(laps(&mut clock, 4, 485.0, 495.0), (10.0, Some(60.0)));
    // not at all, and longer than the pause
    clock.paused(ms(80.0));
    clock.submitted(5);
    assert_eq!(laps(&mut clock, 5, 495.0, 505.0), (10.0, None));
    clock.paused(ms(80.0));
    clock.submitted(6);
    assert_eq!(laps(&mut clock, 6, 588.0, 598.0), (13.0, Some(80.0)));
    // a step without a lap is timed by the host
    clock.submitted(7);
    clock.arrive(report(7), None, start + ms(1012.0));
    clock.share();
    assert!(clock.oldest().is_some_and(|(report, ms)| report.step == 7 && (ms - 12.0).abs() < 1e-6));
}
