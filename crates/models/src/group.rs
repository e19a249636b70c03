//! Several adapters over one base in one pass.
//!
//! Each member has sequences of its own; all rows lie in one matrix, so that the products with frozen matrices
//! are shared. Where a member acts, the rows are parted, each member does with its own what it would do alone, and
//! they are joined again. A row's result in a frozen product does not depend on the other rows, so each run gets
//! what it would get alone.

use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::Sequences;

use crate::base::Linear;
use crate::seam::{Adapter, Place, Product};

/// Adapters that share a pass, each with as many of its sequences as it brought.
///
/// To the model it is an adapter that does nothing itself; the places where members act ask for them.
#[derive(Clone)]
pub struct Group<'a> {
    members: Vec<(&'a dyn Adapter, Range<usize>)>,
}

impl<'a> Group<'a> {
    /// Adapters, each with its number of sequences, in the order in which their sequences lie.
    pub fn new(members: impl IntoIterator<Item = (&'a dyn Adapter, usize)>) -> Self {
        let mut start = 0;
        let members = members.into_iter().map(|(adapter, count)| {
            let sequences = start..start + count;
            start = sequences.end;
            (adapter, sequences)
        });
        Self {
            members: members.collect(),
        }
    }

    /// The members' own sequences, and the rows that these take.
    pub fn parts(&self, sequences: &Sequences) -> Vec<(&'a dyn Adapter, Sequences, Range<usize>)> {
        let boundaries = sequences.boundaries();
        let part = |(adapter, own): &(&'a dyn Adapter, Range<usize>)| {
            let rows = boundaries[own.start]..boundaries[own.end];
            (*adapter, sequences.part(own.clone()), rows)
        };
        self.members.iter().map(part).collect()
    }

    /// A linear map: one product with the frozen matrix for all members that leave it in place.
    pub(crate) fn linear(
        &self,
        linear: &Linear,
        x: &Tensor<2>,
        sequences: &Sequences,
    ) -> Tensor<2> {
        let parts = self.parts(sequences);
        let inputs: Vec<Tensor<2>> = parts
            .iter()
            .map(|(adapter, own, rows)| adapter.linear_input(linear.site(), part(x, rows), own))
            .collect();
        let shares: Vec<bool> = parts
            .iter()
            .map(|(adapter, ..)| !linear.is_replaced(*adapter))
            .collect();
        let shared = inputs.iter().zip(&shares).filter(|(_, shares)| **shares);
        let shared: Vec<Tensor<2>> = shared.map(|(input, _)| input.clone()).collect();
        let product = (!shared.is_empty()).then(|| linear.frozen(concat(shared)));
        let mut start = 0;
        let outputs =
            parts
                .iter()
                .zip(inputs)
                .zip(shares)
                .map(|(((adapter, own, _), input), shares)| {
                    let product = match &product {
                        Some(product) if shares => {
                            let rows = start..start + input.dims()[0];
                            start = rows.end;
                            Product::done(input, part(product, &rows))
                        }
                        _ => linear.product(input, *adapter),
                    };
                    adapter.linear(linear.site(), product, own)
                });
        concat(outputs.collect())
    }
}

impl std::fmt::Debug for Group<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sequences = self.members.iter().map(|(_, sequences)| sequences);
        f.debug_list().entries(sequences).finish()
    }
}

impl Adapter for Group<'_> {
    fn first_layer(&self) -> usize {
        let layers = self
            .members
            .iter()
            .map(|(adapter, _)| adapter.first_layer());
        layers.min().unwrap_or(0)
    }

    fn acts(&self, place: Place<'_>) -> bool {
        self.members.iter().any(|(adapter, _)| adapter.acts(place))
    }

    fn group(&self) -> Option<&Group<'_>> {
        Some(self)
    }
}

/// What `body` makes of `inputs`, rows of the same tokens each: for all rows at once, or, where `adapter` stands for
/// several of which one acts at one of `places`, for each member's rows apart.
pub(crate) fn apart<const N: usize>(
    adapter: &dyn Adapter,
    places: &[Place<'_>],
    inputs: [Tensor<2>; N],
    sequences: &Sequences,
    body: impl Fn([Tensor<2>; N], &dyn Adapter, &Sequences) -> Tensor<2>,
) -> Tensor<2> {
    match adapter.group() {
        Some(group) if places.iter().any(|&place| group.acts(place)) => {
            let parts = group.parts(sequences);
            let outputs = parts.iter().map(|(adapter, own, rows)| {
                body(
                    inputs.each_ref().map(|input| part(input, rows)),
                    *adapter,
                    own,
                )
            });
            concat(outputs.collect())
        }
        _ => body(inputs, adapter, sequences),
    }
}

/// Some rows.
pub(crate) fn part(x: &Tensor<2>, rows: &Range<usize>) -> Tensor<2> {
    x.clone().narrow(0, rows.start, rows.len())
}

/// Rows one after another.
pub(crate) fn concat(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    Tensor::cat(parts, 0)
}
