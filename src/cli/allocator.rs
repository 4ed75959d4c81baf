//! The system's allocator, which ends the program with one line and exit code 5 when it has no memory left. Rust's
//! default aborts, which looks like a bug of the program.

use std::alloc::{GlobalAlloc, Layout, System};

/// See the module.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: every call goes unchanged to the system's allocator; its result is returned, or the process ends
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

/// Returns an allocation, or ends the process if there is none.
#[inline]
fn there(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() { failed(bytes) } else { pointer }
}

/// Ends the process at once, because anything else might allocate too. Of several threads the first one prints the
/// error.
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

/// Keeps Rust's default on other systems.
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
        "error: memory: the system has no {bytes} bytes left; try a smaller --batch, --context or model, or run fewer programs"
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
        assert!(text.contains("no 18446744073709551615 bytes left") && text.ends_with("fewer programs\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
