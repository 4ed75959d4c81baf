//! The limit of the memory that all threads of this process hold while inputs are tried.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of all executions that go on at once.
const MOST_BYTES: usize = 2 << 30;

/// The number of inputs that are tried.
static TRIED: AtomicUsize = AtomicUsize::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
/// The inputs that are tried.
static INPUTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Ends the process if the program holds more than the limit while inputs are tried.
pub fn check(bytes: usize, held: usize) {
    if held > MOST_BYTES && TRIED.load(Ordering::SeqCst) > 0 && !OVER.swap(true, Ordering::SeqCst) {
        let inputs = INPUTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        eprintln!("{bytes} bytes are asked for, {held} in all, expected at most {MOST_BYTES}");
        for (i, input) in inputs.iter().enumerate() {
            let kept = super::keep(&format!("memory-{i}"), input);
            eprintln!("one of the inputs is {}", kept.display());
        }
        std::process::abort();
    }
}

/// Counts an input among those that are tried, until it is dropped.
pub struct Limit(PathBuf);

impl Limit {
    pub fn new(input: PathBuf) -> Self {
        INPUTS.lock().unwrap_or_else(PoisonError::into_inner).push(input.clone());
        TRIED.fetch_add(1, Ordering::SeqCst);
        Self(input)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        TRIED.fetch_sub(1, Ordering::SeqCst);
        INPUTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|input| *input != self.0);
    }
}
