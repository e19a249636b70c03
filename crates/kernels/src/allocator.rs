//! An allocator that counts the bytes in use: how much memory a program needs at a time, without
//! what the system's allocator keeps for later.
//!
//! A program that wants the figures makes [`CountingAllocator`] its global allocator; in others
//! they are unknown.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Smaller buffers are not counted: there are many, and together they are little beside tensors.
const LEAST: usize = 1024;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static PEAK_SINCE_MARK: AtomicUsize = AtomicUsize::new(0);

/// The bytes in use now; none if the program does not count them.
pub fn live_bytes() -> Option<u64> {
    Some(LIVE.load(Relaxed) as u64).filter(|_| PEAK.load(Relaxed) > 0)
}

/// The most bytes that were in use at once since the program began; none if it does not count them.
pub fn peak_bytes() -> Option<u64> {
    Some(PEAK.load(Relaxed) as u64).filter(|&peak| peak > 0)
}

/// Begins a part of the program whose peak is of interest.
pub fn mark() {
    PEAK_SINCE_MARK.store(LIVE.load(Relaxed), Relaxed);
}

/// The most bytes that were in use at once since the last [`mark`]; none if the program does not
/// count them.
pub fn peak_bytes_since_mark() -> Option<u64> {
    Some(PEAK_SINCE_MARK.load(Relaxed) as u64).filter(|_| PEAK.load(Relaxed) > 0)
}

/// The system's allocator, with a count of the bytes in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

fn add(bytes: usize) {
    if bytes >= LEAST {
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        for peak in [&PEAK, &PEAK_SINCE_MARK] {
            // Most buffers are no new peak, and reading is cheaper than writing.
            if live > peak.load(Relaxed) {
                peak.fetch_max(live, Relaxed);
            }
        }
    }
}

fn remove(bytes: usize) {
    if bytes >= LEAST {
        LIVE.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator as it is.
#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remove(layout.size());
        add(size);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.realloc(address, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::{CountingAllocator, live_bytes, mark, peak_bytes, peak_bytes_since_mark};

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn a_buffer_counts_while_it_lives() {
        let size = 256 << 20;
        let buffer = std::hint::black_box(vec![1_u8; size]);
        let with_buffer = live_bytes().unwrap();
        assert!(with_buffer >= size as u64);
        drop(buffer);
        // Other tests allocate meanwhile, but never as much as the buffer.
        assert!(live_bytes().unwrap() < with_buffer);
        assert!(peak_bytes().unwrap() >= size as u64);
        mark();
        assert!(peak_bytes_since_mark().unwrap() < with_buffer);
    }
}
