//! The product of a linear layer, computed when it is asked for.

use burn::tensor::Tensor;
use epiphyte_ops::{LowRank, Weight, add_low_rank, linear, low_rank_linear};

/// `x Wᵀ + b`, not yet computed unless several adapters share it.
///
/// An adapter that adds a low-rank path takes the product before it is computed and has both in one
/// operation ([`LazyLinear::add_low_rank`]).
#[derive(Debug)]
pub struct LazyLinear {
    input: Tensor<2>,
    state: State,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
enum State {
    Pending {
        weight: Weight,
        bias: Option<Tensor<1>>,
    },
    Done(Tensor<2>),
}

impl LazyLinear {
    /// `input Wᵀ + bias`, computed when asked for.
    pub fn pending(input: Tensor<2>, weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self {
            input,
            state: State::Pending { weight, bias },
        }
    }

    /// A product that was computed already.
    pub fn done(input: Tensor<2>, output: Tensor<2>) -> Self {
        Self {
            input,
            state: State::Done(output),
        }
    }

    /// The layer's input, `[tokens, in]`.
    pub fn input(&self) -> &Tensor<2> {
        &self.input
    }

    /// The layer's bias as the adapter has it, `[out]`; none of a product that was computed
    /// already, which has the base's own in it.
    pub fn bias(&self) -> Option<&Tensor<1>> {
        match &self.state {
            State::Pending { bias, .. } => bias.as_ref(),
            State::Done(_) => None,
        }
    }

    /// The layer's output, `[tokens, out]`.
    pub fn compute(self) -> Tensor<2> {
        match self.state {
            State::Pending { weight, bias } => linear(self.input, &weight, bias),
            State::Done(output) => output,
        }
    }

    /// The layer's output plus a low-rank path; one operation if the product is still pending.
    pub fn add_low_rank(self, path: LowRank) -> Tensor<2> {
        match self.state {
            State::Pending { weight, bias } => low_rank_linear(self.input, &weight, bias, path),
            State::Done(output) => add_low_rank(output, self.input, path),
        }
    }
}
