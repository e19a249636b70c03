//! KronA: a Kronecker product of two small matrices added to a weight.
//!
//! Edalati, Tahaei, Kobyzev, Nia, Clark, Rezagholizadeh, "KronA: Parameter Efficient Tuning with
//! Kronecker Adapter", 2022, arXiv 2212.10650, section 3.
//!
//! `y = x Wᵀ + b + s · x (A ⊗ B)ᵀ` with `A: [a₁, a₂]`, `B: [b₁, b₂]`, `a₁ b₁ = out` and `a₂ b₂ =
//! in`. The rank of `A ⊗ B` is the product of the factors' ranks, so it is full where theirs are.
//!
//! There is no code of the authors, and the paper leaves open what follows, which is decided here:
//! the factors are as square as the sizes allow, the first the smaller; `A` starts as Kaiming
//! initialization, `B` at zero; `s` is 1 unless set, and multiplies once (reimplementations
//! multiply twice). HF PEFT's LoKr with both factors whole is the same product, with other initial
//! values and scales.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ a₁ a₂ + b₁ b₂` over the targets |
//! | changes | `Σ in · out` |
//! | file | `<path>.krona_A` `[a₁, a₂]`, `<path>.krona_B` `[b₁, b₂]` |
//! | merges | `W + s A ⊗ B` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear};
use epiphyte_ops::{Dropout, add};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::ParameterSet;
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas, dropped};
use crate::parts::kronecker::{Kronecker, KroneckerConfig};

crate::settings! {
    /// The settings of KronA.
    pub struct KronaConfig {
        ..product: KroneckerConfig = KroneckerConfig::default();
        ..targets: Targets = Targets::default();
    }
}

impl KronaConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }
}

impl MethodConfig for KronaConfig {
    const NAME: &'static str = "krona";
    const PEFT_TYPE: &'static str = "KRONA";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a Kronecker product added to chosen linear layers";
    const PAPER: &'static str = "Edalati et al. 2022, arXiv 2212.10650";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "target_modules": "all-linear", "krona_factor": [2, 4], "krona_scale": 0.5 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut deltas = Vec::new();
        for linear in self.selection().of(base)? {
            let (path, sizes) = (&linear.site.path, [linear.outputs, linear.inputs]);
            let product = self.product.declare(Self::NAME, path, sizes, parameters)?;
            deltas.push((linear, product));
        }
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?;
        let counts = targets.iter().map(|linear| {
            let sizes = [linear.outputs, linear.inputs];
            self.product.count(Self::NAME, &linear.site.path, sizes)
        });
        counts.sum()
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }
}

impl Change for Kronecker {
    fn matrix(&self) -> Tensor<2> {
        self.weight()
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let path = self.forward(dropped(&product, dropout));
        add(product.compute(), path)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    /// The reference's table: queries and values, then all six linear layers of each layer.
    #[test]
    fn counts_on_bert_base_are_those_of_near_square_factors() {
        assert_eq!(bert_base_count("krona", json!({}), 0), 38_400);
        let six = json!({
            "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"],
        });
        assert_eq!(bert_base_count("krona", six, 0), 153_600);
    }
}
