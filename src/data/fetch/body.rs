//! Reads the body of a response on a separate thread, so that a server that sends nothing or almost nothing is noticed
//! while the layers below block.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::Response;

use crate::units::size;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 16;
/// Rate in bytes per second below which a server counts as stalled.
const LEAST_RATE: u64 = 1 << 10;
/// Number of checks of a wait within the shorter of the two limits.
const TICKS: u32 = 64;

/// Time limits for a slow server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// Longest time without any bytes.
    pub silence: Duration,
    /// Longest time with under 1 KiB per second.
    pub stall: Duration,
}

/// The body of a response.
pub(super) struct Body {
    chunks: Receiver<io::Result<Vec<u8>>>,
    /// Owns the connection. Its shutdown ends the reading thread.
    agent: Option<Agent>,
    pace: Pace,
}

impl Body {
    /// Starts reading. `agent` made this request and no other.
    pub(super) fn new(response: Response<ureq::Body>, agent: Agent, patience: Patience) -> io::Result<Self> {
        let (send, chunks) = sync_channel(2);
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        std::thread::Builder::new().name("fetch".into()).spawn(move || {
            loop {
                let chunk = match reader.read(&mut buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map(|n| buffer[..n].to_vec()),
                };
                let is_last = !chunk.as_ref().is_ok_and(|bytes| !bytes.is_empty());
                if send.send(chunk).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self { chunks, agent: Some(agent), pace: Pace::new(patience) })
    }

    /// Returns the next bytes; none at the end.
    ///
    /// # Errors
    /// A message if reading failed or the server was too slow.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, String> {
        loop {
            let begin = Instant::now();
            let chunk = self.chunks.recv_timeout(self.pace.tick);
            self.pace.wait(begin.elapsed());
            match chunk {
                Ok(Ok(bytes)) => {
                    if bytes.is_empty() {
                        self.agent = None;
                    }
                    self.pace.came(bytes.len());
                    return self.pace.check().map(|()| bytes);
                }
                Ok(Err(e)) => return Err(e.to_string()),
                Err(RecvTimeoutError::Timeout) => self.pace.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err("the reading thread has ended".into()),
            }
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

/// Measures the rate of received bytes over a sliding window. Its clock runs only while a caller waits for bytes, so
/// that neither a slow disk nor a suspended process makes a server look slow.
#[derive(Debug)]
struct Pace {
    patience: Patience,
    /// Longest wait between two checks.
    tick: Duration,
    waited: Duration,
    bytes: u64,
    last_came: Duration,
    /// Total wait and total bytes at past checks, from the newest check before the window on.
    window: VecDeque<(Duration, u64)>,
}

impl Pace {
    fn new(patience: Patience) -> Self {
        let tick = (patience.silence.min(patience.stall) / TICKS).max(Duration::from_millis(1));
        let start = (Duration::ZERO, 0);
        Self { patience, tick, waited: start.0, bytes: 0, last_came: start.0, window: [start].into() }
    }

    /// Adds a wait. A wait much longer than a tick was a suspension and is shortened.
    fn wait(&mut self, time: Duration) {
        self.waited += time.min(2 * self.tick);
    }

    fn came(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.last_came = self.waited;
    }

    /// Fails if too few bytes came for too long.
    fn check(&mut self) -> Result<(), String> {
        let Patience { silence, stall } = self.patience;
        if self.waited - self.last_came >= silence {
            return Err(format!("nothing received for {} s", silence.as_secs_f64()));
        }
        while self.window.get(1).is_some_and(|(time, _)| *time + stall <= self.waited) {
            self.window.pop_front();
        }
        let least = (stall.as_secs_f64() * LEAST_RATE as f64) as u64;
        if let Some((begin, before)) = self.window.front()
            && *begin + stall <= self.waited
            && self.bytes - before < least
        {
            return Err(format!("stalled: under {} per second for {} s", size(LEAST_RATE), stall.as_secs_f64()));
        }
        if self.window.back().is_none_or(|(time, _)| *time + self.tick <= self.waited) {
            self.window.push_back((self.waited, self.bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience { silence: Duration::from_secs(30), stall: Duration::from_secs(60) };

    /// Returns the second in which a server that sends `bytes(second)` bytes in each second counts as stalled.
    fn stalls_after(seconds: u32, bytes: impl Fn(u32) -> usize) -> Option<u32> {
        let mut pace = Pace::new(PATIENCE);
        (0..seconds).find(|&second| {
            // as a receiver wakes: several times a second
            let waits = SECOND.as_nanos().div_ceil(pace.tick.as_nanos()) as u32;
            (0..waits).for_each(|_| pace.wait(SECOND / waits));
            if bytes(second) > 0 {
                pace.came(bytes(second));
            }
            pace.check().is_err()
        })
    }

    #[test]
    fn a_trickle_is_a_stall_and_a_slow_line_is_none() {
        for (bytes, seconds) in [(1, 59..=61), (1000, 59..=61), (0, 29..=31)] {
            let stalled = stalls_after(1000, |_| bytes).unwrap();
            assert!(seconds.contains(&stalled), "{bytes} bytes a second: {stalled}");
        }
        assert_eq!(stalls_after(1000, |_| 1100), None);
        // bursts with pauses are a slow line; a fast start does not compensate for a later stall
        assert_eq!(stalls_after(1000, |second| if second % 20 == 0 { 30_000 } else { 0 }), None);
        let stalled = stalls_after(1000, |second| if second < 100 { 1 << 20 } else { 1 }).unwrap();
        assert!((158..=162).contains(&stalled), "{stalled}");
    }

    #[test]
    fn a_suspended_process_is_no_stalled_server() {
        let mut pace = Pace::new(PATIENCE);
        for _ in 0..10 {
            pace.wait(Duration::from_secs(3600));
            pace.check().unwrap();
        }
        assert!(pace.waited <= 20 * pace.tick);
        pace.came(1 << 20);
        pace.wait(Duration::from_secs(3600));
        pace.check().unwrap();
    }

    #[test]
    fn the_window_takes_bounded_memory() {
        let mut pace = Pace::new(PATIENCE);
        for _ in 0..100_000 {
            pace.wait(Duration::from_millis(1));
            pace.came(1000);
            pace.check().unwrap();
        }
        let most = PATIENCE.stall.as_nanos() / pace.tick.as_nanos() + 3;
        assert!((pace.window.len() as u128) <= most, "{}", pace.window.len());
    }
}
