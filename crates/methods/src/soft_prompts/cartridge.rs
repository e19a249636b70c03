//! Cartridge: a prefix that stands for a text, trained as a cache of its keys and values.
//!
//! Eyuboglu, Ehrlich, Arora, Guha, Zinsley, Liu, Tennien, Rudra, Zou, Mirhoseini, Ré, "Cartridges:
//! Lightweight and General-Purpose Long Context Representations via Self-Study", 2025, arXiv
//! 2506.06266.
//!
//! The computation is that of [`prefix_tuning`](crate::soft_prompts::prefix_tuning) without a
//! network: `[P_K; K]` and `[P_V; V]` with `P: [p, 2 L kv]`. The first `num_frozen_tokens` of its
//! rows stay as they start: models attend to the first token from everywhere, and training is
//! unstable when it moves (section 3.2 of the paper). As in HF PEFT the start is normal with
//! standard deviation one, or, which the paper recommends, the keys and values that the base
//! computes for the first `p` tokens of a text, with which the model is at first as if it had read
//! them.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 L (p - f) kv`, with `f` frozen tokens |
//! | changes | `2 L p kv` |
//! | file | `prompt_embeddings` `[p, 2 L kv]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::prefix::{Layout, Prefixes, Reach, TextStart, kv_width};
use crate::parts::virtual_tokens::{self, KEY};

crate::settings! {
    /// The settings of Cartridge, under HF PEFT's names.
    pub struct CartridgeConfig {
        /// Number of virtual tokens.
        num_virtual_tokens: usize = 20, in Size;
        /// How many of them, the first ones, stay as they start.
        num_frozen_tokens: usize = 1;

        ..text: TextStart = TextStart::default();
    }
}

impl CartridgeConfig {
    fn layout(&self, base: &Base) -> Result<Layout, MethodError> {
        virtual_tokens::check(Self::NAME, self.num_virtual_tokens, base)?;
        let one_stack = base.dimensions.encoder_layers == 0;
        let layout = Layout::new(base, Reach::default(), None).filter(|_| one_stack);
        layout.ok_or_else(|| MethodError::NotApplicable {
            method: Self::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason: "it is a cache of keys and values of one stack; prefix-tuning acts on two"
                .to_owned(),
        })
    }

    /// Shape of the table, and how many of its rows are trained.
    fn shape(&self, base: &Base) -> Result<([usize; 2], usize), MethodError> {
        let size = 2 * self.layout(base)?.pairs * kv_width(base);
        let shape = [self.num_virtual_tokens, size];
        match self.num_virtual_tokens.checked_sub(self.num_frozen_tokens) {
            Some(trained) => Ok((shape, trained)),
            None => Err(self.wrong_frozen("it must be at most")),
        }
    }

    fn wrong_frozen(&self, relation: &str) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key: "num_frozen_tokens",
            value: self.num_frozen_tokens.to_string(),
            expected: format!(
                "{relation} `num_virtual_tokens`, {}",
                self.num_virtual_tokens
            ),
        }
    }
}

impl MethodConfig for CartridgeConfig {
    const NAME: &'static str = "cartridge";
    const PEFT_TYPE: &'static str = "CARTRIDGE";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a trained cache of keys and values that stands for a text";
    const PAPER: &'static str = "Eyuboglu et al. 2025, arXiv 2506.06266";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = &[
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "token_dim",
    ];
    const OWN: &'static [&'static str] = &["prefix_init_text"];

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "num_virtual_tokens": 4, "prefix_init_token_ids": [3, 1, 4, 1, 5, 9] }),
            json!({ "num_virtual_tokens": 3, "num_frozen_tokens": 0 }),
        ]
    }

    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        self.text.texts()
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>) {
        self.text.set_tokens(tokens);
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        if self.shape(base)?.1 == 0 {
            return Err(self.wrong_frozen("nothing is trained unless it is less than"));
        }
        self.text.check(Self::NAME, self.num_virtual_tokens, base)
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (shape @ [length, size], trained) = self.shape(base)?;
        let normal = Init::Normal { std: 1.0 };
        let frozen = length - trained;
        let mut pieces = Vec::new();
        if frozen > 0 {
            pieces.push(parameters.constant("frozen", &[frozen, size], normal.clone()));
        }
        if trained > 0 {
            pieces.push(parameters.declare(KEY, &[trained, size], normal));
        }
        let table = match &pieces[..] {
            [whole] => whole.clone(),
            pieces => {
                let pieces = pieces.to_vec();
                parameters.derived("cache", &shape, move || {
                    Tensor::cat(pieces.iter().map(|piece| piece.flat()).collect(), 0)
                })
            }
        };
        Ok(Box::new(Prefixes {
            method: Self::NAME,
            table,
            pieces,
            length,
            layout: self.layout(base)?,
            encoder_layers: 0,
            kv_size: kv_width(base),
            dropout: 0.0,
            start: self.text.prefix_init_token_ids.clone(),
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let ([_, size], trained) = self.shape(base)?;
        Ok(trained * size)
    }

    fn resolved(&self, _base: &Base) -> Self {
        self.stored()
    }

    /// The same without the text that only a start needs.
    fn stored(&self) -> Self {
        Self {
            text: TextStart::default(),
            ..self.clone()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        let heads = base.dimensions.kv_heads;
        let mut all = virtual_tokens::computed(base, heads, kv_width(base));
        all.insert("num_transformer_submodules".to_owned(), 1.into());
        all
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use crate::parts::virtual_tokens::KEY;
    use crate::small_bert::{bert, module, values};
    use crate::{MethodError, by_name};

    #[test]
    fn frozen_rows_are_part_of_the_file_and_get_no_gradient() {
        let module = module(&bert(), "cartridge", json!({ "num_virtual_tokens": 5 }));
        let trained: Vec<_> = module.parameters().trained().collect();
        assert_eq!(trained.len(), 1);
        let size = trained[0].shape()[1];
        assert_eq!(trained[0].shape(), [4, size]);
        let stored = module.stored();
        assert_eq!((stored[0].key.as_str(), stored.len()), (KEY, 1));
        assert_eq!(stored[0].shape, [5, size]);
        assert_eq!(values(&module, "cache")[size..], values(&module, KEY));
    }

    #[test]
    fn more_frozen_tokens_than_there_are_is_an_error_that_names_the_key() {
        let model = bert();
        let error = |frozen: usize| -> MethodError {
            let settings = json!({ "num_virtual_tokens": 3, "num_frozen_tokens": frozen });
            let settings: Map<String, Value> = settings.as_object().unwrap().clone();
            let config = by_name("cartridge").unwrap().configure(settings).unwrap();
            config.check_start(model.base()).unwrap_err()
        };
        assert!(error(4).to_string().contains("`num_frozen_tokens` is 4"));
        assert!(error(3).to_string().contains("nothing is trained"));
    }
}
