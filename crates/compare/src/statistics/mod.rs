//! Means with their intervals, paired tests, and their correction for many comparisons.
//!
//! The numbers are SciPy's: `t.interval`, `ttest_rel`, `wilcoxon` with its exact distribution, and
//! statsmodels' `multipletests(method="holm")`.

mod distributions;

use serde::Serialize;

use self::distributions::{normal_tail, t_quantile, t_tail};

/// Up to this many pairs the signed-rank test has its exact distribution.
const MOST_EXACT_PAIRS: usize = 50;

/// A deviation of differences of at most this share of the largest value is rounding.
const ROUNDING: f64 = 16.0 * f64::EPSILON;

/// A difference whose probability by chance is below this is called one.
pub(crate) const UNLIKELY: f64 = 0.05;

/// A mean over runs that differ in their seed alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The number of runs.
    pub count: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the runs (with `n - 1`); none of a single run.
    pub deviation: Option<f64>,
    /// The ends of the interval that contains the true mean with a probability of 95 %, if the runs
    /// are normal; none of a single run.
    pub interval: Option<[f64; 2]>,
}

impl Mean {
    /// The mean of `values`; none if there are none, or one is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let freedom = (count - 1) as f64;
        let deviation = (count > 1).then(|| (squares / freedom).sqrt());
        let interval = deviation.map(|deviation| {
            let half = t_quantile(0.975, freedom) * deviation / (count as f64).sqrt();
            [mean - half, mean + half]
        });
        Some(Self {
            count,
            mean,
            deviation,
            interval,
        })
    }
}

/// The probability of a mean difference this large, or larger, if the two had the same mean: the
/// paired t-test, two-sided. None for fewer than two pairs, and where all pairs differ by the same:
/// without variance the test is not determined. (SciPy then divides by 0 or by the rounding of the
/// differences, and returns nan or 0 with a warning.)
///
/// # Panics
/// If the numbers of values differ.
pub fn paired_t_test(one: &[f64], other: &[f64]) -> Option<f64> {
    assert_eq!(one.len(), other.len(), "pairs");
    let differences = one.iter().zip(other).map(|(one, other)| one - other);
    let mean = Mean::of(&differences.collect::<Vec<f64>>())?;
    let deviation = mean.deviation?;
    let values = one.iter().chain(other);
    let largest = values.fold(0.0, |most: f64, value| most.max(value.abs()));
    if deviation <= ROUNDING * largest {
        return None;
    }
    let error = deviation / (mean.count as f64).sqrt();
    Some(2.0 * t_tail((mean.mean / error).abs(), (mean.count - 1) as f64))
}

/// The probability of signed ranks this uneven, or more, if the differences were as often positive
/// as negative: Wilcoxon's signed-rank test, two-sided. Pairs that are equal do not count; ties
/// share their mean rank. None if no pair differs.
///
/// # Panics
/// If the numbers of values differ.
pub fn signed_rank_test(one: &[f64], other: &[f64]) -> Option<f64> {
    assert_eq!(one.len(), other.len(), "pairs");
    let differences = one.iter().zip(other).map(|(one, other)| one - other);
    let mut differences: Vec<f64> = differences.filter(|it| *it != 0.0).collect();
    if differences.is_empty() || differences.iter().any(|it| !it.is_finite()) {
        return None;
    }
    differences.sort_by(|one, other| one.abs().total_cmp(&other.abs()));
    // Twice the rank of each, which is whole also where ties share one.
    let mut ranks = Vec::with_capacity(differences.len());
    for tied in differences.chunk_by(|one, other| one.abs() == other.abs()) {
        let first = ranks.len() + 1;
        ranks.extend(tied.iter().map(|_| 2 * first + tied.len() - 1));
    }
    let signed = ranks.iter().zip(&differences);
    let positive = signed.filter(|(_, it)| **it > 0.0).map(|(rank, _)| rank);
    let positive: usize = positive.sum();
    let total: usize = ranks.iter().sum();
    let smaller = positive.min(total - positive);
    let probability = match ranks.len() <= MOST_EXACT_PAIRS {
        true => 2.0 * share_of_sums_up_to(smaller, &ranks),
        false => {
            let squares = ranks.iter().map(|&rank| (rank as f64 / 2.0).powi(2));
            let (mean, variance) = (total as f64 / 4.0, squares.sum::<f64>() / 4.0);
            2.0 * normal_tail((mean - smaller as f64 / 2.0) / variance.sqrt())
        }
    };
    Some(probability.min(1.0))
}

/// The share of all choices of signs in which the sum of the positive ranks is at most `most`.
fn share_of_sums_up_to(most: usize, ranks: &[usize]) -> f64 {
    let mut shares = vec![0.0; most + 1];
    shares[0] = 1.0;
    for &rank in ranks {
        for sum in (0..=most).rev() {
            let with = sum.checked_sub(rank).map_or(0.0, |rest| shares[rest]);
            shares[sum] = (shares[sum] + with) / 2.0;
        }
    }
    shares.iter().sum()
}

/// The probabilities of several tests, corrected so that the chance of a single false finding among
/// all of them stays what each says (Holm 1979).
pub fn holm(probabilities: &[f64]) -> Vec<f64> {
    let count = probabilities.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&one, &other| probabilities[one].total_cmp(&probabilities[other]));
    let mut corrected = vec![0.0; count];
    let mut largest: f64 = 0.0;
    for (number, at) in order.into_iter().enumerate() {
        largest = largest
            .max(probabilities[at] * (count - number) as f64)
            .min(1.0);
        corrected[at] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{Mean, holm, paired_t_test, signed_rank_test};

    fn numbers(value: &Value) -> Vec<f64> {
        let numbers = value.as_array().unwrap().iter();
        numbers.map(|number| number.as_f64().unwrap()).collect()
    }

    fn assert_close(found: f64, expected: &Value, what: &str) {
        let expected = expected.as_f64().unwrap();
        let difference = (found - expected).abs();
        assert!(
            difference <= 1e-9 * expected.abs().max(1e-6),
            "{what}: {found}, but SciPy says {expected}"
        );
    }

    /// Cases of `tests/make_golden_statistics.py`.
    #[test]
    fn statistics_are_those_of_scipy() {
        let golden = include_str!("../../tests/golden_statistics.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let [one, other] = ["one", "other"].map(|key| numbers(&case[key]));
            let mean = Mean::of(&one).unwrap();
            assert_close(mean.mean, &case["mean"], "mean");
            assert_close(mean.deviation.unwrap(), &case["deviation"], "deviation");
            let interval = mean.interval.unwrap();
            for (at, end) in interval.into_iter().enumerate() {
                assert_close(end, &case["interval"][at], "interval");
            }
            let t = paired_t_test(&one, &other).unwrap();
            assert_close(t, &case["paired_t"], "paired t-test");
            let ranks = signed_rank_test(&one, &other).unwrap();
            assert_close(ranks, &case["signed_rank"], "signed-rank test");
        }
        for case in golden["holm"].as_array().unwrap() {
            let corrected = holm(&numbers(&case["probabilities"]));
            let expected = case["corrected"].as_array().unwrap();
            assert_eq!(corrected.len(), expected.len());
            for (corrected, expected) in corrected.into_iter().zip(expected) {
                assert_close(corrected, expected, "Holm");
            }
        }
    }

    #[test]
    fn differences_without_variance_are_not_tested() {
        assert_eq!(paired_t_test(&[0.5, 0.5], &[0.5, 0.5]), None);
        assert_eq!(paired_t_test(&[0.75, 0.5], &[0.5, 0.25]), None);
        // The same difference of accuracies over 48 examples, but for the rounding of its bits.
        let accuracies = |counts: [f64; 3]| counts.map(|count| count / 48.0);
        let (one, other) = (
            accuracies([35.0, 36.0, 12.0]),
            accuracies([30.0, 31.0, 7.0]),
        );
        assert_ne!(one[0] - other[0], one[2] - other[2]);
        assert_eq!(paired_t_test(&one, &other), None);
        assert!(paired_t_test(&one, &accuracies([30.0, 31.0, 8.0])).is_some());
    }

    #[test]
    fn few_runs_say_little() {
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[1.0, f64::NAN]), None);
        let one = Mean::of(&[0.5]).unwrap();
        assert_eq!((one.deviation, one.interval), (None, None));
        assert_eq!(paired_t_test(&[0.5], &[0.4]), None);
        assert_eq!(signed_rank_test(&[0.5, 0.5], &[0.5, 0.5]), None);
        // Three pairs cannot be uneven enough for more.
        let ranks = signed_rank_test(&[3.0, 2.0, 1.0], &[0.0, 0.0, 0.0]);
        assert_eq!(ranks, Some(0.25));
        assert_eq!(holm(&[]), Vec::<f64>::new());
    }
}
