//! The instruction set in use: detected once; tests lower it to run every path.

use std::cell::Cell;
use std::sync::OnceLock;

/// An instruction set, weakest first: a later one may run everything an earlier one of the same
/// architecture runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, vectorized as far as the target's baseline goes.
    Portable,
    /// 128-bit vectors of AArch64.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512,
    /// [`Isa::Avx512`] with the bf16 dot product.
    Avx512Bf16,
}

impl Isa {
    /// The set with which this processor is fastest: the strongest that it has, but for the bf16
    /// dot product of Intel's, which multiplies at 0.6 times the rate of f32 (80 and 137 GFLOP/s on
    /// a core of a Xeon), where AMD's has twice that rate.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| match Self::strongest() {
            Self::Avx512Bf16 if is_intel() => Self::Avx512,
            strongest => strongest,
        })
    }

    /// The strongest set that this processor has.
    fn strongest() -> Self {
        static STRONGEST: OnceLock<Isa> = OnceLock::new();
        *STRONGEST.get_or_init(detect)
    }

    /// The set to use now: [`Isa::detected`], or less inside [`Isa::with`].
    ///
    /// Kernels read it once, on the calling thread, before they start tasks on other threads.
    pub fn current() -> Self {
        LIMIT.get().unwrap_or_else(Self::detected)
    }

    /// Every set that this processor can run, weakest first.
    pub fn available() -> Vec<Self> {
        [
            Self::Portable,
            Self::Neon,
            Self::Avx2,
            Self::Avx512,
            Self::Avx512Bf16,
        ]
        .into_iter()
        .filter(|isa| isa.is_available())
        .collect()
    }

    /// Whether this processor can run the set.
    pub fn is_available(self) -> bool {
        let strongest = Self::strongest();
        match self {
            Self::Portable => true,
            Self::Neon => strongest == Self::Neon,
            _ => strongest != Self::Neon && self <= strongest,
        }
    }

    /// Runs `body` with [`Isa::current`] set to `self` on this thread. Tests use it to force a
    /// path.
    ///
    /// # Panics
    /// If the processor does not have the set.
    pub fn with<T>(self, body: impl FnOnce() -> T) -> T {
        assert!(self.is_available(), "this processor has no {self:?}");
        let _restore = Restore(LIMIT.replace(Some(self)));
        body()
    }
}

/// Restores the thread's limit, also when a panic unwinds.
struct Restore(Option<Isa>);

impl Drop for Restore {
    fn drop(&mut self) {
        LIMIT.set(self.0);
    }
}

thread_local! {
    static LIMIT: Cell<Option<Isa>> = const { Cell::new(None) };
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") => Isa::Avx512Bf16,
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        (false, _) => Isa::Portable,
    }
}

/// Whether Intel made this processor.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
}

/// Whether Intel made this processor.
#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Portable
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn a_forced_set_holds_only_inside() {
        let outside = Isa::current();
        Isa::Portable.with(|| assert_eq!(Isa::current(), Isa::Portable));
        assert_eq!(Isa::current(), outside);
        assert!(Isa::available().contains(&Isa::Portable));
        assert!(Isa::available().contains(&Isa::detected()));
    }
}
