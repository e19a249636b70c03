//! Pages of mapped files that a process is done with.

use std::ops::Range;

use memmap2::Mmap;

/// A read brings neighboring pages in too, of parts that were forgotten before.
#[cfg(unix)]
const AROUND: usize = 512 << 10;

/// Says that a range of a file's map, and what is shortly before it, will not be read soon: what
/// the system keeps of it no longer counts as memory of this process. Reading it again is still
/// right. A range of less than a page stays.
///
/// ```
/// let file = std::fs::File::open("Cargo.toml")?;
/// # #[expect(unsafe_code, reason = "a map cannot be made without")]
/// // SAFETY: no process writes to this file meanwhile.
/// let map = unsafe { memmap2::Mmap::map(&file) }?;
/// let before = map.to_vec();
/// epiphyte_io::forget(&map, 0..map.len());
/// assert_eq!(*map, before);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// If the range ends behind the map.
pub fn forget(map: &Mmap, range: Range<usize>) {
    assert!(
        range.end <= map.len(),
        "{range:?} of a map of {}",
        map.len()
    );
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "advice that may drop changes cannot be given without"
    )]
    if range.len() >= 4096 {
        let start = range.start.saturating_sub(AROUND);
        // SAFETY: a `Mmap` is read-only and shared with the file, so there is nothing that is in
        // memory alone; a page that is read again comes from the file.
        let advised = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            map.unchecked_advise_range(advice, start, range.end - start)
        };
        // Without it the process only seems larger.
        if let Err(error) = advised {
            tracing::debug!(%error, "madvise");
        }
    }
}
