//! Cross-attention tuning: of an encoder-decoder only the attention of the decoder over the
//! encoder's output is trained, with or without the embeddings.
//!
//! Gheini, Ren, May, "Cross-Attention is All You Need: Adapting Pretrained Transformers for Machine
//! Translation", EMNLP 2021, arXiv 2104.08771; code MGheini/xattn-transfer-for-mt, which selects
//! parameters by the substring `encoder_attn`: the projections of queries, keys, values and
//! outputs, and the norm.
//!
//! The paper moves a model to another language, whose embeddings start anew and are trained too.
//! `cross_embeddings` = `trained` trains all that stands in front of the layers: words, positions,
//! their norms. With `new` the table of words starts at random, normal with the standard deviation
//! of the base's own table, for a vocabulary that the base never saw. The paper's two sides, source
//! and target, are one here: T5 and BART have one table for both.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | on BART `4 d² + 6 d` for each layer of the decoder, on T5 `4 d · kv + d`; the embeddings |
//! | file | each tensor under its own name |
//! | merges | tensors are put in place |

use std::sync::Arc;

use epiphyte_models::adapter::name_id;
use epiphyte_models::{Base, BaseTensor, Depth};
use epiphyte_ops::random;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::Init;
use crate::parts::replace::{Replaced, count};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of cross-attention tuning.
    #[derive(Copy, Eq)]
    pub struct CrossAttentionConfig {
        /// The embeddings: frozen, trained, or new (trained, words from random values).
        cross_embeddings: Embeddings = Embeddings::Frozen, as Text;
    }
}

/// What becomes of the embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Embeddings {
    /// They stay as they are.
    Frozen,
    /// They are trained.
    Trained,
    /// They are trained, the table of words from random values.
    New,
}

impl CrossAttentionConfig {
    fn chooses(self, base: &Base) -> impl Fn(&str) -> bool + '_ {
        let modules = base.layer_names().iter().filter_map(|(path, names)| {
            let (attention, norm) = names.cross_attention?;
            let linears = [
                attention.query,
                attention.key,
                attention.value,
                attention.output,
            ];
            let all = linears.into_iter().chain([norm]);
            Some(
                all.map(|name| format!("{path}.{name}."))
                    .collect::<Vec<_>>(),
            )
        });
        let modules: Vec<String> = modules.flatten().collect();
        let embeddings = self.cross_embeddings != Embeddings::Frozen;
        move |name| {
            let of_embeddings =
                || base.tensor(name).map(BaseTensor::depth) == Some(Depth::Embeddings);
            modules
                .iter()
                .any(|module| name.starts_with(module.as_str()))
                || (embeddings && of_embeddings())
        }
    }
}

/// Normal values with the standard deviation of the table in the base.
fn redrawn(name: &str, table: &BaseTensor, seed: u64) -> Init {
    let (key, table) = (seed ^ name_id(name), table.clone());
    Init::Computed(Arc::new(move || {
        let values = table.to_vec();
        let count = values.len().max(1) as f64;
        let mean = values.iter().map(|&it| f64::from(it)).sum::<f64>() / count;
        let squares = values.iter().map(|&it| (f64::from(it) - mean).powi(2));
        random::normal(key, values.len(), (squares.sum::<f64>() / count).sqrt())
    }))
}

impl MethodConfig for CrossAttentionConfig {
    const NAME: &'static str = "cross-attention";
    const PEFT_TYPE: &'static str = "CROSS_ATTENTION";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "the attention of a decoder over its encoder's output";
    const PAPER: &'static str = "Gheini et al. 2021, arXiv 2104.08771";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-4;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.cross_embeddings != Embeddings::New
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "cross_embeddings": "trained" }),
            json!({ "cross_embeddings": "new" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.count(base)?;
        let (seed, new) = (parameters.seed(), self.cross_embeddings == Embeddings::New);
        let init = |name: &str, tensor: &BaseTensor| match new && name == base.word_embeddings {
            true => redrawn(name, tensor, seed),
            false => Init::Base(tensor.clone()),
        };
        let replaced = Replaced::starting_at(base, parameters, self.chooses(base), init);
        Ok(Box::new(replaced))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        if base.dimensions.encoder_layers == 0 {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "it has no encoder whose output a decoder attends to; freeze or LoRA on \
                         the attention's layers train as much"
                    .to_owned(),
            });
        }
        Ok(count(base, self.chooses(base)))
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, Model, ModelConfig, random_model};
    use serde_json::{Value, json};

    use crate::{AdapterModule, by_name};

    fn model(config: Value) -> Model {
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        let device = Device::default();
        let head = HeadKind::LanguageModel;
        random_model(&config, head, &device, Default::default(), 0).unwrap()
    }

    fn bart(size: usize, layers: usize) -> Model {
        model(json!({
            "model_type": "bart", "vocab_size": 12, "d_model": size, "encoder_layers": 1,
            "decoder_layers": layers, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16,
        }))
    }

    fn module(model: &Model, embeddings: &str) -> AdapterModule {
        let settings = json!({ "cross_embeddings": embeddings });
        let config = by_name("cross-attention").unwrap();
        let config = config.configure(settings.as_object().unwrap().clone());
        AdapterModule::new(config.unwrap(), model.base(), &Device::default(), 0).unwrap()
    }

    /// One layer of the decoder of t5-base, bart-base and bart-large; the reference counts T5's
    /// without its norm.
    #[test]
    fn counts_are_the_published_ones() {
        let t5 = model(json!({
            "model_type": "t5", "vocab_size": 12, "d_model": 768, "d_kv": 64, "num_heads": 12,
            "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "is_encoder_decoder": true,
        }));
        let count = |model: &Model| module(model, "frozen").parameters().count();
        assert_eq!(12 * (count(&t5) - 768), 28_311_552);
        assert_eq!(6 * count(&bart(768, 1)), 6 * (4 * 768 * 768 + 6 * 768));
        assert_eq!(6 * count(&bart(768, 1)), 14_183_424);
        assert_eq!(12 * count(&bart(1024, 1)), 50_405_376);
    }

    #[test]
    fn exactly_the_cross_attention_is_trained() {
        let model = bart(4, 2);
        let keys = |embeddings: &str| -> Vec<String> {
            let module = module(&model, embeddings);
            let trained = module.parameters().trained();
            trained.map(|param| param.key().to_owned()).collect()
        };
        let frozen = keys("frozen");
        let tensors = model.base().tensors().keys();
        let expected: Vec<&String> = tensors.filter(|it| it.contains("encoder_attn")).collect();
        assert_eq!(frozen.iter().collect::<Vec<_>>(), expected);
        assert_eq!(frozen.len(), 2 * 10);
        let more = keys("trained");
        let added = more.iter().filter(|key| !frozen.contains(key));
        let added: Vec<&str> = added.map(String::as_str).collect();
        assert!(added.contains(&"model.shared.weight"), "{added:?}");
        assert!(
            added
                .iter()
                .all(|key| key.contains("embed") || key.contains("shared"))
        );
    }

    #[test]
    fn new_words_are_as_wide_as_the_old_ones_and_differ() {
        let model = bart(64, 1);
        let table = |embeddings: &str| {
            let module = module(&model, embeddings);
            let table = module.parameters().get("model.shared.weight");
            table.unwrap().to_vec()
        };
        let (old, new) = (table("trained"), table("new"));
        assert_ne!(old, new);
        let deviation = |values: &[f32]| {
            let squares = values.iter().map(|value| value * value);
            (squares.sum::<f32>() / values.len() as f32).sqrt()
        };
        let ratio = deviation(&new) / deviation(&old);
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}
