//! The devices of a run. The process's main thread drives its first device; each other device has its own thread, which carries
//! out orders. If there are several processes, the first one's orders reach the others as messages ([`super::follow`]).
//!
//! All devices make the same calls on their trainers, and exchange data within these calls. An error of one device ends all, with
//! the same error.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::data::hellaswag::Example;
use crate::data::{Batch, BatchSource, Rows};
use crate::error::{Error, Fault, Result};
use crate::gpu::{Gpu, Lap};
use crate::infer::evaluate::Evaluator;
use crate::model::Weights;
use crate::ops::stepcontrol::Report;
use crate::run::orders::{Crew, Message};
use crate::train::collective::{AbortHandle, Collective, Link};
use crate::train::trainer::DeviceSlot;
use crate::train::{Snapshot, Trainer, TrainerOptions};

/// Questions of HellaSwag between two checks for a signal.
pub(super) const QUESTIONS: usize = 64;

/// A call for every device to make.
enum Order {
    Load(Arc<Weights>),
    Restore(Arc<Snapshot>),
    Step { step: usize, lr: f32, batches: Vec<Batch> },
    Evaluate { rows: Rows, count: usize },
    Answer(Arc<[Example]>),
    Snapshot,
}

/// The devices of a run as one.
pub struct Team<'g> {
    lead: Trainer<'g>,
    orders: Vec<Sender<Order>>,
    /// The first device's batches of the current step, if there are several devices.
    own: Queue,
    /// The processes of the run, if there are several. They repeat the first one's calls.
    crew: Option<&'g Crew<'g>>,
}

/// Batches that wait for a device.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Batch>,
    lent: Option<Batch>,
}

impl BatchSource for Queue {
    fn next_batch(&mut self) -> Result<&Batch> {
        let none = || Error::data(Fault::at("loader", "a device was given too few batches"));
        Ok(self.lent.insert(self.waiting.pop_front().ok_or_else(none)?))
    }
}

impl<'g> Team<'g> {
    /// Makes a trainer on each device of this process, linked with those of the other processes of `crew`, and calls `work` with
    /// them.
    ///
    /// # Errors
    /// The first error of `work` or of any device. An error of a device other than the first has its number.
    pub fn with<T>(
        gpus: &'g [Gpu],
        options: TrainerOptions,
        crew: Option<&'g Crew<'g>>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let [lead, rest @ ..] = gpus else { return Err(Error::device("devices: none was opened")) };
        let (own, orders) = (Queue::default(), Vec::new());
        let mut links = match crew {
            None if rest.is_empty() => {
                return work(&mut Self { lead: Trainer::new(lead, options)?, orders, own, crew });
            }
            None => Link::threads(gpus.len()),
            Some(crew) => crew.links()?,
        };
        if links.len() != gpus.len() {
            let fault = Fault::at("devices", format!("{} for {} links", gpus.len(), links.len()));
            return Err(Error::device(fault.expected("as many")));
        }
        let first = links.remove(0);
        let handle = first.abort_handle();
        std::thread::scope(|scope| {
            let mut orders = Vec::new();
            for (gpu, link) in rest.iter().zip(links) {
                let (sender, receiver) = channel();
                orders.push(sender);
                let part = link.part();
                let thread = std::thread::Builder::new().name(format!("device {}", part.device));
                let options = TrainerOptions { part, ..options };
                let started = thread.spawn_scoped(scope, move || {
                    let handle = link.abort_handle();
                    ends_all(&handle, part.device, || follow(gpu, options, link, receiver));
                });
                if let Err(error) = started {
                    let error = Error::device(Fault::at("device", format!("cannot start a thread: {error}")));
                    handle.abort(&error);
                    return Err(error);
                }
            }
            let mut result = None;
            ends_all(&handle, 0, || {
                let options = TrainerOptions { part: first.part(), ..options };
                let made = Trainer::linked(lead, options, Some(Box::new(first)))
                    .and_then(|lead| work(&mut Self { lead, orders, own, crew }));
                let error = made.as_ref().err().cloned();
                result = Some(made);
                // a stopped and saved run ends the other processes by a message
                error.filter(|error| !matches!(error, Error::Stopped(_))).map_or(Ok(()), Err)
            });
            result.unwrap_or_else(|| Err(Error::gpu("devices: the first one ended without an error")))
        })
    }

    /// Returns the first device's trainer.
    #[must_use]
    pub fn lead(&self) -> &Trainer<'g> {
        &self.lead
    }

    /// Returns the numbers, within the run, of this process's devices.
    fn here(&self) -> Range<usize> {
        let first = self.lead.part().device;
        first..first + 1 + self.orders.len()
    }

    /// Orders the other devices of this process to make a call. A device that has ended reports why in the next exchange.
    fn order(&self, mut order: impl FnMut(usize) -> Order) {
        self.orders.iter().enumerate().for_each(|(other, sender)| drop(sender.send(order(other + 1))));
    }

    /// Orders the other processes to make a call.
    fn send(&self, message: &Message) -> Result<()> {
        self.crew.map_or(Ok(()), |crew| crew.send(message))
    }

    /// Overwrites the weights of all devices. Waits until each has built its kernels, so that no step's time includes that.
    ///
    /// # Errors
    /// Those of [`Trainer::load`].
    pub fn load(&mut self, mut weights: Weights) -> Result<()> {
        self.send(&Message::Load)?;
        self.crew.map_or(Ok(()), |crew| crew.fill(&mut weights))?;
        let weights = Arc::new(weights);
        self.order(|_| Order::Load(Arc::clone(&weights)));
        self.lead.load(&weights)?;
        self.lead.share(&[]).map(drop)
    }

    /// Calls [`Trainer::restore`] on all devices. Waits as [`Team::load`] does.
    ///
    /// # Errors
    /// Those of [`Trainer::restore`].
    pub fn restore(&mut self, mut snapshot: Snapshot) -> Result<()> {
        self.send(&Message::Restore)?;
        self.crew.map_or(Ok(()), |crew| crew.fill_snapshot(&mut snapshot))?;
        let snapshot = Arc::new(snapshot);
        self.order(|_| Order::Restore(Arc::clone(&snapshot)));
        self.lead.restore(&snapshot)?;
        self.lead.share(&[]).map(drop)
    }

    /// Calls [`Trainer::step_unless`] on all devices. The batches of a step are ordered by rank, and each device gets those of its
    /// own ranks.
    ///
    /// # Errors
    /// Those of [`Trainer::step_unless`].
    pub fn step_unless(
        &mut self,
        source: &mut dyn BatchSource,
        step: usize,
        lr: f32,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        self.send(&Message::Step { step, lr: lr.to_bits() })?;
        let devices = self.lead.part().devices;
        if devices == 1 {
            return self.lead.step_unless(source, step, lr, stop);
        }
        let each = self.lead.sizes().accumulation / devices;
        let here = self.here();
        let mut shares: VecDeque<Vec<Batch>> = VecDeque::new();
        for device in 0..devices {
            let is_here = here.contains(&device);
            let mut share = Vec::new();
            for _ in 0..each {
                // each process reads the whole step, so that all have the same position in the data
                let batch = source.next_batch()?;
                if is_here {
                    share.push(batch.clone());
                }
            }
            shares.extend(is_here.then_some(share));
        }
        let own = shares.pop_front().unwrap_or_default();
        self.order(|device| Order::Step { step, lr, batches: std::mem::take(&mut shares[device - 1]) });
        self.own = Queue { waiting: own.into(), lent: None };
        self.lead.step_unless(&mut self.own, step, lr, stop)
    }

    /// Returns [`Trainer::outstanding`] of the first device.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.lead.outstanding()
    }

    /// Returns [`Trainer::timed_report`] of the first device, timed by its clock.
    ///
    /// # Errors
    /// Those of [`Trainer::timed_report`].
    pub fn timed_report(&mut self, wait: bool) -> Result<Option<(Report, Option<Lap>)>> {
        self.lead.timed_report(wait)
    }

    /// Calls [`Trainer::evaluate_unless`] on all devices.
    ///
    /// # Errors
    /// Those of [`Trainer::evaluate_unless`].
    pub fn evaluate_unless(&mut self, rows: &mut Rows, count: usize, stop: &dyn Fn() -> bool) -> Result<Option<f64>> {
        self.send(&Message::Evaluate { count })?;
        self.order(|_| Order::Evaluate { rows: rows.clone(), count });
        self.lead.evaluate_unless(rows, count, stop)
    }

    /// Returns the number of HellaSwag's questions that the model answers correctly, or `None` if `stop` returned true before a
    /// part of them. Uses the memory of the step's activations.
    ///
    /// # Errors
    /// Those of [`Evaluator::answers`].
    pub fn answer(&mut self, questions: &Arc<[Example]>, stop: &dyn Fn() -> bool) -> Result<Option<usize>> {
        self.send(&Message::Answer)?;
        self.order(|_| Order::Answer(Arc::clone(questions)));
        answer(&mut self.lead, questions, stop)
    }

    /// Calls [`Trainer::snapshot`] on all devices. Only the first process gets a snapshot.
    ///
    /// # Errors
    /// Those of [`Trainer::snapshot`].
    pub fn snapshot(&mut self) -> Result<Option<Snapshot>> {
        self.send(&Message::Snapshot)?;
        self.order(|_| Order::Snapshot);
        self.lead.snapshot()
    }

    /// Discards the reports that have arrived, because another process writes the records.
    ///
    /// # Errors
    /// Those of [`Trainer::report`].
    pub fn drop_reports(&mut self) -> Result<()> {
        while self.lead.report(false)?.is_some() {}
        Ok(())
    }
}

/// Does a device's work. An error or a panic of it ends all devices.
fn ends_all(handle: &AbortHandle, device: usize, work: impl FnOnce() -> Result<()>) {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) if device == 0 => handle.abort(&error),
        Ok(Err(error)) => handle.abort(&error.on_device(device)),
        Err(panic) => {
            handle.abort(&Error::gpu(Fault::at(format!("device {device}"), "its thread panicked")));
            // a panic on another thread is reported by the first device's error
            if device == 0 {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Carries out a device's orders until their channel closes.
fn follow(gpu: &Gpu, options: TrainerOptions, link: Link, orders: Receiver<Order>) -> Result<()> {
    let mut trainer = Trainer::linked(gpu, options, Some(Box::new(link)))?;
    for order in orders {
        match order {
            Order::Load(weights) => {
                trainer.load(&weights)?;
                trainer.share(&[])?;
            }
            Order::Restore(snapshot) => {
                trainer.restore(&snapshot)?;
                trainer.share(&[])?;
            }
            Order::Step { step, lr, batches } => {
                let mut source = Queue { waiting: batches.into(), lent: None };
                trainer.step_unless(&mut source, step, lr, &|| false)?;
                // the first device has the same reports
                while trainer.report(false)?.is_some() {}
            }
            Order::Evaluate { mut rows, count } => drop(trainer.evaluate_unless(&mut rows, count, &|| false)?),
            Order::Answer(questions) => drop(answer(&mut trainer, &questions, &|| false)?),
            Order::Snapshot => drop(trainer.snapshot()?),
        }
    }
    Ok(())
}

/// Answers a device's part of the questions. Returns how many all devices together answer correctly.
fn answer(trainer: &mut Trainer, questions: &[Example], stop: &dyn Fn() -> bool) -> Result<Option<usize>> {
    let DeviceSlot { device, devices, .. } = trainer.part();
    let (mut correct, mut gives_up) = (0_u64, false);
    {
        let (gpu, params) = (trainer.gpu(), trainer.params());
        let mut evaluator = Evaluator::within(gpu, *trainer.config(), params, trainer.activations())?;
        for part in questions.chunks(QUESTIONS).skip(device).step_by(devices) {
            gives_up = stop() || trainer.is_asked_to_stop();
            if gives_up {
                trainer.ask_to_stop();
                break;
            }
            let (answers, _) = evaluator.answers(part, |_| ())?;
            correct += answers.iter().filter(|answer| answer.choice == answer.label).count() as u64;
        }
    }
    if trainer.any_gives_up(gives_up)? {
        return Ok(None);
    }
    let all = trainer.share(&correct.to_le_bytes())?;
    Ok(Some(all.iter().map(|bytes| bytemuck::pod_read_unaligned::<u64>(bytes) as usize).sum()))
}
