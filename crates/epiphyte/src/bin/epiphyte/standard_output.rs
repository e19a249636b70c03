//! Whether standard output could be written when the program started: not if it was closed, as by
//! `>&-`, or is open for reading alone.
//!
//! Before `main`, Rust's runtime opens `/dev/null` in the place of a closed standard output, and
//! its own `stdout` takes the error of a descriptor that cannot be written for success. So the
//! loader calls a function of ours before the runtime starts: it looks at the descriptor and does
//! nothing else.

#![cfg_attr(
    any(target_os = "linux", target_os = "macos"),
    expect(
        unsafe_code,
        reason = "the section of functions that run before main, and a call of the C library"
    )
)]

use std::sync::atomic::{AtomicBool, Ordering};

static WRITABLE: AtomicBool = AtomicBool::new(true);

/// Whether standard output could be written when the program started. Known on Linux and macOS;
/// elsewhere true.
pub(crate) fn is_writable() -> bool {
    WRITABLE.load(Ordering::Relaxed)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look() {
    // SAFETY: `fcntl` with `F_GETFL` reads the mode of a descriptor, which may be closed.
    let mode = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFL) };
    let is_writable = mode != -1 && mode & libc::O_ACCMODE != libc::O_RDONLY;
    WRITABLE.store(is_writable, Ordering::Relaxed);
}

// SAFETY: the loader calls each function of this section once, before `main`, in one thread.
// `look` needs nothing that Rust's runtime sets up.
#[cfg(any(target_os = "linux", target_os = "macos"))]
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static LOOK: extern "C" fn() = look;
