//! Handing work to the device, waiting for it, and noticing that it is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::{Gpu, HANG, LOSS, lock, panic_text};
use crate::error::{Error, Result};
use crate::gpu::Waits;
use crate::gpu::faults::Call;

impl Gpu {
    /// True once the device is lost: all calls from then on do nothing and say nothing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// The waits of the host, for a [`crate::train::watchdog`].
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// A loss that a call has found.
    pub(in crate::gpu) fn loss(&self, why: &str) -> Error {
        self.lost.store(true, Ordering::SeqCst);
        Error::Lost(format!("device: {} was lost: {why}", self.caps.name))
    }

    /// What looks like a mistake of ours may be a loss: wgpu tells of one only when it is polled, and only when all that
    /// was submitted is done.
    fn look_for_loss(&self) {
        if let (Some(raw), false) = (&self.raw, self.is_lost()) {
            let all = wgpu::PollType::Wait { submission_index: None, timeout: Some(LOSS) };
            let _ = catch_unwind(AssertUnwindSafe(|| raw.device.poll(all)));
        }
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
                Err(Error::Memory(format!("memory: {text}")))
            }
            Some(text) => Err(Error::Gpu(format!("gpu: {text}"))),
        }
    }

    /// Starts a command buffer.
    pub(in crate::gpu) fn encoder(&self, label: &str) -> Result<wgpu::CommandEncoder> {
        Ok(self.raw()?.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) }))
    }

    /// Hands recorded commands to the device.
    pub(in crate::gpu) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let raw = self.raw()?;
        let _failed = self.fails(Call::Submit);
        let submitted = self.waits.during(|| catch_unwind(AssertUnwindSafe(|| raw.queue.submit([encoder.finish()]))));
        let index = submitted.map_err(|panic| {
            let why = panic_text(&*panic);
            if self.is_lost() { self.loss(&why) } else { Error::Gpu(format!("gpu: submit failed: {why}")) }
        })?;
        self.submissions.fetch_add(1, Ordering::Relaxed);
        self.check()?;
        Ok(index)
    }

    /// Runs callbacks that are due; waits for a submission if one is given.
    pub(in crate::gpu) fn poll(&self, wait: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let raw = self.raw()?;
        let poll = match wait {
            None => wgpu::PollType::Poll,
            Some(index) => {
                let timeout = (!self.caps.software).then_some(HANG);
                wgpu::PollType::Wait { submission_index: Some(index), timeout }
            }
        };
        // wgpu panics when a lost device is polled
        let polled = self.waits.during(|| catch_unwind(AssertUnwindSafe(|| raw.device.poll(poll))));
        match polled {
            Ok(Ok(_)) => self.check(),
            Ok(Err(wgpu::PollError::Timeout)) => Err(Error::Device(format!(
                "device: {} did not finish a submission within {} s",
                self.caps.name,
                HANG.as_secs()
            ))),
            // submissions of ours that wgpu does not know: it dropped them without a word, as it does after a loss
            Ok(Err(error)) => Err(self.loss(&format!("poll failed: {error}"))),
            Err(panic) => Err(self.loss(&panic_text(&*panic))),
        }
    }

    /// Calls `call` once all that was submitted so far is done; the device says so when it is next polled.
    ///
    /// # Errors
    /// [`Error::Gpu`] on a dry device.
    pub fn when_done(&self, call: impl FnOnce() + Send + 'static) -> Result<()> {
        self.raw()?.queue.on_submitted_work_done(call);
        Ok(())
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn wait(&self) -> Result<()> {
        let index = self.submit(self.encoder("wait")?)?;
        self.poll(Some(index))
    }
}
