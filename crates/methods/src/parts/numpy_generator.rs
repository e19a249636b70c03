//! NumPy's random numbers, for files that hold a seed in place of an assignment drawn from it.
//!
//! `numpy.random.default_rng(seed)` is PCG64 (O'Neill 2014, XSL-RR 128/64), seeded through
//! `SeedSequence`; samples without replacement are drawn by Floyd's algorithm or, large shares of
//! more than 10,000, by a partial shuffle, with Lemire's bounded numbers (2019), and whole shuffles
//! with rejected ones.

use std::collections::HashSet;

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// `numpy.random.default_rng(seed)`.
#[derive(Clone, Debug)]
pub struct NumpyGenerator {
    state: u128,
    increment: u128,
    /// The upper half of the last 64 bits, which the next 32 bits are.
    half: Option<u32>,
}

impl NumpyGenerator {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Self {
        let words = seed_words(seed);
        let pair = |at: usize| (u128::from(words[at]) << 64) | u128::from(words[at + 1]);
        let mut generator = Self {
            state: 0,
            increment: (pair(2) << 1) | 1,
            half: None,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(pair(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        let product = self.state.wrapping_mul(MULTIPLIER);
        self.state = product.wrapping_add(self.increment);
    }

    fn next_64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let bits = self.next_64();
        self.half = Some((bits >> 32) as u32);
        bits as u32
    }

    /// A number from 0 to `last`, which fits 32 bits.
    fn up_to(&mut self, last: usize) -> usize {
        let count = last as u64 + 1;
        if last == 0 {
            return 0;
        }
        let mut product = u64::from(self.next_32()) * count;
        let threshold = (u64::from(u32::MAX) - last as u64) % count;
        while (product & u64::from(u32::MAX)) < threshold {
            product = u64::from(self.next_32()) * count;
        }
        (product >> 32) as usize
    }

    /// The same, by drawing as many bits as it has until they are no larger.
    fn up_to_by_rejection(&mut self, last: usize) -> usize {
        let mask = (last + 1).next_power_of_two() - 1;
        loop {
            let drawn = self.next_32() as usize & mask;
            if drawn <= last {
                return drawn;
            }
        }
    }

    /// Puts the values from `first` on, and those before them that they are exchanged with, into
    /// random order, as samples do it.
    fn shuffle_sample(&mut self, first: usize, values: &mut [i64]) {
        for at in (first..values.len()).rev() {
            let other = self.up_to(at);
            values.swap(at, other);
        }
    }

    /// `shuffle(values)`.
    pub fn shuffle(&mut self, values: &mut [i64]) {
        for at in (1..values.len()).rev() {
            let other = self.up_to_by_rejection(at);
            values.swap(at, other);
        }
    }

    /// `choice(population, size, replace=False)`.
    pub fn choice(&mut self, population: usize, size: usize) -> Vec<i64> {
        if population > 10_000 && size > population / 50 {
            let mut all: Vec<i64> = (0..population as i64).collect();
            self.shuffle_sample((population - size).max(1), &mut all);
            return all.split_off(population - size);
        }
        let mut seen = HashSet::new();
        let mut chosen = Vec::with_capacity(size);
        for last in population - size..population {
            let drawn = self.up_to(last) as i64;
            let new = if seen.contains(&drawn) {
                last as i64
            } else {
                drawn
            };
            seen.insert(new);
            chosen.push(new);
        }
        self.shuffle_sample(1, &mut chosen);
        chosen
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u64) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let mixed = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let mixed = mixed.wrapping_mul(constant);
        mixed ^ (mixed >> 16)
    };
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut pool = entropy.map(&mut hash);
    for from in 0..4 {
        for to in (0..4).filter(|&to| to != from) {
            let left = pool[to].wrapping_mul(0xca01_f9dd);
            let mixed = left.wrapping_sub(hash(pool[from]).wrapping_mul(0x4973_f715));
            pool[to] = mixed ^ (mixed >> 16);
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut words = pool.iter().cycle().map(|&word| {
        let mixed = word ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let mixed = mixed.wrapping_mul(constant);
        u64::from(mixed ^ (mixed >> 16))
    });
    let mut next = || words.next().expect("the pool is repeated without end");
    std::array::from_fn(|_| {
        let low = next();
        low | (next() << 32)
    })
}

#[cfg(test)]
mod tests {
    use super::NumpyGenerator;

    #[test]
    fn the_generator_begins_as_that_of_numpy() {
        let generator = NumpyGenerator::new(42);
        assert_eq!(
            generator.state,
            274_674_114_334_540_486_603_088_602_300_644_985_544
        );
        assert_eq!(
            generator.increment,
            332_724_090_758_049_132_448_979_897_138_935_081_983
        );
        let mut generator = generator;
        let bits = [(); 4].map(|()| generator.next_32());
        assert_eq!(
            bits,
            [383_329_928, 3_324_115_917, 2_811_363_265, 1_884_968_545]
        );
    }

    /// numpy 2.4: `repeat(arange(d), D // d)`, `choice(d, D % d, replace=False)` behind it,
    /// shuffled.
    #[test]
    fn samples_and_orders_are_those_of_numpy() {
        for (total, population, seed, first, sum) in [
            (1000, 256, 42, [125, 66, 161, 165], 64_147_165),
            (37, 10, 7, [3, 9, 5, 7], 3161),
            (12, 12, 0, [9, 2, 7, 4], 353),
            (
                100_000,
                20_001,
                5,
                [451, 19_741, 18_846, 19_527],
                49_963_518_526 % 1_000_003,
            ),
        ] {
            let mut generator = NumpyGenerator::new(seed);
            let each = total / population;
            let mut values: Vec<i64> = (0..population * each)
                .map(|at| (at / each) as i64)
                .collect();
            if total % population > 0 {
                values.extend(generator.choice(population, total % population));
            }
            generator.shuffle(&mut values);
            assert_eq!(values[..4], first);
            let of_numpy: i64 = (0..)
                .zip(&values)
                .map(|(at, value)| at * value % 1_000_003)
                .sum();
            assert_eq!(of_numpy % 1_000_003, sum % 1_000_003);
        }
    }
}
