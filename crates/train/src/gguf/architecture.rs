//! llama.cpp's architectures: the names of their tensors, and what they read of a configuration.

use epiphyte_io::gguf::GgufValue;
use epiphyte_models::families::decoder::DecoderConfig;
use epiphyte_models::rope::RopeScaling;
use epiphyte_ops::Activation;

use super::refused;
use crate::TrainError;

/// A model as llama.cpp sees it.
pub(super) struct Architecture<'a> {
    /// llama.cpp's name.
    pub(super) name: &'static str,
    config: &'a DecoderConfig,
}

/// The two names of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) hugging_face: String,
    pub(super) gguf: String,
    /// Whether not every model has it.
    pub(super) optional: bool,
}

/// Modules of a layer, and llama.cpp's names.
const MODULES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// What differs where norms are before and after each block.
const AROUND: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

impl<'a> Architecture<'a> {
    /// That of a model, if llama.cpp computes the same.
    ///
    /// # Errors
    /// [`TrainError::NotGguf`], which says what it does otherwise.
    pub(super) fn of(config: &'a DecoderConfig) -> Result<Self, TrainError> {
        let model_type = config.model_type();
        let name = match model_type {
            "llama" | "mistral" => "llama",
            "qwen2" => "qwen2",
            "qwen3" => "qwen3",
            "gemma" => "gemma",
            "gemma2" => "gemma2",
            "gemma3_text" => "gemma3",
            other => {
                let problem = "is none of the Llama, Qwen and Gemma families";
                return Err(refused(&format!("`{other}` {problem}")));
            }
        };
        let this = Self { name, config };
        this.check()?;
        Ok(this)
    }

    fn is_gemma(&self) -> bool {
        self.name.starts_with("gemma")
    }

    fn check(&self) -> Result<(), TrainError> {
        let config = self.config;
        let activation = match self.is_gemma() {
            true => Activation::GeluTanh,
            false => Activation::Silu,
        };
        let has_bias = config.qkv_bias || config.attention_output_bias || config.mlp_bias;
        let root = |size: f64| size.powf(-0.5);
        let (heads, layers) = (config.num_attention_heads as f64, config.num_hidden_layers);
        // What llama.cpp takes for Gemma's models of 27 billion parameters, which it knows by
        // their layers.
        let scale = match (self.name, layers) {
            ("gemma2", 46) | ("gemma3", 62) => root(config.hidden_size as f64 / heads),
            _ => root(config.head_dim as f64),
        };
        let rope = config.rope.first().map(|rope| &rope.scaling);
        let problem = if config.hidden_act != activation {
            format!("`hidden_act` {}", config.hidden_act.name())
        } else if has_bias && !matches!(self.name, "llama" | "qwen2") {
            "biases of linear layers".to_owned()
        } else if (config.attention_scale - scale).abs() > 1e-6 * scale {
            "this scale of the attention's scores (`query_pre_attn_scalar`)".to_owned()
        } else if self.is_gemma() && !config.tie_word_embeddings {
            "a head of its own (`tie_word_embeddings` false)".to_owned()
        } else if !matches!(
            rope,
            Some(RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. })
        ) {
            "this scaling of rotary positions".to_owned()
        } else if !self.windows_fit() {
            "windows in these layers (`sliding_window`)".to_owned()
        } else {
            return Ok(());
        };
        let name = self.name;
        Err(refused(&format!(
            "llama.cpp's `{name}` does not have {problem}"
        )))
    }

    /// Whether the layers with a window are those that llama.cpp expects. Llama and Qwen have none
    /// there, so that texts that are longer than a window are read otherwise.
    fn windows_fit(&self) -> bool {
        let pattern = match self.name {
            "gemma2" => 2,
            "gemma3" => 6,
            _ => {
                let window = self.config.sliding_windows.iter().flatten().min();
                if let Some(window) = window {
                    tracing::warn!(
                        "llama.cpp knows no windows of this family: texts of more than {window} \
                         tokens are read otherwise there"
                    );
                }
                return true;
            }
        };
        let layers = 0..self.config.num_hidden_layers;
        let slides = |layer: usize| self.config.window_of_layer(layer).is_some();
        layers
            .into_iter()
            .all(|layer| slides(layer) == ((layer + 1) % pattern != 0))
    }

    /// The tensors that a model may have.
    pub(super) fn names(&self) -> Vec<Names> {
        let config = self.config;
        let around = matches!(self.name, "gemma2" | "gemma3");
        let norms = matches!(self.name, "qwen3" | "gemma3");
        let mut modules: Vec<(&str, &str)> = MODULES.to_vec();
        modules.retain(|(module, _)| norms || !module.ends_with("_norm"));
        if around {
            modules.retain(|(module, _)| *module != AROUND[0].0);
            modules.extend(AROUND);
        }
        let names = |hugging_face: String, gguf: String, optional| Names {
            hugging_face,
            gguf,
            optional,
        };
        let mut all = vec![
            names(
                "model.embed_tokens.weight".into(),
                "token_embd.weight".into(),
                false,
            ),
            names(
                "model.norm.weight".into(),
                "output_norm.weight".into(),
                false,
            ),
        ];
        if !config.tie_word_embeddings {
            all.push(names(
                "lm_head.weight".into(),
                "output.weight".into(),
                false,
            ));
        }
        for layer in 0..config.num_hidden_layers {
            for (module, gguf) in &modules {
                for parameter in ["weight", "bias"] {
                    all.push(names(
                        format!("model.layers.{layer}.{module}.{parameter}"),
                        format!("blk.{layer}.{gguf}.{parameter}"),
                        parameter == "bias",
                    ));
                }
            }
        }
        all
    }

    /// The shape that the configuration gives a tensor of [`Architecture::names`].
    pub(super) fn shape(&self, name: &str) -> Vec<usize> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let parts: Vec<&str> = name.rsplit('.').collect();
        let (parameter, module) = (parts[0], parts[1]);
        let [outputs, inputs] = match module {
            "embed_tokens" | "lm_head" => [config.vocab_size, hidden],
            "q_proj" => [queries, hidden],
            "k_proj" | "v_proj" => [keys, hidden],
            "o_proj" => [hidden, queries],
            "gate_proj" | "up_proj" => [inner, hidden],
            "down_proj" => [hidden, inner],
            "q_norm" | "k_norm" => return vec![config.head_dim],
            _ => return vec![hidden],
        };
        match parameter {
            "bias" => vec![outputs],
            _ => vec![outputs, inputs],
        }
    }

    /// The order of the rows of a tensor: row i of the file is row `order[i]`. None if they stay.
    pub(super) fn row_order(&self, name: &str, rows: usize) -> Option<Vec<usize>> {
        let turned = [".q_proj.", ".k_proj."].iter().any(|it| name.contains(it));
        if self.name != "llama" || !turned {
            return None;
        }
        // Of each head, first and second half in turn.
        let size = self.config.head_dim;
        let row = |at: usize| {
            let (head, within) = (at / size, at % size);
            head * size + within % 2 * (size / 2) + within / 2
        };
        Some((0..rows).map(row).collect())
    }

    /// What is added to a tensor's values.
    pub(super) fn norm_offset(&self, name: &str) -> f32 {
        match self.is_gemma() && name.ends_with("norm.weight") {
            true => 1.0,
            false => 0.0,
        }
    }

    /// What llama.cpp divides the frequencies of rotary positions by, where they do not have one
    /// factor (Llama 3.1).
    pub(super) fn rope_factors(&self) -> Option<Vec<f32>> {
        let rope = self.config.rope.first()?;
        if !matches!(rope.scaling, RopeScaling::Llama3 { .. }) {
            return None;
        }
        let mut plain = rope.clone();
        plain.scaling = RopeScaling::Default;
        let length = rope.max_position_embeddings;
        let scaled = rope.inverse_frequencies(length);
        let plain = plain.inverse_frequencies(length);
        Some(
            plain
                .iter()
                .zip(scaled)
                .map(|(plain, scaled)| plain / scaled)
                .collect(),
        )
    }

    /// The metadata of the configuration.
    pub(super) fn metadata(&self) -> Vec<(String, GgufValue)> {
        let config = self.config;
        let mut metadata = Vec::new();
        let mut add = |key: &str, value: GgufValue| {
            metadata.push((format!("{}.{key}", self.name), value));
        };
        let number = |value: usize| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
        for (key, value) in [
            ("vocab_size", config.vocab_size),
            ("context_length", config.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("block_count", config.num_hidden_layers),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("rope.dimension_count", config.head_dim),
        ] {
            add(key, number(value));
        }
        let epsilon = GgufValue::F32(config.norm_eps as f32);
        add("attention.layer_norm_rms_epsilon", epsilon);
        let [first, local] = [0, 1].map(|at| config.rope.get(at));
        if let Some(rope) = first {
            add("rope.freq_base", GgufValue::F32(rope.rope_theta as f32));
            if let RopeScaling::Linear { factor } = rope.scaling {
                add("rope.scaling.type", GgufValue::String("linear".to_owned()));
                add("rope.scaling.factor", GgufValue::F32(factor as f32));
            }
        }
        if let Some(rope) = local {
            add("rope.freq_base_swa", GgufValue::F32(rope.rope_theta as f32));
        }
        let window = config.sliding_windows.iter().flatten().next();
        if let Some(window) = window.filter(|_| self.is_gemma()) {
            add("attention.sliding_window", number(*window));
        }
        for (key, cap) in ["attn_logit_softcapping", "final_logit_softcapping"]
            .into_iter()
            .zip(config.softcaps)
        {
            if let Some(cap) = cap {
                add(key, GgufValue::F32(cap as f32));
            }
        }
        metadata
    }
}
