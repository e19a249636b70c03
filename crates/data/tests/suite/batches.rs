//! Properties of batching: nothing lost, nothing doubled, and the same again at any time.

use epiphyte_data::{Batch, Batches, DataError, Example, Order, Target, Targets};
use proptest::prelude::*;

/// Examples whose ids are their positions in the data set.
fn examples(lengths: &[usize]) -> Vec<Example> {
    let example = |(position, &length): (usize, &usize)| Example {
        ids: vec![position as u32; length],
        type_ids: vec![0; length],
        target: Target::Tokens(vec![position as i64; length]),
    };
    lengths.iter().enumerate().map(example).collect()
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Sequential),
        any::<u64>().prop_map(|seed| Order::Shuffled { seed }),
        any::<u64>().prop_map(|seed| Order::LengthGrouped { seed }),
    ]
}

proptest! {
    #[test]
    fn every_epoch_visits_every_example_once(
        lengths in prop::collection::vec(1..40usize, 1..300),
        batch_size in 1..20usize,
        order in order(),
        epoch: u64,
    ) {
        let batches = Batches::new(examples(&lengths), batch_size, order).unwrap();
        let mut seen = vec![false; lengths.len()];
        let mut sizes = Vec::new();
        for batch in batches.epoch(epoch).batches_from(0) {
            let batch = batch.unwrap();
            sizes.push(batch.examples());
            for position in batch.positions {
                prop_assert!(!std::mem::replace(&mut seen[position], true), "{position} twice");
            }
        }
        prop_assert!(seen.iter().all(|&seen| seen));
        prop_assert_eq!(sizes.len(), batches.per_epoch());
        let (last, full) = sizes.split_last().unwrap();
        prop_assert!(full.iter().all(|&size| size == batch_size));
        prop_assert!((1..=batch_size).contains(last));
    }

    #[test]
    fn a_resumed_run_sees_the_same_batches(
        lengths in prop::collection::vec(1..40usize, 1..100),
        batch_size in 1..8usize,
        order in order(),
        epoch in 0..5u64,
        step: prop::sample::Index,
    ) {
        let run: Vec<Batch> = Batches::new(examples(&lengths), batch_size, order)
            .unwrap().epoch(epoch).batches_from(0).collect::<Result<_, _>>().unwrap();
        let resumed = Batches::new(examples(&lengths), batch_size, order).unwrap();
        let start = step.index(run.len());
        let rest: Vec<Batch> =
            resumed.epoch(epoch).batches_from(start).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&run[start..], &rest[..]);
        let one = resumed.epochs().get(epoch).batch(start).unwrap();
        prop_assert_eq!(&one, &run[start]);
    }

    #[test]
    fn boundaries_cut_the_batch_into_its_examples(
        lengths in prop::collection::vec(1..40usize, 1..50),
        batch_size in 1..20usize,
        order in order(),
    ) {
        let batches = Batches::new(examples(&lengths), batch_size, order).unwrap();
        for batch in batches.epoch(3).batches_from(0) {
            let batch = batch.unwrap();
            prop_assert_eq!(batch.boundaries.len(), batch.examples() + 1);
            prop_assert_eq!(batch.boundaries[0], 0);
            prop_assert_eq!(*batch.boundaries.last().unwrap(), batch.tokens());
            prop_assert_eq!(batch.type_ids.len(), batch.tokens());
            let Targets::Tokens(labels) = &batch.targets else { panic!("targets of another kind") };
            prop_assert_eq!(labels.len(), batch.tokens());
            for (ends, &position) in batch.boundaries.windows(2).zip(&batch.positions) {
                let expected = batches.examples().get(position).unwrap();
                prop_assert_eq!(&batch.ids[ends[0]..ends[1]], &expected.ids[..]);
                let labels = labels[ends[0]..ends[1]].to_vec();
                prop_assert_eq!(&Target::Tokens(labels), &expected.target);
            }
        }
    }

    /// Within one window, the batches' ranges of lengths do not overlap.
    #[test]
    fn grouped_batches_hold_similar_lengths(
        lengths in prop::collection::vec(1..500usize, 64..400),
        seed: u64,
    ) {
        let batches = Batches::new(examples(&lengths), 8, Order::LengthGrouped { seed }).unwrap();
        let mut ranges: Vec<(usize, usize)> = batches.epoch(0).batches_from(0).map(|batch| {
            let positions = batch.unwrap().positions;
            let lengths: Vec<usize> =
                positions.iter().map(|&position| lengths[position]).collect();
            (*lengths.iter().max().unwrap(), *lengths.iter().min().unwrap())
        }).collect();
        ranges.sort_by(|a, b| b.cmp(a));
        // Up to 400 examples are one window, so batches must not overlap at all.
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].1 >= pair[1].0, "{ranges:?}");
        }
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let batches = |seed| Batches::new(examples(&[1; 100]), 10, Order::Shuffled { seed }).unwrap();
    let order = |seed, epoch| batches(seed).epoch(epoch).positions().to_vec();
    assert_ne!(order(0, 0), order(0, 1));
    assert_ne!(order(0, 0), order(1, 0));
    assert_ne!(order(0, 1), order(1, 0));
    assert_eq!(order(5, 3), order(5, 3));
}

/// A training step asks for one batch; with a shuffle of the whole epoch each time, its cost would
/// grow with the number of examples.
#[test]
fn the_order_of_an_epoch_is_computed_once() {
    let batches = Batches::new(examples(&[1; 64]), 4, Order::Shuffled { seed: 3 }).unwrap();
    let mut epochs = batches.epochs();
    let first = epochs.get(5).positions().as_ptr();
    for index in 0..batches.per_epoch() {
        let epoch = epochs.get(5);
        assert_eq!(epoch.positions().as_ptr(), first, "computed anew");
        assert_eq!(
            epoch.batch(index).unwrap(),
            batches.epoch(5).batch(index).unwrap()
        );
    }
    // Going on to another epoch, or back, gives that epoch's own order.
    for number in [6, 5] {
        let expected = batches.epoch(number);
        assert_eq!(epochs.get(number).positions(), expected.positions());
    }
}

/// The order never changes, so that a run stopped under one version resumes under the next. The
/// expected order was computed by a Python transcription of the published algorithms (SplitMix64,
/// Fisher-Yates).
#[test]
fn the_order_is_the_documented_one() {
    let batches = Batches::new(examples(&[1; 10]), 3, Order::Shuffled { seed: 42 }).unwrap();
    assert_eq!(batches.epoch(7).positions(), [5, 8, 1, 7, 0, 2, 4, 6, 3, 9]);
}

#[test]
fn impossible_requests_are_refused() {
    assert!(matches!(
        Batches::new(vec![], 0, Order::Sequential),
        Err(DataError::ZeroBatchSize)
    ));
    let batches = Batches::new(examples(&[1, 2, 3]), 2, Order::Sequential).unwrap();
    assert!(matches!(
        batches.epoch(0).batch(2),
        Err(DataError::NoSuchBatch { index: 2, count: 2 })
    ));
    let mut mixed = examples(&[1, 2]);
    mixed[1].target = Target::Class(0);
    assert!(matches!(
        Batches::new(mixed.clone(), 1, Order::Sequential),
        Err(DataError::MixedTargets { index: 1 })
    ));
    assert!(matches!(
        Batch::join(mixed.iter().enumerate()),
        Err(DataError::MixedTargets { index: 1 })
    ));
    let none = Batches::new(vec![], 1, Order::Sequential).unwrap();
    assert_eq!(
        (none.per_epoch(), none.epoch(0).batches_from(0).count()),
        (0, 0)
    );
}
