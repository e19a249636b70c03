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
//!     // What the binary passes to its Ctrl-C handler; `true` means "asked before: leave at once".
//!     move || interrupt.request()
//! };
//! assert!(!interrupt.is_requested());
//! assert!(!handler());
//! assert!(interrupt.is_requested());
//! assert!(handler());
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to save and stop at the next optimizer step. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks the run to save and stop. Returns whether that had been asked before, so that a second
    /// Ctrl-C can end a process that is stuck.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether the run shall save and stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
