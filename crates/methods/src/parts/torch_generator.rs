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
    /// The second of a pair of normal numbers.
    spare: Option<f64>,
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
        Self {
            state,
            next,
            spare: None,
        }
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

    /// `torch.rand(count)` in f32.
    pub fn rand(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.share()).collect()
    }

    /// `torch.empty(count, dtype=torch.bfloat16).uniform_(-bound, bound)`: as in f32, but rounded;
    /// what is rounded to the bound becomes its negative.
    pub fn uniform_bf16(&mut self, count: usize, bound: f64) -> Vec<f32> {
        let end = bf16(bound as f32);
        let values = self.uniform(count, bound).into_iter().map(bf16);
        values.map(|it| if it == end { -end } else { it }).collect()
    }

    /// The first `count` values of `torch.randperm(size)`, for less than 2³² / 20 values.
    pub fn permutation(&mut self, size: usize, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..size).collect();
        for place in 0..count.min(size.saturating_sub(1)) {
            let other = self.next_bits() as usize % (size - place);
            places.swap(place, place + other);
        }
        places.truncate(count);
        places
    }

    /// `torch.empty(count).uniform_(-bound, bound)` in f32.
    pub fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        let (low, high) = (-bound as f32, bound as f32);
        (0..count)
            .map(|_| self.share().mul_add(high - low, low))
            .collect()
    }

    /// `torch.empty(count).normal_(0, std)` in f32, up to the last bit of logarithm and cosine.
    pub fn normal(&mut self, count: usize, std: f64) -> Vec<f32> {
        if count < 16 {
            return (0..count)
                .map(|_| (self.next_normal() * std) as f32)
                .collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.share()).collect();
        let (blocks, rest) = values.as_chunks_mut::<16>();
        blocks
            .iter_mut()
            .for_each(|block| box_muller(block, std as f32));
        if !rest.is_empty() {
            let mut last = [(); 16].map(|()| self.share());
            box_muller(&mut last, std as f32);
            values[count - 16..].copy_from_slice(&last);
        }
        values
    }

    /// `numpy.random.RandomState(seed).random_sample()`, whose generator is the same.
    pub fn random_sample(&mut self) -> f64 {
        let (high, low) = (self.next_bits() >> 5, self.next_bits() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// A number in `[0, 1)` of 24 bits.
    fn share(&mut self) -> f32 {
        (self.next_bits() & 0x00ff_ffff) as f32 * 2.0_f32.powi(-24)
    }

    /// The next normal number in f64; they come in pairs.
    fn next_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let mut share = || {
            let bits = (u64::from(self.next_bits()) << 32) | u64::from(self.next_bits());
            (bits & ((1 << 53) - 1)) as f64 * 2.0_f64.powi(-53)
        };
        let (angle, rest) = (std::f64::consts::TAU * share(), share());
        let radius = (-2.0 * (-rest).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Normal numbers from sixteen uniform ones (Box and Muller 1958), in place.
fn box_muller(block: &mut [f32; 16], std: f32) {
    for at in 0..8 {
        let radius = (-2.0 * (1.0 - block[at]).ln()).sqrt();
        let angle = std::f32::consts::TAU * block[at + 8];
        block[at] = radius * angle.cos() * std;
        block[at + 8] = radius * angle.sin() * std;
    }
}

/// The nearest bf16 number, of two as near that with an even last bit.
pub(crate) fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::TorchGenerator;

    /// Written by torch 2.15: `torch.randperm(1000, generator=g)`, seed 777.
    #[test]
    fn permutations_are_those_of_torch() {
        let places = TorchGenerator::new(777).permutation(1000, 1000);
        assert_eq!(places[..6], [735, 819, 201, 799, 435, 497]);
        assert_eq!(places[999], 284);
        let first = TorchGenerator::new(777).permutation(1000, 6);
        assert_eq!(first, places[..6]);
    }

    /// Written by torch 2.15: `torch.empty(4000, dtype=torch.bfloat16).uniform_(-0.1, 0.1)`, seed
    /// 0.
    #[test]
    fn uniform_bf16_numbers_are_those_of_torch() {
        let values = TorchGenerator::new(0).uniform_bf16(4000, 0.1);
        assert_eq!(
            values[..4],
            [-0.00074768066, 0.053710938, -0.08251953, -0.07373047]
        );
        let sum: f64 = values.iter().map(|it| f64::from(*it)).sum();
        assert_eq!(sum, -4.601762771606445);
        let below = values.iter().filter(|it| **it == values[337]).count();
        assert_eq!(below, 7);
    }

    /// Written by NumPy 2.4.6.
    #[test]
    fn samples_are_those_of_numpy() {
        let mut generator = TorchGenerator::new(123_456_789);
        assert_eq!(generator.random_sample(), 0.532833024789759);
        assert_eq!(generator.random_sample(), 0.5341366008904166);
    }

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

    /// Written by torch 2.15: `torch.normal(0, 0.5, (n,), generator=g)`, the first two and the
    /// last.
    #[test]
    fn normal_numbers_are_those_of_torch() {
        for (count, seed, expected) in [
            (4, 42, [0.168_345_18, 0.064_404_7, 0.115_166_515]),
            (12, 43, [-0.324_200_54, -0.352_920_7, -0.522_492_05]),
            (16, 42, [0.963_457_64, 0.743_642_03, 0.381_222_7]),
            (20, 43, [-0.008_301_807, -0.233_397_47, 0.514_100_73]),
            (64, 7, [-0.410_067_26, 0.197_815_58, 0.377_096_27]),
        ] {
            let values = TorchGenerator::new(seed).normal(count, 0.5);
            let found = [values[0], values[1], values[count - 1]];
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{count}: {found}, {expected}"
                );
            }
        }
    }
}
