//! Whether standard output was closed when the program started, as by `>&-`.
//!
//! Before `main`, Rust's runtime opens `/dev/null` in the place of a closed standard output, so
//! that a later write would seem to succeed. So the loader calls a function of ours before the
//! runtime starts: it looks at the descriptor and does nothing else.

#![cfg_attr(
    any(target_os = "linux", target_os = "macos"),
    expect(
        unsafe_code,
        reason = "the section of functions that run before main, and a call of the C library"
    )
)]

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed when the program started. Known on Linux and macOS; elsewhere
/// false.
pub(crate) fn was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look() {
    // SAFETY: `fcntl` with `F_GETFD` reads a flag of a descriptor, which may be closed.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    CLOSED.store(flags == -1, Ordering::Relaxed);
}

// SAFETY: the loader calls each function of this section once, before `main`, in one thread.
// `look` needs nothing that Rust's runtime sets up.
#[cfg(any(target_os = "linux", target_os = "macos"))]
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static LOOK: extern "C" fn() = look;
