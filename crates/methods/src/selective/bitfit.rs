//! BitFit: only biases are trained.
//!
//! Ben Zaken, Ravfogel, Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
//! Transformer-based Masked Language-models", ACL 2022, arXiv 2106.10199.
//!
//! `bitfit_components` = `all` trains every bias of the base, those of norms and of the pooler
//! included, as the paper's code selects them (by the substring `bias`); `query-intermediate` is
//! section 4.2's subset: the biases of the queries and of the intermediate layer, and, since the
//! code adds it to any subset, the pooler's.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (7 d + ff) + 2 d` on BERT with pooler; `L (d + ff) + d` for the subset |
//! | file | each bias under its own name |
//! | merges | biases are put in place |
//!
//! The gradient of a key's bias is zero but for rounding where positions are not rotary: adding the
//! same vector to every key moves all scores of a query alike.

use epiphyte_models::{Base, Role};
use serde::{Deserialize, Serialize};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::parts::replace::{Replaced, count};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of BitFit.
    #[derive(Copy, Eq)]
    pub struct BitFitConfig {
        /// Biases to train: all or query-intermediate.
        bitfit_components: Components = Components::All, as Text;
    }
}

/// A choice of biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Components {
    /// Every bias.
    All,
    /// Biases of queries and of the intermediate layer, and the pooler's.
    QueryIntermediate,
}

impl BitFitConfig {
    fn chooses(self, base: &Base) -> impl Fn(&str) -> bool {
        let roles = [Role::Query, Role::FeedForwardIn, Role::Pooler];
        let subset: Vec<String> = base
            .linears()
            .iter()
            .filter(|linear| roles.contains(&linear.site.role))
            .map(|linear| format!("{}.bias", linear.site.path))
            .collect();
        move |name| match self.bitfit_components {
            Components::All => name.ends_with(".bias"),
            Components::QueryIntermediate => subset.iter().any(|bias| bias == name),
        }
    }
}

impl MethodConfig for BitFitConfig {
    const NAME: &'static str = "bitfit";
    const PEFT_TYPE: &'static str = "BITFIT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "the biases of the base: all, or those of queries and intermediate layers";
    const PAPER: &'static str = "Ben Zaken et al. 2022, arXiv 2106.10199";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
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
        match count(base, self.chooses(base)) {
            0 => Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "it has no biases; LoRA or (IA)^3 train as few values".to_owned(),
            }),
            count => Ok(count),
        }
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}
