//! Trainable tokens: the embeddings of chosen tokens, and nothing else.
//!
//! HF PEFT's `TRAINABLE_TOKENS`: what a tokenizer's new or repurposed tokens need.
//!
//! `E[token_indices] = D`, with `D: [tokens, hidden]`, which starts as those rows of the table, so
//! nothing changes at first. A language model's head that is tied to the table follows.
//!
//! | | |
//! | --- | --- |
//! | trains | `tokens · hidden` |
//! | changes | the same |
//! | file | `<table>.trainable_tokens_delta` `[tokens, hidden]`, in the order of `token_indices`; the same for modules that are tied to the table |
//! | merges | the rows of the table |

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::adapter::Role;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, StandIn};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    KeyStyle, Method, MethodConfig, Stored, StoredTensors, load_stored,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::Modules;

crate::settings! {
    /// The settings of trainable tokens, under HF PEFT's names.
    pub struct TrainableTokensConfig {
        /// Numbers of the tokens whose embeddings are trained.
        token_indices: Vec<usize> = Vec::new(), unset "none: they must be given";
        /// Name of the table of word embeddings.
        target_modules: Option<Modules> = None, unset "the model's word embeddings";
    }
}

impl TrainableTokensConfig {
    /// Checks that the tokens are rows of the table, and the target is the table.
    fn check_tokens(&self, base: &Base) -> Result<(), MethodError> {
        let rows = base.word_embedding_table().shape()[0];
        let path = table_path(base);
        let mut seen = BTreeSet::new();
        let wrong = self
            .token_indices
            .iter()
            .find(|index| **index >= rows || !seen.insert(**index));
        if let Some(index) = wrong {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "token_indices",
                value: index.to_string(),
                expected: format!("`{path}` has {rows} rows, and each may be named once"),
            });
        }
        if self.token_indices.is_empty() {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "token_indices",
                value: "empty".to_owned(),
                expected: "the numbers of the tokens to train must be given".to_owned(),
            });
        }
        let Some(modules) = &self.target_modules else {
            return Ok(());
        };
        let matches = modules
            .matches(path)
            .map_err(|error| MethodError::Configuration {
                method: Self::NAME,
                reason: format!("`target_modules` cannot be used: {error}"),
            })?;
        match matches {
            true => Ok(()),
            false => Err(MethodError::Value {
                method: Self::NAME,
                key: "target_modules",
                value: modules.to_string(),
                expected: format!("only the word embeddings, `{path}`, can be chosen"),
            }),
        }
    }
}

/// The path of the table of word embeddings.
fn table_path(base: &Base) -> &str {
    let name = &base.word_embeddings;
    name.strip_suffix(".weight").unwrap_or(name)
}

/// The paths of heads that have the table as their weight.
fn tied_heads(base: &Base) -> Vec<&str> {
    let linears = base.linears().iter();
    let tied = linears.filter(|linear| {
        let weight = format!("{}.weight", linear.site.path);
        linear.site.role == Role::Head && base.tensor(&weight).is_none()
    });
    tied.map(|linear| &*linear.site.path).collect()
}

/// Where files of HF PEFT hold the rows again: under tied heads, and with a tied head under the two
/// stacks that share a table.
fn copies(base: &Base) -> Vec<String> {
    let heads = tied_heads(base);
    let stacks = table_path(base)
        .strip_suffix("shared")
        .filter(|_| !heads.is_empty());
    let stacks = stacks.into_iter().flat_map(|parent| {
        ["encoder", "decoder"].map(|stack| format!("{parent}{stack}.embed_tokens"))
    });
    let paths = heads.into_iter().map(str::to_owned).chain(stacks);
    paths
        .map(|path| format!("{path}.trainable_tokens_delta"))
        .collect()
}

impl MethodConfig for TrainableTokensConfig {
    const NAME: &'static str = "trainable-tokens";
    const PEFT_TYPE: &'static str = "TRAINABLE_TOKENS";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "the embeddings of chosen tokens";
    const PAPER: &'static str = "HF PEFT";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;
    const LISTS_MODULES: bool = false;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![json!({ "token_indices": [7, 3, 25] })]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.check_tokens(base)?;
        let table = base.word_embedding_table().clone();
        let [rows, columns] = table.shape();
        let ids: Vec<u32> = self
            .token_indices
            .iter()
            .map(|&index| index as u32)
            .collect();
        let (path, count) = (table_path(base), ids.len());
        let initial = {
            let (table, ids) = (table.clone(), ids.clone());
            Init::Computed(Arc::new(move || {
                let rows = table.gather(&ids).try_into_vec_as::<f32>();
                rows.expect("a base is f32 and on a device that can be read")
            }))
        };
        let key = format!("{path}.trainable_tokens_delta");
        let delta = parameters.declare(key, &[count, columns], initial);
        let places: HashMap<u32, usize> = ids.into_iter().zip(0..).collect();
        let whole = (!tied_heads(base).is_empty()).then(|| {
            let (delta, places) = (delta.clone(), places.clone());
            parameters.derived(format!("{path}.trained"), &[rows, columns], move || {
                replaced(table.to_tensor(), &delta, &places, 0..rows as u32)
                    .reshape([rows * columns])
            })
        });
        Ok(Box::new(TrainableTokens {
            table: base.word_embeddings.clone(),
            places,
            delta,
            whole,
            copies: copies(base),
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.check_tokens(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.check_tokens(base)?;
        Ok(self.token_indices.len() * base.embedding_size())
    }

    fn resolved(&self, base: &Base) -> Self {
        let name = table_path(base).rsplit('.').next().unwrap_or_default();
        let target_modules = self.target_modules.clone();
        Self {
            target_modules: target_modules.or(Some(Modules::endings(&[name]))),
            ..self.clone()
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("init_weights".to_owned(), json!(true))])
    }
}

/// Rows of a table, those of these ids, with the trained ones in their places.
fn replaced(
    rows: Tensor<2>,
    delta: &Param,
    places: &HashMap<u32, usize>,
    ids: impl ExactSizeIterator<Item = u32>,
) -> Tensor<2> {
    let count = ids.len();
    let found = ids.zip(0..).map(|(id, own)| match places.get(&id) {
        Some(place) => (count + place) as i64,
        None => own,
    });
    let found: Vec<i64> = found.collect();
    let found = Tensor::<1, Int>::from_data(TensorData::new(found, [count]), &rows.device());
    Tensor::cat(vec![rows, delta.get()], 0).select(0, found)
}

/// The trained rows of the table of word embeddings.
#[derive(Debug)]
struct TrainableTokens {
    /// The table's name.
    table: String,
    /// Which row of `delta` belongs to a token.
    places: HashMap<u32, usize>,
    delta: Param,
    /// The whole table with the trained rows, where a head reads it too.
    whole: Option<Param>,
    /// Other keys of the file that hold `delta`.
    copies: Vec<String>,
}

impl Adapter for TrainableTokens {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        let whole = self.whole.as_ref().filter(|_| name == self.table)?;
        Some(StandIn::Tensor(whole.flat()))
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let is_there = |id: &u32| self.places.contains_key(id);
        if table != self.table || self.whole.is_some() || !ids.iter().any(is_there) {
            return rows;
        }
        replaced(rows, &self.delta, &self.places, ids.iter().copied())
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Parameter(name) if name == self.table && self.whole.is_some())
    }
}

impl Method for TrainableTokens {
    /// A batch may be without any of the tokens.
    fn may_lack_gradient(&self, _param: &Param) -> bool {
        true
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        let tensor = base.tensor(name).filter(|_| name == self.table);
        Ok(tensor.and_then(|tensor| {
            let table = tensor.to_matrix()?;
            let ids = 0..table.dims()[0] as u32;
            Some(tensor.flatten(replaced(table, &self.delta, &self.places, ids).inner()))
        }))
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let keys = self.copies.iter().map(String::as_str);
        let keys = keys.chain([self.delta.key()]);
        keys.map(|key| Stored::f32(key, self.delta.shape(), self.delta.to_vec()))
            .collect()
    }

    /// Takes the rows, and the copies that are there, which are the same.
    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        load_stored(parameters, file)?;
        for key in &self.copies {
            if file.shape(key).is_some() {
                file.take(key, self.delta.shape())?;
            }
        }
        Ok(())
    }

    fn changed(&self) -> usize {
        self.delta.count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::MethodError;
    use crate::small_bert::{bert, distance, logits, module, set_random};

    #[test]
    fn texts_without_the_tokens_stay_as_they_are() {
        let model = bert();
        let key = "bert.embeddings.word_embeddings.trainable_tokens_delta";
        let plain = logits(&model, &epiphyte_models::Identity);
        for (tokens, moves) in [([7, 0], false), ([7, 4], true)] {
            let module = module(
                &model,
                "trainable-tokens",
                json!({ "token_indices": tokens }),
            );
            set_random(&module, key);
            let moved = distance(&plain, &logits(&model, &module));
            assert_eq!(moved > 0.0, moves, "{moved}");
        }
    }

    #[test]
    fn tokens_that_cannot_be_trained_are_named() {
        let model = bert();
        for tokens in [json!([8]), json!([3, 3]), json!([])] {
            let settings = json!({ "token_indices": tokens })
                .as_object()
                .unwrap()
                .clone();
            let config = crate::by_name("trainable-tokens")
                .unwrap()
                .configure(settings);
            let error = config.unwrap().check_start(model.base()).unwrap_err();
            assert!(
                matches!(
                    error,
                    MethodError::Value {
                        key: "token_indices",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
