//! Random values for initialisers, from a counter and a key: the same on every machine.

use epiphyte_kernels::threads;

use crate::dropout::place;

/// `count` values uniform in `[low, high)`.
pub fn uniform(key: u64, count: usize, low: f64, high: f64) -> Vec<f32> {
    drawn(count, |index| low + unit(key, index) * (high - low))
}

/// `count` values, normal with mean zero and the given standard deviation (Box and Muller 1958).
pub fn normal(key: u64, count: usize, std: f64) -> Vec<f32> {
    drawn(count, |index| std * gaussian(key, index))
}

/// `count` values, normal with mean zero and the given standard deviation, those beyond two of them
/// drawn anew, as TensorFlow's `truncated_normal` does.
pub fn truncated_normal(key: u64, count: usize, std: f64) -> Vec<f32> {
    let draw = |index| {
        let draws = (0..).map(|attempt| gaussian(place(key, attempt), index));
        let kept = draws.into_iter().find(|value| value.abs() <= 2.0);
        kept.expect("nineteen of twenty draws are kept")
    };
    drawn(count, |index| std * draw(index))
}

/// What `draw` gives for each number, on all threads.
fn drawn(count: usize, draw: impl Fn(u64) -> f64 + Sync) -> Vec<f32> {
    const PART: usize = 1 << 12;
    let mut values = vec![0.0; count];
    threads::for_each(values.chunks_mut(PART).enumerate(), |(part, values)| {
        for (index, value) in values.iter_mut().enumerate() {
            *value = draw((part * PART + index) as u64) as f32;
        }
    });
    values
}

/// Normal with mean zero and standard deviation one.
fn gaussian(key: u64, index: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(key, 2 * index)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(key, 2 * index + 1);
    radius * angle.cos()
}

/// Uniform in `[0, 1)`.
fn unit(key: u64, index: u64) -> f64 {
    (place(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::{normal, truncated_normal};

    fn mean_and_std(values: &[f32]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let square = values
            .iter()
            .map(|&value| (f64::from(value) - mean).powi(2))
            .sum::<f64>();
        (mean, (square / count).sqrt())
    }

    #[test]
    fn normal_has_the_moments_asked_for() {
        let (mean, std) = mean_and_std(&normal(1, 100_000, 0.02));
        assert!(mean.abs() < 3.0 * 0.02 / 100_000f64.sqrt(), "{mean}");
        assert!((std / 0.02 - 1.0).abs() < 0.01, "{std}");
    }

    #[test]
    fn truncated_normal_stays_within_two_deviations() {
        let values = truncated_normal(1, 100_000, 1e-3);
        assert!(values.iter().all(|value| value.abs() <= 2e-3));
        let (mean, std) = mean_and_std(&values);
        assert!(mean.abs() < 3.0 * 1e-3 / 100_000f64.sqrt(), "{mean}");
        // Cutting a standard normal at two leaves this standard deviation: scipy.stats.truncnorm(-2, 2).std().
        assert!((std / 1e-3 - 0.879_626).abs() < 0.01, "{std}");
    }
}
