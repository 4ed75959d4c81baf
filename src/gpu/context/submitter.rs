//! The thread that gives command buffers to the driver, in order. A driver may hold a submission up until the one before
//! is done, as Mesa's software Vulkan does; meanwhile the host records the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{lock, panic_text};

/// Jobs that may wait for the thread; who hands over more waits, so that memory is bounded.
const WAITING: usize = 64;

/// How many jobs the thread is done with; they end in the order in which they were handed over.
#[derive(Debug, Default)]
struct Progress {
    done: Mutex<u64>,
    moved: Condvar,
}

impl Progress {
    fn wait(&self, jobs: u64, timeout: Option<Duration>) -> u64 {
        let done = lock(&self.done);
        let fewer = |done: &mut u64| *done < jobs;
        // a poisoned lock holds a whole number
        match timeout {
            None => *self.moved.wait_while(done, fewer).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                *self.moved.wait_timeout_while(done, timeout, fewer).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// A job that was handed over.
#[derive(Debug, Clone)]
pub(in crate::gpu) struct Ticket {
    /// Counted from 1.
    pub(super) number: u64,
    index: Arc<OnceLock<wgpu::SubmissionIndex>>,
}

impl Ticket {
    /// wgpu's number of what the job has submitted. If the thread is done with it and there is none, nothing of it
    /// reached the driver.
    pub(super) fn index(&self) -> Option<wgpu::SubmissionIndex> {
        self.index.get().cloned()
    }
}

/// The thread's end of a ticket. Whatever becomes of a job, nobody waits for it for ever.
struct Promise {
    index: Arc<OnceLock<wgpu::SubmissionIndex>>,
    progress: Arc<Progress>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        *lock(&self.progress.done) += 1;
        self.progress.moved.notify_all();
    }
}

/// The queue as a job sees it.
pub(super) struct Driver {
    pub(super) queue: wgpu::Queue,
    /// Held while wgpu is in the driver.
    submitting: Arc<Mutex<()>>,
}

impl Driver {
    pub(super) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        let _held = lock(&self.submitting);
        self.queue.submit([commands])
    }
}

type Work = Box<dyn FnOnce(&Driver) -> Option<wgpu::SubmissionIndex> + Send>;

struct Job {
    work: Work,
    promise: Promise,
}

/// The thread and the way to it. Dropped, it finishes what was handed over.
#[derive(Debug)]
pub(super) struct Submitter {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    submitting: Arc<Mutex<()>>,
    progress: Arc<Progress>,
    /// The last job that was handed over.
    newest: Mutex<Option<Ticket>>,
}

impl Submitter {
    /// Starts the thread. What panics in it is noted in `fault`.
    pub(super) fn new(queue: wgpu::Queue, fault: Arc<Mutex<Option<String>>>) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(WAITING);
        let submitting = Arc::new(Mutex::new(()));
        let driver = Driver { queue, submitting: Arc::clone(&submitting) };
        let thread =
            std::thread::Builder::new().name("submit".into()).spawn(move || work(&driver, &waiting, &fault))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            submitting,
            progress: Arc::default(),
            newest: Mutex::default(),
        })
    }

    /// Lets the thread do `work` after all that was handed over before; it tells what it has submitted.
    pub(super) fn hand(&self, work: impl FnOnce(&Driver) -> Option<wgpu::SubmissionIndex> + Send + 'static) -> Ticket {
        // held over the sending, so that several hosts' jobs are sent in the order of their numbers
        let mut newest = lock(&self.newest);
        let number = newest.as_ref().map_or(0, |newest| newest.number) + 1;
        let ticket = Ticket { number, index: Arc::default() };
        *newest = Some(ticket.clone());
        let promise = Promise { index: Arc::clone(&ticket.index), progress: Arc::clone(&self.progress) };
        if let Some(jobs) = &self.jobs {
            // a thread that is gone drops the job, which its ticket tells
            let _ = jobs.send(Job { work: Box::new(work), promise });
        }
        ticket
    }

    /// Waits until the thread is done with so many jobs, at most for `timeout`; returns with how many it is.
    pub(super) fn wait(&self, jobs: u64, timeout: Option<Duration>) -> u64 {
        self.progress.wait(jobs, timeout)
    }

    /// The last job that was handed over.
    pub(super) fn newest(&self) -> Option<Ticket> {
        lock(&self.newest).clone()
    }

    /// Keeps the thread out of the driver; none if it is in there, where wgpu holds locks that a poll would wait for.
    pub(super) fn try_pause(&self) -> Option<MutexGuard<'_, ()>> {
        match self.submitting.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(driver: &Driver, jobs: &Receiver<Job>, fault: &Mutex<Option<String>>) {
    for Job { work, promise } in jobs {
        // wgpu and drivers panic on what they cannot do
        match catch_unwind(AssertUnwindSafe(|| work(driver))) {
            Ok(Some(index)) => {
                let _ = promise.index.set(index);
            }
            Ok(None) => {}
            Err(panic) => {
                lock(fault).get_or_insert_with(|| format!("submit failed: {}", panic_text(&*panic)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::gpu::{Gpu, Options};

    fn open() -> Gpu {
        Gpu::open(&Options::default()).unwrap()
    }

    #[test]
    fn a_job_is_waited_for_and_no_longer_than_told() {
        let gpu = open();
        let submitter = &gpu.raw.as_ref().unwrap().submitter;
        let (go, wait) = sync_channel::<()>(0);
        let held = submitter.hand(move |_| {
            let _ = wait.recv();
            None
        });
        let behind = gpu.submit(gpu.encoder("behind").unwrap()).unwrap();
        assert_eq!((held.number, behind.number), (1, 2));
        assert_eq!(submitter.wait(behind.number, Some(Duration::from_millis(50))), 0);
        // what does not wait is not held up
        gpu.poll().unwrap();
        go.send(()).unwrap();
        assert_eq!(submitter.wait(behind.number, None), 2);
        assert!(held.index().is_none() && behind.index().is_some());
        gpu.wait_for(&behind).unwrap();
    }

    #[test]
    fn a_panic_in_a_submission_is_an_error_of_the_next_call_and_wakes_who_waits() {
        let gpu = open();
        let failed = gpu.submit_then(gpu.encoder("fails").unwrap(), || panic!("planted")).unwrap();
        let error = gpu.wait_for(&failed).unwrap_err();
        assert!(matches!(&error, Error::Gpu(fault) if fault.to_string().contains("submit failed: planted")), "{error}");
        // told once; the device is as good as before
        gpu.wait().unwrap();
        let error = gpu.wait_for(&failed).unwrap_err();
        assert!(matches!(error, Error::Gpu(_)), "{error}");
    }

    #[test]
    fn dropping_finishes_what_was_handed_over() {
        let gpu = open();
        let done = Arc::new(Mutex::new(0));
        for number in 0..3 * WAITING {
            let done = Arc::clone(&done);
            let ran = move || {
                let mut done = lock(&done);
                assert_eq!(*done, number, "out of order");
                *done += 1;
            };
            gpu.submit_then(gpu.encoder("queued").unwrap(), ran).unwrap();
        }
        drop(gpu);
        assert_eq!(*lock(&done), 3 * WAITING);
    }
}
