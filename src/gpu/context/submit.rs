//! Handing work to the device, waiting for it, and noticing that it is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::submitter::Driver;
use super::{Gpu, HANG, LOSS, Raw, Ticket, lock, panic_text};
use crate::error::{Error, Fault, Result};
use crate::gpu::Waits;
use crate::gpu::faults::Call;

impl Gpu {
    /// True once the device is lost: all calls from then on do nothing and say nothing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// The waits of the host, for a [`crate::run::watchdog`].
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// A loss that a call has found.
    pub(in crate::gpu) fn loss(&self, why: &str) -> Error {
        self.lost.store(true, Ordering::SeqCst);
        Error::lost(Fault::at("device", format!("{} was lost: {why}", self.caps.name)))
    }

    /// What went wrong: a loss, if that is the reason.
    pub(in crate::gpu) fn failure(&self, what: String) -> Error {
        lock(&self.fault).get_or_insert_with(|| what.clone());
        self.check().err().unwrap_or_else(|| Error::gpu(Fault::at("gpu", what)))
    }

    /// What looks like a mistake of ours may be a loss: wgpu tells of one only when it is polled, and only when all that
    /// was submitted is done.
    fn look_for_loss(&self) {
        let (Some(raw), false) = (&self.raw, self.is_lost()) else { return };
        let handed = raw.submitter.newest().map_or(0, |newest| newest.number);
        if raw.submitter.wait(handed, Some(LOSS)) < handed {
            // the driver holds the thread, and would hold us
            return;
        }
        let all = wgpu::PollType::Wait { submission_index: None, timeout: Some(LOSS) };
        let _ = catch_unwind(AssertUnwindSafe(|| raw.device.poll(all)));
    }

    /// Fails if the device is lost or wgpu has reported an error since the last call.
    ///
    /// # Errors
    /// [`Error::Lost`] after a loss, [`Error::Memory`] if the driver ran out of memory, else [`Error::Gpu`].
    pub fn check(&self) -> Result<()> {
        let fault = lock(&self.fault).take();
        if fault.is_some() {
            self.look_for_loss();
        }
        if self.is_lost() {
            return Err(self.loss(fault.as_deref().unwrap_or("the driver does not say why")));
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

    /// Hands recorded commands over: they reach the device behind all that was handed over before, without the caller
    /// waiting for that.
    pub(in crate::gpu) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<Ticket> {
        self.submit_then(encoder, || ())
    }

    /// The same; `after` is called when the driver has the commands.
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
        // waits only if many are handed over and none is taken
        let ticket = self.waits.during(|| raw.submitter.hand(work));
        self.submissions.fetch_add(1, Ordering::Relaxed);
        self.check()?;
        Ok(ticket)
    }

    /// What was handed over last.
    pub(in crate::gpu) fn newest(&self) -> Option<Ticket> {
        self.raw.as_ref()?.submitter.newest()
    }

    /// Waits until the driver has all that was handed over. What goes to wgpu's queue directly would overtake it.
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

    /// Runs callbacks that are due.
    pub(in crate::gpu) fn poll(&self) -> Result<()> {
        let raw = self.raw()?;
        // beside the thread it would wait for the driver; wgpu polls itself when the driver lets go
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
            // no time was given: drivers without a kernel driver report any number of done submissions
            Ok(Err(wgpu::PollError::Timeout)) if begin.elapsed() < HANG / 2 => Err(Error::device(
                Fault::at(
                    "device",
                    format!("{} computes nothing: it reports at once that a submission is not done", self.caps.name),
                )
                .advice("is it a stand-in for a GPU, or its driver broken?"),
            )),
            Ok(Err(wgpu::PollError::Timeout)) => Err(self.hangs()),
            // submissions of ours that wgpu does not know: refused, which it has told, or dropped without a word, as
            // it does after a loss
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

    /// Waits until a submission is done, or `there` says that it was.
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
            // a poll beside those that are queued would wait for the driver each time; but whenever it has taken one, the
            // thread has told what was done until then
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

    /// Calls `call` once all that was submitted so far is done; the device says so when it is next polled.
    ///
    /// # Errors
    /// [`Error::Gpu`] on a dry device.
    pub fn when_done(&self, call: impl FnOnce() + Send + 'static) -> Result<()> {
        self.raw()?.submitter.hand(|driver| {
            driver.queue.on_submitted_work_done(call);
            None
        });
        Ok(())
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn wait(&self) -> Result<()> {
        let ticket = self.submit(self.encoder("wait")?)?;
        self.wait_for(&ticket)
    }
}
