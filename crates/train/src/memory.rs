//! How much memory this process holds, from `/proc/self/status` (proc(5)).
//!
//! Linux only: elsewhere the figure needs a call into the C library, which a crate without unsafe
//! code cannot make, and the answer is `None`.

use std::fs;

/// The largest resident set of this process so far (`VmHWM`), in bytes.
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    parse_field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The resident set of this process now (`VmRSS`), in bytes.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    parse_field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// The memory of this machine (`MemTotal`, proc(5)), in bytes.
#[must_use]
pub fn total_bytes() -> Option<u64> {
    parse_field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// What the system could give to processes without swapping (`MemAvailable`, proc(5)), in bytes.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    parse_field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// Finds a line such as `VmHWM:     7548 kB`; proc(5) writes every memory field in kB of 1024
/// bytes.
fn parse_field(status: &str, name: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tepiphyte\nVmPeak:\t   20000 kB\nVmHWM:\t    7548 kB\nVmRSS:\t    5120 kB\nThreads:\t3\n";

    #[test]
    fn fields_are_read_in_bytes() {
        assert_eq!(parse_field(STATUS, "VmHWM"), Some(7548 * 1024));
        assert_eq!(parse_field(STATUS, "VmRSS"), Some(5120 * 1024));
    }

    #[test]
    fn absent_and_malformed_fields_are_none() {
        assert_eq!(parse_field(STATUS, "Vm"), None);
        assert_eq!(parse_field(STATUS, "VmSwap"), None);
        assert_eq!(parse_field(STATUS, "Threads"), None);
        assert_eq!(parse_field("VmHWM:\tmany kB", "VmHWM"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_memory_stays_in_the_peak() {
        const SIZE: u64 = 256 << 20;
        let block = std::hint::black_box(vec![1_u8; SIZE as usize]);
        drop(block);
        assert!(peak_resident_bytes().unwrap() >= SIZE);
    }

    #[cfg(not(target_os = "linux"))]
    #[test]
    fn elsewhere_it_is_unknown() {
        assert_eq!(peak_resident_bytes(), None);
    }
}
