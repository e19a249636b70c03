//! Whether a classifier is worth more than the answer that needs no text: always the most frequent
//! class.

use epiphyte_data::{Examples, Target};

use super::metrics::Metrics;

/// The most frequent class of a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Majority {
    pub(crate) class: usize,
    /// Its share of the examples: the accuracy of always answering it.
    pub(crate) share: f64,
}

impl Majority {
    /// Of examples with classes; none where there are none.
    pub(crate) fn of(examples: &Examples) -> Option<Self> {
        let mut counts: Vec<u64> = Vec::new();
        for example in examples.iter() {
            if let Target::Class(class) = example.target {
                counts.resize(counts.len().max(class + 1), 0);
                counts[class] += 1;
            }
        }
        let all: u64 = counts.iter().sum();
        let (class, &most) = counts.iter().enumerate().max_by_key(|(_, count)| **count)?;
        let share = most as f64 / all as f64;
        Some(Self { class, share })
    }

    /// Whether a classifier with these scores is no better.
    pub(crate) fn equals(&self, metrics: &Metrics) -> bool {
        metrics
            .get("accuracy")
            .is_some_and(|accuracy| accuracy <= self.share + 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_data::Example;

    use super::*;

    #[test]
    fn the_most_frequent_class_is_what_must_be_beaten() {
        assert_eq!(Majority::of(&Examples::default()), None);
        let example = |class| Example {
            ids: vec![1],
            type_ids: vec![0],
            target: Target::Class(class),
        };
        let examples: Vec<Example> = [2, 0, 2, 2].map(example).into();
        let examples = examples.try_into().unwrap();
        let majority = Majority::of(&examples).unwrap();
        assert_eq!((majority.class, majority.share), (2, 0.75));
        let accuracy = |value| Metrics::from_iter([("accuracy", value)]);
        assert!(majority.equals(&accuracy(0.75)) && majority.equals(&accuracy(0.5)));
        assert!(!majority.equals(&accuracy(1.0)) && !majority.equals(&Metrics::default()));
    }
}
