//! PyTorch's random numbers on the CPU, for files that hold a seed in place of a frozen projection.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits of the
//! seed.

const LENGTH: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator(device="cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    state: [u32; LENGTH],
    next: usize,
}

impl TorchGenerator {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; LENGTH];
        for index in 1..LENGTH {
            let last = state[index - 1];
            let mixed = (last ^ (last >> 30)).wrapping_mul(1_812_433_253);
            state[index] = mixed.wrapping_add(index as u32);
        }
        let next = LENGTH;
        Self { state, next }
    }

    /// The next 32 bits.
    fn next_bits(&mut self) -> u32 {
        if self.next == LENGTH {
            self.twist();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    fn twist(&mut self) {
        for index in 0..LENGTH {
            let high = self.state[index] & 0x8000_0000;
            let joined = high | (self.state[(index + 1) % LENGTH] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % LENGTH] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// `torch.empty(count).uniform_(-bound, bound)` in f32.
    pub fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        let (low, high) = (-bound as f32, bound as f32);
        let share = |bits: u32| (bits & 0x00ff_ffff) as f32 * 2.0_f32.powi(-24);
        (0..count)
            .map(|_| share(self.next_bits()).mul_add(high - low, low))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::TorchGenerator;

    #[test]
    fn bits_are_those_of_the_reference_implementation() {
        let mut generator = TorchGenerator::new(5489);
        assert_eq!(generator.next_bits(), 3_499_211_612);
        let last = (2..=10_000).map(|_| generator.next_bits()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    /// Written by torch 2.15: `torch.empty(1000).uniform_(-0.3, 0.3, generator=g)`, seed 7.
    #[test]
    fn uniform_numbers_are_those_of_torch() {
        let values = TorchGenerator::new(7).uniform(1000, 0.3);
        assert_eq!(values[0].to_bits(), 0x3cab_a6ba);
        assert_eq!(values[2].to_bits(), 0x3dc3_a3ac);
        assert_eq!(values[999].to_bits(), 0x3e93_808e);
    }
}
