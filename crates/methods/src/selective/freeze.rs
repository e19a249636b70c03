//! Freeze: the last layers are trained, all below stay frozen.
//!
//! Lee, Tang, Lin, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", 2019,
//! arXiv 1911.03090. As surveys define the method, the feed-forwards of the last `k` layers are
//! trained; `freeze_trainable_modules` = `all` trains those layers whole. Keys are LLaMA-Factory's.
//! With no layer at all, the task's head is trained alone: a linear probe, the baseline that every
//! method has to beat.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `k (2 d ff + ff + d)` on BERT, `3 k d ff` on Llama; whole layers with `all` |
//! | file | each tensor under its own name |
//! | merges | tensors are put in place |
//!
//! Nothing below the last `k` layers is tracked, so the backward pass ends there and no activation
//! below is kept.

use epiphyte_models::{Base, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::parts::replace::{Replaced, count};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of Freeze, under LLaMA-Factory's names.
    #[derive(Copy, Eq)]
    pub struct FreezeConfig {
        /// Number of layers to train, counted from the last; 0 trains the task's head alone.
        freeze_trainable_layers: usize = 2;
        /// Parts of these layers to train: feed-forward or all.
        freeze_trainable_modules: TrainableModules = TrainableModules::FeedForward, as Text;
    }
}

/// What Freeze trains in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainableModules {
    /// The feed-forward.
    FeedForward,
    /// The whole layer.
    All,
}

impl FreezeConfig {
    /// The lowest layer that is trained.
    fn first(self, base: &Base) -> usize {
        let layers = base.dimensions.layers;
        layers.saturating_sub(self.freeze_trainable_layers)
    }

    fn chooses(self, base: &Base) -> impl Fn(&str) -> bool + '_ {
        let first = self.first(base);
        let roles = [
            Role::FeedForwardIn,
            Role::FeedForwardGate,
            Role::FeedForwardOut,
        ];
        let feed_forward: Vec<String> = base
            .linears()
            .iter()
            .filter(|linear| roles.contains(&linear.site.role))
            .map(|linear| format!("{}.", linear.site.path))
            .collect();
        move |name| {
            base.layer_of(name).is_some_and(|layer| layer >= first)
                && match self.freeze_trainable_modules {
                    TrainableModules::All => true,
                    TrainableModules::FeedForward => feed_forward
                        .iter()
                        .any(|path| name.starts_with(path.as_str())),
                }
        }
    }
}

impl MethodConfig for FreezeConfig {
    const NAME: &'static str = "freeze";
    const PEFT_TYPE: &'static str = "FREEZE";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "the feed-forwards, or all, of the last layers";
    const PAPER: &'static str = "Lee et al. 2019, arXiv 1911.03090";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "freeze_trainable_layers": 1, "freeze_trainable_modules": "all" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.count(base)?;
        Ok(Box::new(Replaced::new(
            base,
            parameters,
            self.chooses(base),
        )))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let layers = base.dimensions.layers;
        if self.freeze_trainable_layers > layers {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "freeze_trainable_layers",
                value: self.freeze_trainable_layers.to_string(),
                expected: format!("it must be from 0 to the model's {layers} layers"),
            });
        }
        if let Some(shared) = base.shared_across(self.first(base)) {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: format!(
                    "the last {} of its {layers} layers share `{shared}` with layers below them; \
                     LoRA and adapters act on shared layers, and full trains all",
                    self.freeze_trainable_layers
                ),
            });
        }
        Ok(count(base, self.chooses(base)))
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}
