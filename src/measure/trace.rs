//! Chrome traces of steps, for Perfetto or chrome://tracing: the host's work in several steps, and every kernel of one
//! step.

use std::time::Instant;

use serde_json::{Value, json};

use crate::gpu::Span;

use crate::measure::profile::Profile;
use crate::measure::steps::Steps;

/// Process and thread numbers of the trace's tracks.
const HOST: (u32, u32) = (1, 1);
const STEPS: (u32, u32) = (1, 2);
const KERNELS: (u32, u32) = (2, 1);
const PLACES: (u32, u32) = (2, 2);

fn named(what: &str, (pid, tid): (u32, u32), name: &str) -> Value {
    json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}})
}

fn event(name: &str, category: &str, (pid, tid): (u32, u32), begin_us: f64, end_us: f64, args: Value) -> Value {
    // viewers nest events by their times, so no event may end before it begins
    let duration = (end_us - begin_us).max(0.0);
    json!({"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, "ts": begin_us, "dur": duration, "args": args})
}

/// Process number in the trace of the host's work for the second device.
const OTHERS: u32 = 3;

/// Returns the trace of steps by the wall clock, with the host's work for `others`, the devices that share them, and of
/// the step whose commands were timed. The device has another clock, so the timed step is placed at the time when the
/// host began to encode it.
#[must_use]
pub fn trace(steps: &Steps, others: &[&Steps], profile: Option<&Profile>, about: &Value) -> Value {
    let us = |at: Instant| at.saturating_duration_since(steps.begin).as_secs_f64() * 1e6;
    let mut events = vec![
        named("process_name", HOST, "host"),
        named("thread_name", HOST, "phases"),
        named("thread_name", STEPS, "steps"),
        named("process_name", KERNELS, "device"),
        named("thread_name", KERNELS, "kernels"),
        named("thread_name", PLACES, "layers"),
    ];
    let phases = |track: (u32, u32), steps: &Steps, events: &mut Vec<Value>| {
        for Span { name, begin, end } in &steps.spans {
            let category = ["wait", "exchange"].into_iter().find(|kind| name.starts_with(kind)).unwrap_or("host");
            events.push(event(name, category, track, us(*begin), us(*end), json!({})));
        }
    };
    phases(HOST, steps, &mut events);
    for (number, other) in others.iter().enumerate() {
        let track = (OTHERS + number as u32, 1);
        events.push(named("process_name", track, &format!("host of device {}", number + 1)));
        events.push(named("thread_name", track, "phases"));
        phases(track, other, &mut events);
    }
    let mut begin = steps.begin;
    for (i, end) in steps.ends.iter().enumerate() {
        events.push(event(&format!("step {}", i + 1), "step", STEPS, us(begin), us(*end), json!({})));
        begin = *end;
    }
    if let Some(profile) = profile {
        let origin = us(profile.host.0);
        events.push(event("timed step", "host", HOST, origin, us(profile.host.1), json!({})));
        kernels(profile, origin, &mut events);
        places(profile, origin, &mut events);
    }
    json!({"displayTimeUnit": "ms", "otherData": about, "traceEvents": events})
}

fn kernels(profile: &Profile, origin: f64, events: &mut Vec<Value>) {
    for timing in &profile.timings.commands {
        let command = &profile.program.commands[timing.command];
        let seconds = timing.ms() / 1e3;
        let rate = |amount: u64| if seconds > 0.0 { amount as f64 / 1e9 / seconds } else { 0.0 };
        let args = json!({
            "layer": command.place.to_string(),
            "grid": command.grid,
            "flops": command.flops,
            "bytes": command.bytes,
            "GFLOP/s": rate(command.flops),
            "GB/s": rate(command.bytes),
        });
        let (begin, end) = (origin + 1e3 * timing.begin_ms, origin + 1e3 * timing.end_ms);
        events.push(event(command.name(), "kernel", KERNELS, begin, end, args));
    }
}

/// Adds one event for each run of commands at the same place.
fn places(profile: &Profile, origin: f64, events: &mut Vec<Value>) {
    let place = |timing: &crate::gpu::Timing| profile.program.commands[timing.command].place;
    for run in profile.timings.commands.chunk_by(|a, b| place(a) == place(b)) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let (begin, end) = (origin + 1e3 * first.begin_ms, origin + 1e3 * last.end_ms);
        events.push(event(&place(first).to_string(), "layer", PLACES, begin, end, json!({"commands": run.len()})));
    }
}
