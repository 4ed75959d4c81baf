//! Maps buffers for the host. A mapping is requested after the submission that uses the buffer, and can be polled or
//! waited for.

use std::time::{Duration, Instant};

use futures::channel::oneshot;

use crate::error::{Error, Fault, Result};

use super::context::{Gpu, HANG, Ticket};
use super::faults::Call;
use super::tensor::Buffer;

/// Pause between looks for a callback that is already running.
const SOON: Duration = Duration::from_micros(100);

/// The work that remains once the driver has a submission.
pub(super) type After = Box<dyn FnOnce() + Send>;

/// Returns wgpu's buffer, or an error on a dry device.
pub(super) fn raw(buffer: &Buffer) -> Result<&wgpu::Buffer> {
    buffer
        .raw
        .as_ref()
        .ok_or_else(|| Error::gpu(Fault::at("gpu", format!("`{}` of a dry device was used", buffer.label))))
}

/// A requested mapping. It becomes ready when the device no longer uses the buffer.
#[derive(Debug)]
pub(super) struct Mapping {
    what: &'static str,
    result: oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    ready: bool,
}

impl Mapping {
    /// Makes a mapping of a buffer's first `bytes` bytes, and the closure that requests it. Call the closure when
    /// everything that uses the buffer is submitted, because no submission may use a buffer that is mapped or about to
    /// be.
    pub(super) fn new(
        gpu: &Gpu,
        what: &'static str,
        buffer: &wgpu::Buffer,
        bytes: u64,
        mode: wgpu::MapMode,
    ) -> (Self, After) {
        let (sender, result) = oneshot::channel();
        let (fault, buffer) = (gpu.fault(Call::Map), buffer.clone());
        let request = move || {
            fault();
            buffer.slice(..bytes).map_async(mode, move |result| {
                // if the mapping was dropped, nobody needs the result
                let _ = sender.send(result);
            });
        };
        (Self { what, result, ready: false }, Box::new(request))
    }

    /// Makes a mapping that never becomes ready, for dry rings, which only count.
    pub(super) fn never(what: &'static str) -> Self {
        Self { what, result: oneshot::channel().1, ready: false }
    }

    /// Returns whether the buffer is mapped, without waiting.
    pub(super) fn is_ready(&mut self, gpu: &Gpu) -> Result<bool> {
        if !self.ready {
            match self.result.try_recv() {
                Ok(None) => return Ok(false),
                Err(oneshot::Canceled) => return Err(self.failed(gpu, "was dropped")),
                Ok(Some(Err(error))) => return Err(self.failed(gpu, &format!("failed ({error})"))),
                Ok(Some(Ok(()))) => self.ready = true,
            }
        }
        Ok(true)
    }

    /// Waits until the buffer is mapped. `used` is the last submission that uses the buffer, `None` if there was none
    /// since the previous mapping.
    pub(super) fn wait(&mut self, gpu: &Gpu, used: Option<Ticket>) -> Result<()> {
        match used {
            Some(ticket) => gpu.wait_until(&ticket, || self.is_ready(gpu))?,
            None => gpu.drain().and_then(|()| gpu.poll())?,
        }
        // the submitting thread polls too: its callback may still be running
        let begin = Instant::now();
        gpu.waits().during(|| {
            while !self.is_ready(gpu)? {
                if begin.elapsed() > HANG {
                    return Err(self.failed(gpu, "did not come"));
                }
                std::thread::sleep(SOON);
            }
            Ok(())
        })
    }

    /// Returns the error of a failed mapping. If wgpu has reported a mistake of ours, it is that; anything else is a
    /// loss.
    fn failed(&self, gpu: &Gpu, how: &str) -> Error {
        gpu.check().err().unwrap_or_else(|| gpu.loss(&format!("mapping {} {how}", self.what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Options;

    #[test]
    fn a_running_callback_is_waited_for_and_a_dropped_one_is_a_loss() {
        let gpu = Gpu::open(&Options::default()).unwrap();
        let ticket = gpu.submit(gpu.encoder("before").unwrap()).unwrap();
        let (sender, result) = oneshot::channel();
        let mut mapping = Mapping { what: "a read-back", result, ready: false };
        assert!(!mapping.is_ready(&gpu).unwrap());
        // the device is done, the thread that runs the callback is not
        gpu.wait_for(&ticket).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            sender.send(Ok(())).unwrap();
        });
        mapping.wait(&gpu, Some(ticket.clone())).unwrap();
        assert!(mapping.is_ready(&gpu).unwrap());
        late.join().unwrap();

        let error = Mapping::never("a read-back").wait(&gpu, Some(ticket)).unwrap_err();
        assert!(matches!(&error, Error::Lost(fault) if fault.to_string().contains("was dropped")), "{error}");
    }
}
