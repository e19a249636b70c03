//! Stopping a run from outside: a flag that Ctrl-C raises and the trainer looks at between steps.
//!
//! A library does not install signal handlers; the binary does, with a clone of the flag:
//!
//! ```
//! use epiphyte_train::interrupt::Interrupt;
//!
//! let interrupt = Interrupt::default();
//! let handler = {
//!     let interrupt = interrupt.clone();
//!     // What the binary passes to its Ctrl-C handler; `true` means "leave at once".
//!     move || interrupt.request()
//! };
//! // What `train` says when data and model are read and the first step begins.
//! interrupt.begin();
//! assert!(!interrupt.is_requested());
//! assert!(!handler());
//! assert!(interrupt.is_requested());
//! assert!(handler());
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to save and stop at the next optimizer step. Clones share their flags.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    begun: AtomicBool,
    requested: AtomicBool,
}

impl Interrupt {
    /// Says that from here on there is something to save.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::SeqCst);
    }

    /// Whether there is something to save.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// Asks the run to save and stop. Returns whether the process can be left at once: while data
    /// and model are read there is nothing to save, and a second Ctrl-C ends a process that is
    /// stuck.
    pub fn request(&self) -> bool {
        self.0.requested.swap(true, Ordering::SeqCst) || !self.has_begun()
    }

    /// Whether the run shall save and stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::SeqCst)
    }
}
