//! The thread that submits command buffers to the driver, in order. A driver may block a submission until the previous
//! one is done, as Mesa's software Vulkan does; the host records the next one meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{lock, panic_text};

/// Largest number of queued jobs. A caller that queues more waits, so that memory is bounded.
const WAITING: usize = 64;

/// Number of jobs that the thread has finished. They finish in the order in which they were queued.
#[derive(Debug, Default)]
struct Progress {
    done: Mutex<u64>,
    moved: Condvar,
}

impl Progress {
    fn wait(&self, jobs: u64, timeout: Option<Duration>) -> u64 {
        let done = lock(&self.done);
        let fewer = |done: &mut u64| *done < jobs;
        // poisoning is ignored: a counter cannot be half changed
        match timeout {
            None => *self.moved.wait_while(done, fewer).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                *self.moved.wait_timeout_while(done, timeout, fewer).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// A queued job.
#[derive(Debug, Clone)]
pub(in crate::gpu) struct Ticket {
    /// Number of the job, counted from 1.
    pub(super) number: u64,
    index: Arc<OnceLock<wgpu::SubmissionIndex>>,
}

impl Ticket {
    /// Returns wgpu's index of the job's submission. If the thread has finished the job and there is no index, nothing
    /// reached the driver.
    pub(super) fn index(&self) -> Option<wgpu::SubmissionIndex> {
        self.index.get().cloned()
    }
}

/// The thread's side of a ticket. When it is dropped the job counts as finished, so that no waiter hangs whatever
/// happens to the job.
struct TicketState {
    index: Arc<OnceLock<wgpu::SubmissionIndex>>,
    progress: Arc<Progress>,
}

impl Drop for TicketState {
    fn drop(&mut self) {
        *lock(&self.progress.done) += 1;
        self.progress.moved.notify_all();
    }
}

/// The queue, as a job uses it.
pub(super) struct Driver {
    pub(super) queue: wgpu::Queue,
    /// Locked while wgpu is in the driver.
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
    ticket: TicketState,
}

/// The thread and the channel to it. Dropping it waits until all queued jobs are finished.
#[derive(Debug)]
pub(super) struct Submitter {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    submitting: Arc<Mutex<()>>,
    progress: Arc<Progress>,
    /// The job that was queued last.
    newest: Mutex<Option<Ticket>>,
}

impl Submitter {
    /// Starts the thread. A panic in a job is recorded in `fault`.
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

    /// Queues `work`, which runs on the thread after everything queued before and returns the index of its submission.
    pub(super) fn enqueue(
        &self,
        work: impl FnOnce(&Driver) -> Option<wgpu::SubmissionIndex> + Send + 'static,
    ) -> Ticket {
        // locked until the job is sent, so that jobs of several callers are sent in the order of their numbers
        let mut newest = lock(&self.newest);
        let number = newest.as_ref().map_or(0, |newest| newest.number) + 1;
        let ticket = Ticket { number, index: Arc::default() };
        *newest = Some(ticket.clone());
        let state = TicketState { index: Arc::clone(&ticket.index), progress: Arc::clone(&self.progress) };
        if let Some(jobs) = &self.jobs {
            // if the thread has ended, the job is dropped here, and its ticket then counts as finished without an index
            let _ = jobs.send(Job { work: Box::new(work), ticket: state });
        }
        ticket
    }

    /// Waits until the thread has finished `jobs` jobs, at most for `timeout`. Returns how many it has finished.
    pub(super) fn wait(&self, jobs: u64, timeout: Option<Duration>) -> u64 {
        self.progress.wait(jobs, timeout)
    }

    /// Returns the ticket of the job that was queued last.
    pub(super) fn newest(&self) -> Option<Ticket> {
        lock(&self.newest).clone()
    }

    /// Keeps the thread out of the driver until the guard is dropped. Returns `None` if it is in the driver, where wgpu
    /// holds locks that a poll would wait for.
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
    for Job { work, ticket } in jobs {
        // wgpu and drivers panic on unsupported work
        match catch_unwind(AssertUnwindSafe(|| work(driver))) {
            Ok(Some(index)) => {
                let _ = ticket.index.set(index);
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
    fn a_job_is_waited_for_no_longer_than_the_timeout() {
        let gpu = open();
        let submitter = &gpu.raw.as_ref().unwrap().submitter;
        let (go, wait) = sync_channel::<()>(0);
        let held = submitter.enqueue(move |_| {
            let _ = wait.recv();
            None
        });
        let behind = gpu.submit(gpu.encoder("behind").unwrap()).unwrap();
        assert_eq!((held.number, behind.number), (1, 2));
        assert_eq!(submitter.wait(behind.number, Some(Duration::from_millis(50))), 0);
        // a poll does not block behind the held job
        gpu.poll().unwrap();
        go.send(()).unwrap();
        assert_eq!(submitter.wait(behind.number, None), 2);
        assert!(held.index().is_none() && behind.index().is_some());
        gpu.wait_for(&behind).unwrap();
    }

    #[test]
    fn a_panic_in_a_submission_is_an_error_of_the_next_call_and_wakes_waiters() {
        let gpu = open();
        // held, so that the panic comes after the call that queues it
        let (go, wait) = sync_channel::<()>(0);
        gpu.raw.as_ref().unwrap().submitter.enqueue(move |_| {
            let _ = wait.recv();
            None
        });
        let failed = gpu.submit_then(gpu.encoder("fails").unwrap(), || panic!("planted")).unwrap();
        go.send(()).unwrap();
        let error = gpu.wait_for(&failed).unwrap_err();
        assert!(matches!(&error, Error::Gpu(fault) if fault.to_string().contains("submit failed: planted")), "{error}");
        // the error is reported once; the device still works
        gpu.wait().unwrap();
        let error = gpu.wait_for(&failed).unwrap_err();
        assert!(matches!(error, Error::Gpu(_)), "{error}");
    }

    #[test]
    fn dropping_finishes_all_queued_jobs() {
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
