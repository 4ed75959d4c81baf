//! Measures whole steps by the wall clock.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::data::BatchSource;
use crate::error::{Error, Fault, Result};
use crate::gpu::{Gpu, Span};
use crate::train::collective::{Collective as _, Link};
use crate::train::{Trainer, TrainerOptions};
use crate::units;

use crate::measure::flops_per_token;
use crate::measure::table::number;

/// Measured steps, run as in training: the host is one step ahead of the device.
#[derive(Debug, Clone)]
pub struct Steps {
    /// Milliseconds between the ends of consecutive steps.
    pub ms: Vec<f64>,
    /// Spans of the host's work during the steps.
    pub spans: Vec<Span>,
    /// Time at which the first of these steps was submitted.
    pub begin: Instant,
    /// Times at which the host learnt the end of each step.
    pub ends: Vec<Instant>,
    /// Submissions per step.
    pub submissions: f64,
    /// Buffers and bind groups created during these steps; 0 is expected.
    pub created: u64,
    /// Number of steps.
    pub steps: usize,
}

impl Steps {
    /// Runs `warm_up` steps, then as many steps as fit into `time`, between 2 and `most`. The learning rate is 0. If
    /// devices share the steps, the time of the first device counts.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn run(
        trainer: &mut Trainer,
        loader: &mut dyn BatchSource,
        warm_up: usize,
        most: usize,
        time: Duration,
    ) -> Result<Self> {
        for step in 1..=warm_up {
            trainer.step(loader, step, 0.0)?;
            trainer.report(true)?;
        }
        let gpu = trainer.gpu();
        let created = || gpu.buffers_created() + gpu.bind_groups_created();
        let (created_before, submitted) = (created(), gpu.submissions());
        gpu.record_spans();
        let begin = Instant::now();
        let mut ends: Vec<Instant> = Vec::new();
        let mut step = 1;
        trainer.step(loader, step, 0.0)?;
        // a shared step ends with the call, which waits for the exchange; a step of one device ends with its report
        let shared = trainer.part().devices > 1;
        let mut note = |has_report: bool| {
            if has_report != shared {
                ends.push(Instant::now());
            }
        };
        note(false);
        while first_device_answers(trainer, step < 2 || (step < most && begin.elapsed() < time))? {
            step += 1;
            trainer.step(loader, step, 0.0)?;
            note(false);
            trainer.report(true)?;
            note(true);
        }
        trainer.report(true)?;
        note(true);
        let ms = ends.windows(2).map(|w| w[1].duration_since(w[0]).as_secs_f64() * 1e3).collect();
        Ok(Self {
            ms,
            spans: gpu.take_spans(),
            begin,
            ends,
            submissions: (gpu.submissions() - submitted) as f64 / step as f64,
            created: created() - created_before,
            steps: step,
        })
    }

    /// Returns the median milliseconds per step.
    #[must_use]
    pub fn median_ms(&self) -> f64 {
        median(&self.ms)
    }

    /// Returns the milliseconds per step of each kind of span, without the spans inside it.
    #[must_use]
    pub fn host(&self) -> Vec<(&'static str, f64)> {
        let mut phases: Vec<(&'static str, f64)> = Vec::new();
        // spans are sorted by their ends, so the spans inside one come before it
        let mut open: Vec<&Span> = Vec::new();
        for span in &self.spans {
            let mut ms = span.ms();
            while let Some(inner) = open.pop_if(|inner| inner.begin >= span.begin) {
                ms -= inner.ms();
            }
            open.push(span);
            match phases.iter_mut().find(|(name, _)| *name == span.name) {
                Some((_, sum)) => *sum += ms / self.steps as f64,
                None => phases.push((span.name, ms / self.steps as f64)),
            }
        }
        phases
    }

    /// Returns the milliseconds per step of one kind of span, with the spans inside it.
    #[must_use]
    pub fn whole_ms(&self, name: &str) -> f64 {
        self.spans.iter().filter(|span| span.name == name).map(Span::ms).sum::<f64>() / self.steps as f64
    }
}

/// Returns `own` of the first of the devices that share the steps.
fn first_device_answers(trainer: &mut Trainer, own: bool) -> Result<bool> {
    Ok(trainer.share(&[u8::from(own)])?.first().is_some_and(|first| first == &[1]))
}

/// Calls `work` with a trainer on each device. The devices share each step, with each other or, over `links`, with the
/// devices of other processes. Returns the results in the order of the devices.
///
/// # Errors
/// The first error on any device, which ends the others too.
pub fn on_devices<T: Send>(
    gpus: &[Gpu],
    links: Option<Vec<Link>>,
    options: TrainerOptions,
    work: impl Fn(&mut Trainer) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let links = match (gpus, links) {
        ([gpu], None) => return Ok(vec![work(&mut Trainer::new(gpu, options)?)?]),
        (gpus, None) => Link::threads(gpus.len()),
        (_, Some(links)) => links,
    };
    let on = |gpu: &Gpu, link: Link| -> Result<T> {
        let (part, handle) = (link.part(), link.abort_handle());
        let made = Trainer::linked(gpu, TrainerOptions { part, ..options }, Some(Box::new(link)));
        let result = made.and_then(|mut trainer| work(&mut trainer));
        result.inspect_err(|error| handle.abort(error))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = gpus.iter().zip(links).map(|(gpu, link)| scope.spawn(|| on(gpu, link))).collect();
        let panicked = |_| Error::gpu(Fault::at("device", "its thread panicked"));
        threads.into_iter().map(|thread| thread.join().map_err(panicked).flatten()).collect()
    })
}

/// Returns the median of some numbers; NaN if there are none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Returns half of the range of some numbers, divided by their median.
#[must_use]
pub fn spread(values: &[f64]) -> f64 {
    let (least, most) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    (most - least) / 2.0 / median(values)
}

/// The figures of a step that `wgpt profile` and the step bench show.
#[derive(Debug, Clone, Serialize)]
pub struct StepFigures {
    /// Tokens per step.
    pub tokens: usize,
    /// Steps measured.
    pub steps: usize,
    /// Median milliseconds per step.
    pub ms: f64,
    /// Half of the range of the milliseconds, divided by the median.
    pub spread: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Floating-point operations per second by llm.c's formula.
    pub flops: f64,
    /// Milliseconds per step in which the host did not wait for the device.
    pub host_ms: f64,
    /// Milliseconds per step of each kind of the host's work.
    pub host: Vec<(&'static str, f64)>,
    /// Dispatches per step.
    pub dispatches: u64,
    /// Clears and copies per step.
    pub transfers: u64,
    /// Submissions per step.
    pub submissions: f64,
    /// Buffers and bind groups created during these steps.
    pub created: u64,
    /// Bytes of the memory plan, made without the device.
    pub planned_bytes: u64,
    /// Bytes of wgpt's buffers.
    pub allocated_bytes: u64,
    /// Bytes that wgpu's allocator uses and has reserved, if it reports them.
    pub driver_bytes: Option<(u64, u64)>,
}

impl StepFigures {
    /// Collects the figures of measured steps.
    #[must_use]
    pub fn new(steps: &Steps, trainer: &Trainer, planned_bytes: u64) -> Self {
        let (ms, sizes) = (steps.median_ms(), trainer.sizes());
        let tokens = sizes.tokens();
        let host = steps.host();
        let gpu = trainer.gpu();
        let commands = trainer.step_program().commands;
        let dispatches = commands.iter().filter(|command| command.is_dispatch()).count() as u64;
        Self {
            tokens,
            steps: steps.steps,
            ms,
            spread: spread(&steps.ms),
            tokens_per_s: tokens as f64 / ms * 1e3,
            flops: flops_per_token(trainer.config(), sizes.context) * tokens as f64 / ms * 1e3,
            host_ms: host.iter().filter(|(name, _)| !name.starts_with("wait")).map(|(_, ms)| ms).sum(),
            host,
            dispatches,
            transfers: commands.len() as u64 - dispatches,
            submissions: steps.submissions,
            created: steps.created,
            planned_bytes,
            allocated_bytes: gpu.allocated_bytes(),
            driver_bytes: gpu.driver_bytes(),
        }
    }

    /// Returns a report of three lines.
    #[must_use]
    pub fn report(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let driver = self.driver_bytes.map_or(String::new(), |(used, reserved)| {
            format!(", the allocator {:.1} of {:.1} MiB", mib(used), mib(reserved))
        });
        format!(
            "time    {} ms +-{:.1} % over {}, {} tokens/s, {} TFLOP/s by llm.c's formula\nhost    {} ms ({}); {} dispatches, \
             {} clears and copies, {} submissions per step; {} buffers and bind groups created\nmemory  planned {:.1} MiB, allocated {:.1} MiB{driver}\n",
            number(self.ms),
            100.0 * self.spread,
            units::counted(self.steps as u64, "step"),
            number(self.tokens_per_s),
            number(self.flops / 1e12),
            number(self.host_ms),
            self.host.iter().map(|(name, ms)| format!("{name} {}", number(*ms))).collect::<Vec<_>>().join(", "),
            self.dispatches,
            self.transfers,
            self.submissions,
            self.created,
            mib(self.planned_bytes),
            mib(self.allocated_bytes)
        )
    }
}
