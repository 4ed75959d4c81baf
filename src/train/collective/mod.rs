//! How the devices of a run exchange bytes through host memory.
//!
//! Every device calls the same functions in the same order, each on a thread of its own: a call returns when all have made it.

mod threads;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

pub use threads::{Ender, Threads};

/// Bytes that other devices may read while they are exchanged.
pub type Shared = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Takes the bytes that each device gives.
pub type Receive<'r> = dyn FnMut(&[&[u8]]) -> Result<()> + 'r;

/// The exchange of one device with all others of its run.
pub trait Collective: Send {
    /// Number of this device, from 0.
    fn device(&self) -> usize;

    /// Number of devices.
    fn devices(&self) -> usize;

    /// Gives each other device d the bytes `to[d]` of `sent`, and calls `receive` once with the bytes that each device gives this
    /// one, none from itself. Keeps no reference to `sent`.
    ///
    /// # Errors
    /// The error of `receive`; the error that [`Collective::abort`] was called with on any device.
    fn exchange(&mut self, sent: Shared, to: &[Range<usize>], receive: &mut Receive) -> Result<()>;

    /// Returns the bytes of each device, in order, this one's own included. For small numbers.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn share(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut all = vec![Vec::new(); self.devices()];
        all[self.device()] = own.to_vec();
        let to = vec![0..own.len(); self.devices()];
        let device = self.device();
        self.exchange(Arc::new(own.to_vec()), &to, &mut |given| {
            let others = given.iter().enumerate().filter(|(from, _)| *from != device);
            others.for_each(|(from, bytes)| all[from] = bytes.to_vec());
            Ok(())
        })?;
        Ok(all)
    }

    /// Asks all devices to end what they are at as soon as they can. They agree on whether they have in [`Collective::share`].
    fn ask_to_stop(&self);

    /// True once a device has called [`Collective::ask_to_stop`].
    fn is_asked_to_stop(&self) -> bool;

    /// Ends the run of all devices: their calls, those that wait included, return `error`.
    fn abort(&self, error: &Error);
}

/// A device without others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collective for Alone {
    fn device(&self) -> usize {
        0
    }

    fn devices(&self) -> usize {
        1
    }

    fn exchange(&mut self, _: Shared, _: &[Range<usize>], _: &mut Receive) -> Result<()> {
        Ok(())
    }

    fn ask_to_stop(&self) {}

    fn is_asked_to_stop(&self) -> bool {
        false
    }

    fn abort(&self, _: &Error) {}
}
