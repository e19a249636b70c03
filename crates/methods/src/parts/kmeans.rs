//! Clusters of rows by k-means, as scikit-learn finds them from random rows of a seed.
//!
//! Lloyd's algorithm (Lloyd 1982): each row belongs to the nearest center, each center is the mean
//! of its rows, until no row changes or centers hardly move. scikit-learn computes in single
//! precision on several threads, here it is double: where a row is about as near to two centers,
//! the two may decide otherwise.

use crate::parts::torch_generator::TorchGenerator;

/// The cluster of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    /// For each row the number of its cluster.
    pub of_row: Vec<usize>,
    /// Whether no row was ever about as near to another center, so that rounding decides nothing.
    pub are_certain: bool,
}

/// How much nearer a row must be to its center than to any other, as a share of the distances'
/// squares.
const MARGIN: f64 = 1e-4;

/// `KMeans(count, init="random", n_init=1, max_iter=most, random_state=seed)` of scikit-learn.
pub fn kmeans(rows: &[Vec<f64>], count: usize, most: usize, seed: u64) -> Clusters {
    let columns = rows.first().map_or(0, Vec::len);
    let size = rows.len() as f64;
    let mean: Vec<f64> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column]).sum::<f64>() / size)
        .collect();
    let centered = rows.iter().map(|row| {
        let row = row.iter().zip(&mean);
        row.map(|(value, mean)| value - mean).collect()
    });
    let rows: Vec<Vec<f64>> = centered.collect();
    let squares = rows.iter().flatten().map(|value| value * value);
    let tolerance = 1e-4 * squares.sum::<f64>() / (size * columns as f64);
    let first = choice(rows.len(), count, seed);
    let mut centers: Vec<Vec<f64>> = first.into_iter().map(|row| rows[row].clone()).collect();
    let mut clusters = Clusters {
        of_row: Vec::new(),
        are_certain: true,
    };
    for _ in 0..most {
        let before = std::mem::take(&mut clusters.of_row);
        clusters.assign(&rows, &centers);
        if clusters.of_row == before {
            return clusters;
        }
        let moved = clusters.move_centers(&rows, &mut centers);
        if moved <= tolerance {
            break;
        }
    }
    clusters.assign(&rows, &centers);
    clusters
}

impl Clusters {
    /// Puts each row into the cluster of the nearest center.
    fn assign(&mut self, rows: &[Vec<f64>], centers: &[Vec<f64>]) {
        let nearest = rows.iter().map(|row| {
            let distances: Vec<f64> = centers.iter().map(|it| distance(row, it)).collect();
            let mut order: Vec<usize> = (0..centers.len()).collect();
            order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
            let [first, second, ..] = order[..] else {
                return (0, true);
            };
            let sum = distances[first] + distances[second];
            (first, distances[second] - distances[first] > MARGIN * sum)
        });
        let (of_row, are_certain): (Vec<usize>, Vec<bool>) = nearest.unzip();
        self.of_row = of_row;
        self.are_certain &= are_certain.into_iter().all(|it| it);
    }

    /// Moves each center to the mean of its rows; one without rows to the row that is furthest from
    /// its own center. Returns the sum of the squares of how far they moved.
    fn move_centers(&mut self, rows: &[Vec<f64>], centers: &mut [Vec<f64>]) -> f64 {
        let mut sums = vec![vec![0.0; centers[0].len()]; centers.len()];
        let mut counts = vec![0usize; centers.len()];
        let mut add = |to: usize, row: &[f64], sign: f64| {
            let sum = sums[to].iter_mut().zip(row);
            sum.for_each(|(sum, value)| *sum += sign * value);
        };
        for (row, &cluster) in rows.iter().zip(&self.of_row) {
            add(cluster, row, 1.0);
            counts[cluster] += 1;
        }
        let empty: Vec<usize> = (0..counts.len()).filter(|&it| counts[it] == 0).collect();
        let own = |row: &usize| distance(&rows[*row], &centers[self.of_row[*row]]);
        let mut furthest: Vec<usize> = (0..rows.len()).collect();
        furthest.sort_by(|a, b| own(b).total_cmp(&own(a)));
        for (&cluster, &row) in empty.iter().zip(&furthest) {
            add(cluster, &rows[row], 1.0);
            add(self.of_row[row], &rows[row], -1.0);
            counts[self.of_row[row]] -= 1;
            counts[cluster] = 1;
        }
        // Which of several goes where depends on how NumPy sorts.
        self.are_certain &= empty.len() < 2;
        let mut moved = 0.0;
        for ((center, sum), count) in centers.iter_mut().zip(sums).zip(counts) {
            let new: Vec<f64> = match count {
                0 => center.clone(),
                count => sum.iter().map(|sum| sum / count as f64).collect(),
            };
            moved += distance(center, &new);
            *center = new;
        }
        moved
    }
}

/// The square of the distance of two points.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// `RandomState(seed).choice(size, count, replace=False, p)` of NumPy, with equal probabilities
/// that scikit-learn has in single precision.
fn choice(size: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut generator = TorchGenerator::new(seed);
    let mut shares = vec![f64::from(1.0 / size as f32); size];
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    while chosen.len() < count {
        let draws = (chosen.len()..count).map(|_| generator.random_sample());
        let draws: Vec<f64> = draws.collect();
        chosen.iter().for_each(|&it| shares[it] = 0.0);
        let sums = shares.iter().scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum)
        });
        let sums: Vec<f64> = sums.collect();
        let all = sums[size - 1];
        for draw in draws {
            let place = sums.partition_point(|sum| sum / all <= draw);
            if !chosen.contains(&place) {
                chosen.push(place);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::{choice, kmeans};
    use crate::parts::torch_generator::TorchGenerator;

    const SEED: u64 = 123_456_789;

    /// Written by NumPy 2.4.6: `RandomState(123456789).choice(12, 4, False, numpy.ones(12) / 12)`.
    #[test]
    fn first_rows_are_those_of_numpy() {
        assert_eq!(choice(12, 4, SEED), [6, 8, 2, 9]);
    }

    fn rows(seed: u64, rows: usize, columns: usize) -> Vec<Vec<f64>> {
        let mut generator = TorchGenerator::new(seed);
        let mut value = || f64::from(generator.random_sample() as f32);
        let row = |_| (0..columns).map(|_| value()).collect();
        (0..rows).map(row).collect()
    }

    /// Written by scikit-learn 1.9.1: `KMeans(n, init="random", n_init=1, max_iter=10,
    /// random_state=123456789).fit(RandomState(seed).random_sample(shape).astype("float32"))`.
    #[test]
    fn clusters_are_those_of_scikit_learn() {
        let found = kmeans(&rows(5, 12, 3), 4, 10, SEED);
        assert_eq!(found.of_row, [0, 2, 2, 1, 0, 1, 0, 1, 1, 3, 1, 2]);
        assert!(found.are_certain);
        let found = kmeans(&rows(6, 40, 2), 9, 10, SEED);
        let expected = [
            1, 6, 5, 7, 8, 8, 8, 0, 1, 4, 5, 4, 1, 3, 2, 0, 5, 8, 1, 7, 4, 0, 7, 6, 8, 6, 7, 8, 2,
            1, 4, 6, 1, 8, 4, 5, 2, 1, 5, 5,
        ];
        assert_eq!(found.of_row, expected);
    }

    #[test]
    fn a_row_between_two_centers_is_not_certain() {
        let rows: Vec<Vec<f64>> = [0.0, 2.0, 1.0].map(|value| vec![value]).to_vec();
        assert!(kmeans(&rows, 3, 10, SEED).are_certain);
        // With the outer two first, the third is half way.
        let are_certain = |seed| kmeans(&rows, 2, 10, seed).are_certain;
        assert!((0..10).any(are_certain) && !(0..10).all(are_certain));
    }
}
