//! BitFit: only biases are trained.
//!
//! Ben Zaken, Ravfogel, Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
//! Transformer-based Masked Language-models", ACL 2022, arXiv 2106.10199.
//!
//! `bitfit_components` chooses biases as the paper's code does. `all` are those of norms and of the
//! pooler too (the substring `bias`). Others are `query`, `key`, `value`, `intermediate`; `output`,
//! the biases of the output projections of attention and feed-forward; `output_layernorm`, those of
//! both norms of a layer; `attention_layernorm`, those of the first. The code adds the pooler's
//! bias to any choice. `query-intermediate` is the subset of section 4.2, `query` and
//! `intermediate`.
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
use serde_json::{Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::replace::{Replaced, count};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of BitFit.
    #[derive(Eq)]
    pub struct BitFitConfig {
        /// Biases to train: all, or some of query, key, value, intermediate, output,
        /// attention_layernorm, output_layernorm; query-intermediate.
        bitfit_components: Vec<Component> = vec![Component::All], as Texts, unset "all";
    }
}

/// A kind of biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Every bias.
    All,
    /// Of queries.
    Query,
    /// Of keys.
    Key,
    /// Of values.
    Value,
    /// Of the layers into the feed-forward.
    Intermediate,
    /// Of the output projections of attention and feed-forward.
    Output,
    /// Of the norm of self-attention.
    AttentionLayernorm,
    /// Of both norms of a layer.
    OutputLayernorm,
    /// Of queries and of the layers into the feed-forward.
    #[serde(rename = "query-intermediate")]
    QueryIntermediate,
}

impl Component {
    /// The linear layers whose biases these are.
    fn roles(self) -> &'static [Role] {
        match self {
            Self::Query => &[Role::Query],
            Self::Key => &[Role::Key],
            Self::Value => &[Role::Value],
            Self::Intermediate => &[Role::FeedForwardIn, Role::FeedForwardGate],
            Self::Output => &[Role::AttentionOutput, Role::FeedForwardOut],
            Self::QueryIntermediate => &[Role::Query, Role::FeedForwardIn, Role::FeedForwardGate],
            Self::All | Self::AttentionLayernorm | Self::OutputLayernorm => &[],
        }
    }

    /// The names of its biases in this base.
    fn biases(self, base: &Base) -> Vec<String> {
        let names = base.tensors().keys();
        let norms = base.layer_names().iter();
        let norms = norms.flat_map(|(path, names)| match self {
            Self::AttentionLayernorm => vec![format!("{path}.{}.bias", names.attention_norm)],
            Self::OutputLayernorm => [names.attention_norm, names.feed_forward_norm]
                .map(|norm| format!("{path}.{norm}.bias"))
                .to_vec(),
            _ => Vec::new(),
        });
        let linears = base.linears().iter();
        let linears = linears.filter(|linear| self.roles().contains(&linear.site.role));
        let linears = linears.map(|linear| format!("{}.bias", linear.site.path));
        match self {
            Self::All => names
                .filter(|name| name.ends_with(".bias"))
                .cloned()
                .collect(),
            _ => norms.chain(linears).collect(),
        }
    }
}

impl BitFitConfig {
    fn chooses(&self, base: &Base) -> impl Fn(&str) -> bool + use<> {
        let components = self.bitfit_components.iter();
        let mut chosen: Vec<String> = components.flat_map(|it| it.biases(base)).collect();
        let poolers = base.linears().iter();
        let poolers = poolers.filter(|linear| linear.site.role == Role::Pooler);
        chosen.extend(poolers.map(|linear| format!("{}.bias", linear.site.path)));
        move |name| chosen.iter().any(|bias| bias == name)
    }
}

impl MethodConfig for BitFitConfig {
    const NAME: &'static str = "bitfit";
    const PEFT_TYPE: &'static str = "BITFIT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "the biases of the base: all, or those of queries and intermediate layers";
    const PAPER: &'static str = "Ben Zaken et al. 2022, arXiv 2106.10199";
    const CLAIMS: Option<Claims> = Some(Claims::survey("none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "bitfit_components": ["output", "output_layernorm"] }),
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
        let has_any = |component: &Component| {
            let biases = component.biases(base);
            biases.iter().any(|name| base.tensor(name).is_some())
        };
        if let Some(lacking) = self.bitfit_components.iter().find(|it| !has_any(it)) {
            let called = match lacking {
                Component::All => String::new(),
                other => format!(" that are called {} here", json!(other)),
            };
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: format!("it has no biases{called}; LoRA or (IA)^3 train as few values"),
            });
        }
        if self.bitfit_components.is_empty() {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "bitfit_components",
                value: "[]".to_owned(),
                expected: "it must name a component, such as all".to_owned(),
            });
        }
        Ok(count(base, self.chooses(base)))
    }

    fn resolved(&self, _base: &Base) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, module};

    /// Two layers of hidden size 8 with 12 intermediate values.
    #[test]
    fn components_choose_the_biases_of_their_roles() {
        let model = bert();
        for (components, each) in [
            (json!(["query"]), 8),
            (json!(["key", "value"]), 16),
            (json!("intermediate"), 12),
            (json!(["output"]), 16),
            (json!(["attention_layernorm"]), 8),
            (json!(["attention_layernorm", "output_layernorm"]), 16),
            (json!("query-intermediate"), 20),
        ] {
            let settings = json!({ "bitfit_components": components });
            let module = module(&model, "bitfit", settings);
            // The pooler's is added.
            assert_eq!(module.parameters().count(), 2 * each + 8, "{components}");
        }
    }

    /// Section 4.2's subset, with the pooler's bias that the code adds.
    #[test]
    fn the_published_subset_on_bert_base() {
        let subset = json!({ "bitfit_components": ["query", "intermediate"] });
        assert_eq!(bert_base_count("bitfit", subset, 768), 46_080 + 768);
    }
}
