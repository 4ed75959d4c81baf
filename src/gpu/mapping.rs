//! Mappings of buffers for the host: asked for behind the submission that uses the buffer, waited for or looked after.

use std::time::{Duration, Instant};

use futures::channel::oneshot;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, HANG, Ticket};
use super::faults::Call;
use super::tensor::Buffer;

/// How long a callback takes that has begun.
const SOON: Duration = Duration::from_micros(100);

/// What is left to do when a submission is with the driver.
pub(super) type After = Box<dyn FnOnce() + Send>;

/// The memory of a buffer.
pub(super) fn raw(buffer: &Buffer) -> Result<&wgpu::Buffer> {
    buffer
        .raw
        .as_ref()
        .ok_or_else(|| Error::gpu(Fault::at("gpu", format!("`{}` of a dry device was used", buffer.label))))
}

/// A mapping that comes when the device has let go of the buffer.
#[derive(Debug)]
pub(super) struct Mapping {
    what: &'static str,
    told: oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    there: bool,
}

impl Mapping {
    /// A mapping of a buffer's first `bytes` bytes, and what asks for it: to be called when all that uses the buffer is
    /// submitted, for no submission may use what is mapped or about to be.
    pub(super) fn new(
        gpu: &Gpu,
        what: &'static str,
        buffer: &wgpu::Buffer,
        bytes: u64,
        mode: wgpu::MapMode,
    ) -> (Self, After) {
        let (tell, told) = oneshot::channel();
        let (fault, buffer) = (gpu.fault(Call::Map), buffer.clone());
        let ask = move || {
            fault();
            buffer.slice(..bytes).map_async(mode, move |result| {
                // who does not wait any more need not know
                let _ = tell.send(result);
            });
        };
        (Self { what, told, there: false }, Box::new(ask))
    }

    /// One that never comes: dry rings only count.
    pub(super) fn never(what: &'static str) -> Self {
        Self { what, told: oneshot::channel().1, there: false }
    }

    /// Looks without waiting.
    pub(super) fn is_there(&mut self, gpu: &Gpu) -> Result<bool> {
        if !self.there {
            match self.told.try_recv() {
                Ok(None) => return Ok(false),
                Err(oneshot::Canceled) => return Err(self.failed(gpu, "was dropped")),
                Ok(Some(Err(error))) => return Err(self.failed(gpu, &format!("failed ({error})"))),
                Ok(Some(Ok(()))) => self.there = true,
            }
        }
        Ok(true)
    }

    /// Waits for it. `used` is the last submission that uses the buffer, none if there was none since the mapping
    /// before.
    pub(super) fn wait(&mut self, gpu: &Gpu, used: Option<Ticket>) -> Result<()> {
        match used {
            Some(ticket) => gpu.wait_until(&ticket, || self.is_there(gpu))?,
            None => gpu.drain().and_then(|()| gpu.poll())?,
        }
        // the submitting thread polls too: what it has found it may be about to tell
        let begin = Instant::now();
        gpu.waits().during(|| {
            while !self.is_there(gpu)? {
                if begin.elapsed() > HANG {
                    return Err(self.failed(gpu, "did not come"));
                }
                std::thread::sleep(SOON);
            }
            Ok(())
        })
    }

    /// A mistake of ours was told to the device; all else is a loss.
    fn failed(&self, gpu: &Gpu, how: &str) -> Error {
        gpu.check().err().unwrap_or_else(|| gpu.loss(&format!("mapping {} {how}", self.what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Options;

    #[test]
    fn a_callback_on_its_way_is_waited_for_and_one_that_is_lost_is_a_loss() {
        let gpu = Gpu::open(&Options::default()).unwrap();
        let ticket = gpu.submit(gpu.encoder("before").unwrap()).unwrap();
        let (tell, told) = oneshot::channel();
        let mut mapping = Mapping { what: "a read-back", told, there: false };
        assert!(!mapping.is_there(&gpu).unwrap());
        // the device is done, the thread that found it so is not
        gpu.wait_for(&ticket).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            tell.send(Ok(())).unwrap();
        });
        mapping.wait(&gpu, Some(ticket.clone())).unwrap();
        assert!(mapping.is_there(&gpu).unwrap());
        late.join().unwrap();

        let error = Mapping::never("a read-back").wait(&gpu, Some(ticket)).unwrap_err();
        assert!(matches!(&error, Error::Lost(fault) if fault.to_string().contains("was dropped")), "{error}");
    }
}
