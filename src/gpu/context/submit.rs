//! Submits work to the device, waits for it, and notices that the device is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::submitter::Driver;
use super::{Gpu, HANG, LOSS, Raw, Ticket, lock, panic_text};
use crate::error::{Error, Fault, Result};
use crate::gpu::Waits;
use crate::gpu::faults::Call;

impl Gpu {
    /// Returns whether the device is lost. wgpu's calls then do nothing and report nothing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Returns the host's waits for this device, for a watchdog.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// Records a loss that a call has found, and returns its error.
    pub(in crate::gpu) fn loss(&self, why: &str) -> Error {
        self.lost.store(true, Ordering::SeqCst);
        Error::lost(Fault::at("device", format!("{} was lost: {why}", self.caps.name)))
    }

    /// Returns the error for a failure: a loss, if the device is lost.
    pub(in crate::gpu) fn failure(&self, what: String) -> Error {
        lock(&self.fault).get_or_insert_with(|| what.clone());
        self.check().err().unwrap_or_else(|| Error::gpu(Fault::at("gpu", what)))
    }

    /// Polls for a loss, which may be the cause of an apparent mistake of ours. wgpu reports a loss only when it is
    /// polled, and only when all submitted work is done.
    fn look_for_loss(&self) {
        let (Some(raw), false) = (&self.raw, self.is_lost()) else { return };
        let handed = raw.submitter.newest().map_or(0, |newest| newest.number);
        if raw.submitter.wait(handed, Some(LOSS)) < handed {
            // the driver blocks the submitting thread, and would block this one
            return;
        }
        let all = wgpu::PollType::Wait { submission_index: None, timeout: Some(LOSS) };
        let _ = catch_unwind(AssertUnwindSafe(|| raw.device.poll(all)));
    }

    /// Checks that the device is not lost and that wgpu has reported no error since the last call.
    ///
    /// # Errors
    /// [`Error::Lost`] after a loss, [`Error::Memory`] if the driver ran out of memory, else [`Error::Gpu`].
    pub fn check(&self) -> Result<()> {
        let fault = lock(&self.fault).take();
        if fault.is_some() {
            self.look_for_loss();
        }
        if self.is_lost() {
            return Err(self.loss(fault.as_deref().unwrap_or("the driver gives no reason")));
        }
        match fault {
            None => Ok(()),
            Some(text) if text.to_lowercase().contains("out of memory") => {
                Err(Error::memory(Fault::at("memory", text)))
            }
            Some(text) => Err(Error::gpu(Fault::at("gpu", text))),
        }
    }

    /// Starts a command buffer.
    pub(in crate::gpu) fn encoder(&self, label: &str) -> Result<wgpu::CommandEncoder> {
        Ok(self.raw()?.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) }))
    }

    /// Queues recorded commands for the submitting thread, without waiting. They reach the device after everything that
    /// was queued before.
    pub(in crate::gpu) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<Ticket> {
        self.submit_then(encoder, || ())
    }

    /// Does what [`Gpu::submit`] does, and calls `after` when the driver has the commands.
    pub(in crate::gpu) fn submit_then(
        &self,
        encoder: wgpu::CommandEncoder,
        after: impl FnOnce() + Send + 'static,
    ) -> Result<Ticket> {
        let raw = self.raw()?;
        let fault = self.fault(Call::Submit);
        let commands = catch_unwind(AssertUnwindSafe(|| encoder.finish()))
            .map_err(|panic| self.failure(format!("submit failed: {}", panic_text(&*panic))))?;
        let work = move |driver: &Driver| {
            fault();
            let index = driver.submit(commands);
            after();
            Some(index)
        };
        // waits only while the thread's queue is full
        let ticket = self.waits.during(|| raw.submitter.enqueue(work));
        self.submissions.fetch_add(1, Ordering::Relaxed);
        self.check()?;
        Ok(ticket)
    }

    /// Returns the ticket of the job that was queued last.
    pub(in crate::gpu) fn newest(&self) -> Option<Ticket> {
        self.raw.as_ref()?.submitter.newest()
    }

    /// Waits until the driver has everything that was queued. Writes to wgpu's queue itself would otherwise overtake
    /// it.
    pub(in crate::gpu) fn drain(&self) -> Result<()> {
        let (Some(raw), Some(Ticket { number, .. })) = (&self.raw, self.newest()) else { return Ok(()) };
        let done = self.waits.during(|| raw.submitter.wait(number, self.patience()));
        if done < number { Err(self.hangs()) } else { Ok(()) }
    }

    fn patience(&self) -> Option<Duration> {
        (!self.caps.software).then_some(HANG)
    }

    fn hangs(&self) -> Error {
        let seconds = HANG.as_secs();
        Error::device(Fault::at("device", format!("{} did not finish a submission within {seconds} s", self.caps.name)))
    }

    /// Runs the callbacks of finished work, without waiting.
    pub(in crate::gpu) fn poll(&self) -> Result<()> {
        let raw = self.raw()?;
        // while the thread is in the driver a poll would wait for it; wgpu polls by itself when the driver returns
        if let Some(_held) = raw.submitter.try_pause() {
            self.polled(raw, wgpu::PollType::Poll)?;
        }
        self.check()
    }

    fn polled(&self, raw: &Raw, how: wgpu::PollType) -> Result<()> {
        let begin = Instant::now();
        // wgpu panics when a lost device is polled
        match self.waits.during(|| catch_unwind(AssertUnwindSafe(|| raw.device.poll(how)))) {
            Ok(Ok(_)) => Ok(()),
            // the wait ended at once: drivers without a kernel driver report any number of submissions as done
            Ok(Err(wgpu::PollError::Timeout)) if begin.elapsed() < HANG / 2 => Err(Error::device(
                Fault::at(
                    "device",
                    format!("{} computes nothing: its waits end before a submission is done", self.caps.name),
                )
                .advice("try another adapter: this one may be a stand-in for a GPU, or its driver broken"),
            )),
            Ok(Err(wgpu::PollError::Timeout)) => Err(self.hangs()),
            // wgpu does not know this submission: either it refused it and reported an error, or it dropped it
            // silently, as it does after a loss
            Ok(Err(error)) => {
                self.check()?;
                Err(self.loss(&format!("poll failed: {error}")))
            }
            Err(panic) => Err(self.loss(&panic_text(&*panic))),
        }
    }

    /// Waits until a submission is done.
    pub(in crate::gpu) fn wait_for(&self, ticket: &Ticket) -> Result<()> {
        self.wait_until(ticket, || Ok(false))
    }

    /// Waits until a submission is done, or until `there` returns `true`.
    pub(in crate::gpu) fn wait_until(&self, ticket: &Ticket, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
        let raw = self.raw()?;
        let last = self.newest().map_or(0, |newest| newest.number);
        let mut number = ticket.number;
        loop {
            let done = self.waits.during(|| raw.submitter.wait(number, self.patience()));
            if done < number {
                return Err(self.hangs());
            }
            if done >= last {
                break;
            }
            // while jobs are queued, each poll from here would wait for the driver; but whenever the driver has taken a
            // submission, the submitting thread has run the callbacks of the work done until then
            if there()? {
                return self.check();
            }
            number = done + 1;
        }
        let Some(index) = ticket.index() else {
            return Err(self.failure("a submission did not reach the driver".into()));
        };
        self.polled(raw, wgpu::PollType::Wait { submission_index: Some(index), timeout: self.patience() })?;
        self.check()
    }

    /// Calls `call` once everything submitted so far is done. The call is made when the device is next polled.
    ///
    /// # Errors
    /// [`Error::Gpu`] on a dry device.
    pub fn when_done(&self, call: impl FnOnce() + Send + 'static) -> Result<()> {
        self.raw()?.submitter.enqueue(|driver| {
            driver.queue.on_submitted_work_done(call);
            None
        });
        Ok(())
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn wait(&self) -> Result<()> {
        let ticket = self.submit(self.encoder("wait")?)?;
        self.wait_for(&ticket)
    }
}
