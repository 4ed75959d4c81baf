//! The system's allocator, with an end of its own: where it has no memory, the program ends with one line and the exit code
//! of memory. Rust's default is to abort, which looks like a fault of the program.

use std::alloc::{GlobalAlloc, Layout, System};

/// See above.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: every call goes to the system's allocator as it came; what it returns is handed on, or the process ends
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `alloc`
        there(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `alloc_zeroed`
        there(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `realloc`
        there(unsafe { System.realloc(pointer, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer comes from one of the calls above
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Returns an allocation that was made.
#[inline]
fn there(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() { failed(bytes) } else { pointer }
}

/// Ends the process at once: whatever else it might do could ask for memory too. Of several threads the first one speaks.
#[cfg(unix)]
#[cold]
fn failed(bytes: usize) -> *mut u8 {
    use std::sync::atomic::{AtomicBool, Ordering};
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::SeqCst) {
        let mut buffer = [0; 200];
        let line = line(bytes, &mut buffer);
        // SAFETY: the line is in memory; both calls may be made at any time
        unsafe {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
            libc::_exit(5);
        }
    }
    loop {
        // SAFETY: another thread ends the process
        unsafe { libc::pause() };
    }
}

/// Elsewhere Rust's default stays.
#[cfg(not(unix))]
#[cold]
fn failed(_: usize) -> *mut u8 {
    std::ptr::null_mut()
}

/// Writes the error into `buffer`, without an allocation.
#[cfg(any(unix, test))]
fn line(bytes: usize, buffer: &mut [u8; 200]) -> &[u8] {
    use std::io::Write as _;
    let length = buffer.len();
    let mut rest = &mut buffer[..];
    // the text is shorter than the buffer
    let _ = writeln!(
        rest,
        "error: memory: the system has no {bytes} bytes left; try a smaller --batch, --context or model, or less beside it"
    );
    let written = length - rest.len();
    &buffer[..written]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_allocation_is_one_line_with_its_bytes() {
        let mut buffer = [0; 200];
        let text = String::from_utf8(line(usize::MAX, &mut buffer).to_vec()).unwrap();
        assert!(text.contains("no 18446744073709551615 bytes left") && text.ends_with("beside it\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
