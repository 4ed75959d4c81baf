//! The memory that all threads of this process hold, counted, with an end where it passes a limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of all executions that go on at once.
const MOST_BYTES: usize = 2 << 30;

static HELD: AtomicUsize = AtomicUsize::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
/// The inputs that are tried.
static INPUTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The system's allocator, which counts.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps the rules of `alloc`
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps the rules of `alloc_zeroed`
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer comes from the calls above
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Counts what is asked for, whether it will be touched or not.
fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    if held > MOST_BYTES && !OVER.swap(true, Ordering::SeqCst) {
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
        Self(input)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        INPUTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|input| *input != self.0);
    }
}
