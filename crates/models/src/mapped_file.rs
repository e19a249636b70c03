//! Files mapped into memory: how gigabytes of frozen weights are read without copying them.
//!
//! If another process truncates a mapped file, the next access behind its new end raises SIGBUS,
//! which ends a process without a word. A program may have it say which file it was
//! ([`report_truncated_files`]); a library does not touch signals by itself.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::Mmap;

/// A file in memory, read-only.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    #[cfg(unix)]
    entry: &'static truncation::Entry,
}

impl MappedFile {
    /// Maps an open file; `path` is for messages.
    #[expect(unsafe_code, reason = "a map of a file cannot be made without")]
    pub(crate) fn new(file: &File, path: &Path) -> io::Result<Self> {
        // SAFETY: the map is read-only and every access is bounds-checked against its length. What
        // the type system cannot promise is that no other process rewrites or truncates the file
        // meanwhile; that is asked of the user for as long as a model is loaded, and our own writer
        // never does it: it replaces files by renaming, which leaves an open map on the old
        // content.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self {
            #[cfg(unix)]
            entry: truncation::enter(&map, path),
            map,
        })
    }

    /// Says that a range, and what is shortly before it, will not be read soon: what the system
    /// keeps of it no longer counts as memory of this process. Reading it again is still right. A
    /// range of less than a page stays.
    pub(crate) fn forget(&self, range: Range<usize>) {
        epiphyte_io::forget(&self.map, range);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(unix)]
impl Drop for MappedFile {
    fn drop(&mut self) {
        self.entry.leave();
    }
}

/// From now on, a process that reads behind the end of a base's file that was truncated while it
/// was in use ends with a message that names the file, and exit code 1. Without it, SIGBUS ends the
/// process in silence. For programs; call it once. Only on Unix is there anything to do.
pub fn report_truncated_files() {
    #[cfg(unix)]
    truncation::handle();
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "a signal handler cannot be installed without")]
mod truncation {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    /// A map and its file. Entries are never freed, since a handler may be reading them; they are a
    /// few bytes for each file that was ever opened.
    #[derive(Debug)]
    pub(super) struct Entry {
        start: usize,
        /// 0 once the file is no longer mapped.
        length: AtomicUsize,
        message: Vec<u8>,
        next: *const Entry,
    }

    // SAFETY: nothing but the atomic length changes after an entry is in the list.
    unsafe impl Send for Entry {}
    // SAFETY: as above.
    unsafe impl Sync for Entry {}

    static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

    /// Notes a map.
    pub(super) fn enter(map: &[u8], path: &Path) -> &'static Entry {
        let mut message = b"error: `".to_vec();
        message.extend_from_slice(path.as_os_str().as_bytes());
        message.extend_from_slice(
            b"` became shorter while it was in use: another program truncated it. Put the whole file \
              back and run the command again; `train` goes on with --resume\n",
        );
        let entry = Box::leak(Box::new(Entry {
            start: map.as_ptr() as usize,
            length: AtomicUsize::new(map.len()),
            message,
            next: ptr::null(),
        }));
        let mut first = ENTRIES.load(Ordering::Acquire);
        loop {
            entry.next = first;
            let new = ptr::from_mut(entry);
            match ENTRIES.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return entry,
                Err(other) => first = other,
            }
        }
    }

    impl Entry {
        /// Notes that the map is gone.
        pub(super) fn leave(&self) {
            self.length.store(0, Ordering::Release);
        }
    }

    /// Installs the handler.
    pub(super) fn handle() {
        // SAFETY: `action` is a whole `sigaction`, zeros are its empty mask, and the handler does
        // only what a handler may: it reads atomics and calls `write`, `signal` and `_exit`.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                report;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
        }
    }

    extern "C" fn report(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system passes a valid `info`; entries are never freed.
        unsafe {
            let address = (*info).si_addr() as usize;
            let mut entry = ENTRIES.load(Ordering::Acquire).cast_const();
            while let Some(it) = entry.as_ref() {
                let length = it.length.load(Ordering::Acquire);
                if (it.start..it.start + length).contains(&address) {
                    libc::write(2, it.message.as_ptr().cast(), it.message.len());
                    libc::_exit(1);
                }
                entry = it.next;
            }
            // Not ours: the access happens again and does what it did before.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_forgotten_is_read_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&content).unwrap();
        let map = MappedFile::new(file.as_file(), file.path()).unwrap();
        for range in [0..content.len(), 5_000..300_001, 10..20, 7..7] {
            assert_eq!(map[range.clone()], content[range.clone()]);
            map.forget(range);
            assert_eq!(map[..], content[..]);
        }
    }
}
