//! LoRA on one linear layer.

use burn::tensor::Tensor;
use epiphyte_models::{ForwardContext, LazyLinear, Site};
use epiphyte_ops::{Dropout, LowRank, add_low_rank, fork};

use crate::framework::parameters::Param;
use crate::parts::delta::Delta;
use crate::parts::low_rank_start::{Pair, Start};

/// LoRA on one linear layer.
#[derive(Debug)]
pub(crate) struct Lora {
    pub(crate) a: Param,
    pub(crate) b: Param,
    pub(crate) bias: Option<Param>,
    pub(crate) scaling: f32,
    pub(crate) dropout: f64,
    /// What is taken out of the base.
    pub(crate) taken: Option<Start>,
}

impl Lora {
    pub(super) fn taken(&self) -> Option<&Pair> {
        self.taken.as_ref()?.pair()
    }

    /// `[A; A₀]` and `[B, -B₀]`: the same change by plain LoRA of twice the rank.
    pub(super) fn joined(&self) -> Option<Pair> {
        let (own_a, own_b) = (self.a.get::<2>(), self.b.get::<2>());
        let [a, b] = self.taken()?.clone();
        let [a, b] = match own_a.is_autodiff() {
            true => [a.autodiff(), b.autodiff()],
            false => [a, b],
        };
        Some([
            Tensor::cat(vec![own_a, a], 0),
            Tensor::cat(vec![own_b, -b], 1),
        ])
    }

    /// The path of `A` and `B` alone.
    fn own_path(&self, dropout: Option<Dropout>) -> LowRank {
        LowRank {
            a: self.a.get(),
            b: self.b.get(),
            scale: self.scaling,
            dropout,
        }
    }
}

impl Delta for Lora {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let dropout = Dropout::new(self.dropout, !site.id(), cx.rows);
        let output = match (self.joined(), self.taken()) {
            (Some([a, b]), _) if dropout.is_none() => product.add_low_rank(LowRank {
                a,
                b,
                ..self.own_path(None)
            }),
            // What is taken out of the base sees all of the input. The product and both paths read
            // it; behind a fork, the paths have one gradient, so that the order in which gradients
            // are added is fixed.
            (Some(_), Some([a, b])) => {
                let [input, _] = fork(product.input().clone());
                let path = LowRank {
                    a: a.clone(),
                    b: b.clone(),
                    scale: -self.scaling,
                    dropout: None,
                };
                let own = self.own_path(dropout);
                let output = add_low_rank(product.compute(), input.clone(), own);
                add_low_rank(output, input, path)
            }
            _ => product.add_low_rank(self.own_path(dropout)),
        };
        match &self.bias {
            Some(bias) => output + (bias.flat() * self.scaling).unsqueeze::<2>(),
            None => output,
        }
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let product = self.b.get::<2>().inner().matmul(self.a.get::<2>().inner());
        let change = match self.taken() {
            Some([a, b]) => product - b.clone().matmul(a.clone()),
            None => product,
        };
        weight + change * self.scaling
    }

    fn changes_bias(&self) -> bool {
        self.bias.is_some()
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        match &self.bias {
            Some(own) => bias + own.flat().inner() * self.scaling,
            None => bias,
        }
    }
}
