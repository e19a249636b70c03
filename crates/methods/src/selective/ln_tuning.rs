//! LN tuning: the scales and biases of the norms are trained.
//!
//! Zhao, Tu, Wei, Mei, Xie, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM
//! Finetuning", ICLR 2024, arXiv 2312.11420; the file is HF PEFT's, which keeps a copy of each
//! module. By default all norms are trained; HF PEFT's default for some families is a part of them.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | each tensor of the target modules, for the norms of BERT `(2 L + 1) 2 d` |
//! | file | `<path>.ln_tuning_layers.weight`, and `.bias` where the module has one |
//! | merges | tensors are put in place |

use epiphyte_models::{Base, BaseTensor};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::targets::{Modules, TargetModules};
use crate::parts::replace::Replaced;
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of LN tuning, under HF PEFT's names.
    pub struct LnTuningConfig {
        ..targets: TargetModules = TargetModules::default();
    }
}

impl LnTuningConfig {
    fn modules(&self, base: &Base) -> Modules {
        let given = self.targets.target_modules.clone();
        given.unwrap_or_else(|| Modules::Endings(norms(base)))
    }

    /// The names of the tensors to train.
    fn names<'b>(&self, base: &'b Base) -> Result<Vec<&'b str>, MethodError> {
        let modules = self.modules(base);
        let mut names = Vec::new();
        for name in base.tensors().keys().filter(|name| !base.is_of_head(name)) {
            let path = module(name);
            let excluded = self.targets.exclude_modules.as_ref();
            let excluded = excluded.map_or(Ok(false), |them| matches(them, path))?;
            if !excluded && matches(&modules, path)? {
                names.push(name.as_str());
            }
        }
        match names.is_empty() {
            false => Ok(names),
            true => Err(MethodError::NoTarget {
                method: Self::NAME,
                targets: modules.to_string(),
                model_type: base.dimensions.model_type.clone(),
                available: norms(base).join(", "),
            }),
        }
    }
}

/// The path of a tensor's module.
fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(path, _)| path)
}

fn matches(modules: &Modules, path: &str) -> Result<bool, MethodError> {
    modules
        .matches(path)
        .map_err(|error| MethodError::Configuration {
            method: LnTuningConfig::NAME,
            reason: format!("a module pattern cannot be used: {error}"),
        })
}

/// The last components of the paths of all norms, sorted.
fn norms(base: &Base) -> Vec<String> {
    let tensors = base.tensors().iter();
    let tensors = tensors.filter(|(name, tensor)| tensor.is_norm() && !base.is_of_head(name));
    let ends = tensors.map(|(name, _)| {
        let path = module(name);
        path.rsplit('.').next().unwrap_or(path).to_owned()
    });
    let mut ends: Vec<String> = ends.collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

impl MethodConfig for LnTuningConfig {
    const NAME: &'static str = "ln-tuning";
    const PEFT_TYPE: &'static str = "LN_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "the scales and biases of the norms";
    const PAPER: &'static str = "Zhao et al. 2024, arXiv 2312.11420";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
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
        let key = |name: &str| {
            let path = module(name);
            format!("{path}.ln_tuning_layers{}", &name[path.len()..])
        };
        let names = self.names(base)?.into_iter();
        let names = names.map(|name| (name, key(name))).collect();
        Ok(Box::new(Replaced::with_keys(names, base, parameters)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let names = self.names(base)?;
        let Some(Modules::Endings(endings)) = &self.targets.target_modules else {
            return Ok(());
        };
        let mut unmatched = Vec::new();
        for ending in endings {
            let one = Modules::Endings(vec![ending.clone()]);
            let mut matched = false;
            for name in &names {
                matched = matched || matches(&one, module(name))?;
            }
            if !matched {
                unmatched.push(ending.clone());
            }
        }
        match unmatched.is_empty() {
            true => Ok(()),
            false => Err(MethodError::Unmatched {
                method: Self::NAME,
                key: "target_modules",
                unmatched,
                model_type: base.dimensions.model_type.clone(),
                available: norms(base),
            }),
        }
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let names = self.names(base)?;
        let tensors = names.iter().filter_map(|name| base.tensor(name));
        Ok(tensors.map(BaseTensor::count).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.modules(base)),
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), json!(null))])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::by_name;
    use crate::small_bert::{bert, bert_base_count, module};

    /// Of bert-base 38,400 values: two norms a layer and that of the embeddings.
    #[test]
    fn counts_are_those_of_the_norms() {
        assert_eq!(bert_base_count("ln-tuning", json!({}), 2 * 768), 38_400);
        let all = module(&bert(), "ln-tuning", json!({}));
        let keys: Vec<&str> = all.parameters().trained().map(|it| it.key()).collect();
        assert!(
            keys.contains(&"bert.embeddings.LayerNorm.ln_tuning_layers.bias"),
            "{keys:?}"
        );
        assert_eq!(keys.len(), 2 * 5);
    }

    #[test]
    fn misspelt_norms_are_named() {
        let model = bert();
        let settings = json!({ "target_modules": ["LayerNorm", "layernorm"] });
        let settings = settings.as_object().unwrap().clone();
        let config = by_name("ln-tuning").unwrap().configure(settings).unwrap();
        let error = config.check_start(model.base()).unwrap_err().to_string();
        assert!(
            error.contains("has `layernorm`") && error.contains("has LayerNorm"),
            "{error}"
        );
    }
}
