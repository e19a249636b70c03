//! Freed memory that stays with the process.
//!
//! A training step allocates and frees the same large buffers as the one before. By default glibc gives
//! such buffers back to the system and takes fresh ones, whose pages the system clears and maps one
//! by one: a sixth of a step of BERT-base.

/// Asks the allocator to keep what is freed for the next step instead of giving it back to the system.
/// Call it once, at the start of a program that trains. Returns whether the allocator can do so;
/// allocators other than glibc's are left as they are.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator's settings are reached through C")]
pub fn keep_freed_memory() -> bool {
    // SAFETY: `mallopt` takes two integers and only changes how later calls of `malloc` behave.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0) == 1 && libc::mallopt(libc::M_TRIM_THRESHOLD, -1) == 1
    }
}

/// As on glibc, which this system does not have.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn large_buffers_come_and_go_as_before() {
        assert_eq!(
            super::keep_freed_memory(),
            cfg!(all(target_os = "linux", target_env = "gnu"))
        );
        for round in 0..3u8 {
            let buffer = vec![round; 64 << 20];
            assert!(buffer.iter().step_by(4096).all(|&byte| byte == round));
        }
    }
}
