//! Memory of the process: keeping freed buffers, and uninitialized buffers.
//!
//! A training step allocates and frees the same large buffers as the one before. By default glibc
//! returns such buffers to the system and allocates new ones, whose pages the system clears and
//! maps one by one: a sixth of a step of BERT-base.

/// Makes the allocator keep freed memory for the next step instead of returning it to the system.
/// Call it once, at the start of a program that trains. Returns whether the allocator can do so;
/// allocators other than glibc's are not changed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator's settings are reached through C")]
pub fn keep_freed_memory() -> bool {
    // SAFETY: `mallopt` takes two integers and only changes how later calls of `malloc` behave.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0) == 1 && libc::mallopt(libc::M_TRIM_THRESHOLD, -1) == 1
    }
}

/// Does nothing and returns false, since this system does not have glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() -> bool {
    false
}

/// An uninitialized buffer, for a kernel that writes every element: clearing it first would be a
/// needless pass over memory. Its values are arbitrary; with debug assertions they are NaN, so that
/// an element that a kernel does not write shows.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[expect(unsafe_code, reason = "memory that is not cleared is beyond safe Rust")]
pub fn uninit_buffer(length: usize) -> Vec<f32> {
    let mut buffer = Vec::<f32>::with_capacity(length);
    // SAFETY: for the compiler, the empty assembly may have written the memory behind the pointer:
    // from here on the buffer holds fixed bytes, and any bytes are an f32.
    unsafe {
        std::arch::asm!(
            "/* {0} */", in(reg) buffer.as_mut_ptr(), options(nostack, preserves_flags)
        );
        buffer.set_len(length);
    }
    if cfg!(debug_assertions) {
        buffer.fill(f32::NAN);
    }
    buffer
}

/// A zeroed buffer, on processors for which Rust has no inline assembly.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn uninit_buffer(length: usize) -> Vec<f32> {
    vec![0.0; length]
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_uninit_buffer_has_its_length_and_shows_unwritten_elements() {
        for length in [0, 1, 1000, 1 << 20] {
            let mut buffer = super::uninit_buffer(length);
            assert_eq!(buffer.len(), length);
            if cfg!(debug_assertions) {
                assert!(buffer.iter().all(|value| value.is_nan()));
            }
            buffer.fill(1.0);
            assert!(buffer.iter().all(|&value| value == 1.0));
        }
    }

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
