//! The settings with which tests start Mesa's software Vulkan.
//!
//! Its LLVM compiles a kernel several times faster without optimizations, and these tests compile more than they compute.
//! The driver reads the variable when it opens, so it is set before `main`, where the process has one thread. Children
//! inherit it. Tests of speed do not include this file.

/// Runs before `main`.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn compile_quickly() {
        // SAFETY: the process has no other thread yet; the strings end with zero; a value that the user has set is kept
        unsafe { libc::setenv(c"GALLIVM_PERF".as_ptr(), c"nopt".as_ptr(), 0) };
    }
    compile_quickly
};
