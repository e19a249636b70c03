//! A learned bias of attention scores by relative position (Raffel et al. 2020, arXiv 1910.10683).

use burn::tensor::Tensor;

use super::Matrix;
use crate::adapter::{Adapter, Hook};
use crate::builder::Builder;

/// What is added to the score of a query and a key: a value for each head that depends on the
/// distance between them alone. Distances share buckets, near ones have their own.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[buckets, heads]`
    table: Matrix,
    buckets: RelativeBuckets,
}

/// A table of biases and the layers that read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelativeBiasShape {
    /// The table's name.
    pub table: String,
    /// The first layer that reads it; so do those behind it, up to the next table's first.
    pub first_layer: usize,
    /// Heads of the attention, each with a column of its own.
    pub heads: usize,
    /// Which distances share a row.
    pub buckets: RelativeBuckets,
}

/// Which distances share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// The number of buckets.
    pub count: usize,
    /// From this distance on all keys share the last bucket.
    pub max_distance: usize,
    /// Whether keys before and after the query have buckets of their own, half of all each. If not,
    /// keys after the query share the bucket of distance 0.
    pub bidirectional: bool,
}

impl RelativeBias {
    /// Reads the table `name`, `[buckets, heads]`.
    pub fn build(
        builder: &mut Builder<'_>,
        name: &str,
        heads: usize,
        buckets: RelativeBuckets,
    ) -> Self {
        builder.relative_bias(RelativeBiasShape {
            table: name.to_owned(),
            first_layer: builder.layer().unwrap_or(0),
            heads,
            buckets,
        });
        Self {
            table: builder.matrix(name, [buckets.count, heads]),
            buckets,
        }
    }

    /// The hook by which an adapter replaces the table.
    pub(crate) fn hook(&self) -> Hook<'_> {
        self.table.hook()
    }

    /// The bias as the adapter has it, `[heads, queries, prefix + keys]`, for sequences with at
    /// most this many queries and keys: the keys' positions count from 0, and the queries are the
    /// last of them. A prefix has the positions before the first key. A table that is trained
    /// receives gradients.
    pub(crate) fn get(
        &self,
        adapter: &dyn Adapter,
        [queries, keys]: [usize; 2],
        prefix_length: usize,
    ) -> Tensor<3> {
        let (read, columns) = (keys - queries, prefix_length + keys);
        let [_, heads] = self.table.shape();
        let ids: Vec<u32> = (0..queries)
            .flat_map(|query| {
                let of = move |column: usize| {
                    let key = column as i64 - prefix_length as i64;
                    self.buckets.of_distance(key - (read + query) as i64)
                };
                (0..columns).map(of)
            })
            .collect();
        let bias = self.table.get(adapter).gather(&ids);
        bias.transpose().reshape([heads, queries, columns])
    }
}

impl RelativeBuckets {
    /// The bucket of a key that is `distance` positions after the query, negative if it is before.
    ///
    /// As in transformers, in `f32`: half of the buckets hold one distance each, the others grow
    /// logarithmically up to `max_distance`.
    fn of_distance(self, distance: i64) -> u32 {
        let count = match self.bidirectional {
            true => self.count / 2,
            false => self.count,
        };
        let (first, distance) = match self.bidirectional {
            true if distance > 0 => (count, distance as usize),
            true => (0, distance.unsigned_abs() as usize),
            false => (0, distance.min(0).unsigned_abs() as usize),
        };
        let exact = count / 2;
        if distance < exact {
            return (first + distance) as u32;
        }
        let octaves = (self.max_distance as f64 / exact as f64).ln() as f32;
        let growth = (distance as f32 / exact as f32).ln() / octaves;
        let bucket = exact + (growth * (count - exact) as f32) as usize;
        (first + bucket.min(count - 1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::RelativeBuckets;

    /// The bucket of each distance, as runs of equal buckets: `(distance of the first, bucket)`.
    fn runs(buckets: RelativeBuckets, distances: std::ops::Range<i64>) -> Vec<(i64, u32)> {
        let mut runs: Vec<(i64, u32)> = Vec::new();
        for distance in distances {
            let bucket = buckets.of_distance(distance);
            if runs.last().is_none_or(|&(_, last)| last != bucket) {
                runs.push((distance, bucket));
            }
        }
        runs
    }

    /// From transformers' `T5Attention._relative_position_bucket`.
    #[test]
    fn buckets_are_those_of_transformers() {
        let buckets = RelativeBuckets {
            count: 32,
            max_distance: 128,
            bidirectional: true,
        };
        let expected = [
            (-300, 15),
            (-90, 14),
            (-63, 13),
            (-45, 12),
            (-31, 11),
            (-22, 10),
            (-15, 9),
            (-11, 8),
            (-7, 7),
            (-6, 6),
            (-5, 5),
            (-4, 4),
            (-3, 3),
            (-2, 2),
            (-1, 1),
            (0, 0),
            (1, 17),
            (2, 18),
            (3, 19),
            (4, 20),
            (5, 21),
            (6, 22),
            (7, 23),
            (8, 24),
            (12, 25),
            (16, 26),
            (23, 27),
            (32, 28),
            (46, 29),
            (64, 30),
            (91, 31),
        ];
        assert_eq!(runs(buckets, -300..300), expected);
        let buckets = RelativeBuckets {
            count: 32,
            max_distance: 128,
            bidirectional: false,
        };
        let expected = [
            (-300, 31),
            (-112, 30),
            (-98, 29),
            (-86, 28),
            (-76, 27),
            (-66, 26),
            (-58, 25),
            (-51, 24),
            (-45, 23),
            (-39, 22),
            (-34, 21),
            (-30, 20),
            (-26, 19),
            (-23, 18),
            (-20, 17),
            (-18, 16),
            (-15, 15),
            (-14, 14),
            (-13, 13),
            (-12, 12),
            (-11, 11),
            (-10, 10),
            (-9, 9),
            (-8, 8),
            (-7, 7),
            (-6, 6),
            (-5, 5),
            (-4, 4),
            (-3, 3),
            (-2, 2),
            (-1, 1),
            (0, 0),
        ];
        assert_eq!(runs(buckets, -300..20), expected);
        let buckets = RelativeBuckets {
            count: 8,
            max_distance: 20,
            bidirectional: true,
        };
        let expected = [(-40, 3), (-6, 2), (-1, 1), (0, 0), (1, 5), (2, 6), (7, 7)];
        assert_eq!(runs(buckets, -40..40), expected);
    }
}
