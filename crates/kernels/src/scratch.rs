//! Scratch memory of kernels, kept by each thread for the next kernel.
//!
//! An allocation of this size would be requested from and returned to the system each time, and the
//! page faults would take longer than many kernels.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{Pod, Zeroable};

/// One cache line. A `Vec` of them is memory that starts at a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; Line::WORDS]);

impl Line {
    /// Words in a line.
    pub(crate) const WORDS: usize = 16;
}

#[expect(unsafe_code, reason = "bytemuck's derive does not accept `align`")]
// SAFETY: sixteen u32 of which zero is a value.
unsafe impl Zeroable for Line {}

#[expect(unsafe_code, reason = "bytemuck's derive does not accept `align`")]
// SAFETY: any bits are a value, and 64 bytes aligned to 64 leave no padding.
unsafe impl Pod for Line {}

thread_local! {
    /// This thread's unused buffers, the last one used at the end.
    static IDLE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of all threads' buffers.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes that kernels keep for their next use, on all threads: they grow with the largest product
/// and stay until the process ends.
#[must_use]
pub fn scratch_bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Calls `body` with memory for `words` words that starts at a cache line. Its contents are left
/// over from earlier uses.
///
/// Uses may nest: each gets its own memory.
pub(crate) fn with<T>(words: usize, body: impl FnOnce(&mut [u32]) -> T) -> T {
    let mut buffer = IDLE.with_borrow_mut(|idle| idle.pop()).unwrap_or_default();
    let lines = words.div_ceil(Line::WORDS);
    if buffer.len() < lines {
        let before = buffer.capacity();
        buffer.resize(lines, Line::zeroed());
        let more = (buffer.capacity() - before) * size_of::<Line>();
        BYTES.fetch_add(more as u64, Ordering::Relaxed);
    }
    let result = body(&mut bytemuck::cast_slice_mut(&mut buffer)[..words]);
    IDLE.with_borrow_mut(|idle| idle.push(buffer));
    result
}

/// [`with`], as slices of f32 of these lengths, each starting at a cache line.
pub(crate) fn floats<T, const N: usize>(
    lengths: [usize; N],
    body: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    let whole = lengths.map(|length| length.next_multiple_of(Line::WORDS));
    with(whole.iter().sum(), |words| {
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(words);
        let mut pieces = lengths.into_iter().zip(whole);
        body(std::array::from_fn(|_| {
            let (length, whole) = pieces.next().unwrap_or_default();
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(whole);
            rest = tail;
            &mut piece[..length]
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_counted() {
        let before = scratch_bytes();
        let grow = || {
            with(1 << 20, |_| ());
            with(1 << 20, |_| ());
        };
        std::thread::spawn(grow).join().unwrap();
        assert!(scratch_bytes() >= before + (4 << 20));
    }

    #[test]
    fn nested_uses_do_not_overlap_and_memory_is_kept() {
        let address = |words: &[u32]| words.as_ptr() as usize;
        let first = with(100, |outer| {
            outer.fill(1);
            with(1000, |inner| inner.fill(2));
            assert!(outer.iter().all(|&word| word == 1));
            address(outer)
        });
        assert_eq!(first % 64, 0);
        with(10, |again| assert_eq!(address(again), first));
    }
}
