//! llama.cpp's architectures: how they name tensors and what their metadata says of a
//! configuration, in both directions. Whoever reads and whoever writes a file goes by these tables.

use epiphyte_io::gguf::{GgufFile, GgufValue, keys};
use epiphyte_ops::Activation;
use serde_json::{Map, Value, json};

use crate::ModelError;
use crate::families::decoder::DecoderConfig;
use crate::rope::{RopeScaling, RotaryEmbedding};

/// A model as llama.cpp computes it.
#[derive(Debug)]
pub struct Architecture {
    /// llama.cpp's name.
    pub name: &'static str,
    /// Hugging Face's `model_type`s that are the same to llama.cpp; a file is read as the first.
    model_types: &'static [&'static str],
    /// The activation of the feed-forward, which no file states.
    activation: Activation,
    /// Whether it reads biases of linear layers.
    has_biases: bool,
    /// Whether it turns neighboring dimensions of a head and not its two halves, so that the rows
    /// of queries and keys are in another order.
    turns_neighbors: bool,
    /// Whether the head is always the table of words.
    is_tied: bool,
    /// Of how many layers the last sees all tokens, where the others have a window.
    window_pattern: Option<usize>,
    /// The number of layers of the one size whose scores are divided by the root of the hidden size
    /// over the heads, instead of that of the head's size; where the family states the scale.
    scale_of_layers: Option<usize>,
}

/// What most have in common.
const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama", "mistral"],
    activation: Activation::Silu,
    has_biases: true,
    turns_neighbors: true,
    is_tied: false,
    window_pattern: None,
    scale_of_layers: None,
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_types: &["gemma"],
    activation: Activation::GeluTanh,
    has_biases: false,
    turns_neighbors: false,
    is_tied: true,
    ..LLAMA
};

/// The architectures there are.
static ARCHITECTURES: [Architecture; 6] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        model_types: &["qwen2"],
        turns_neighbors: false,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        model_types: &["qwen3"],
        has_biases: false,
        turns_neighbors: false,
        ..LLAMA
    },
    GEMMA,
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        window_pattern: Some(2),
        scale_of_layers: Some(46),
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        window_pattern: Some(6),
        scale_of_layers: Some(62),
        ..GEMMA
    },
];

/// A size: llama.cpp's key, Hugging Face's, and the value.
type Size = (&'static str, &'static str, fn(&DecoderConfig) -> usize);

/// The sizes of a model.
const SIZES: [Size; 8] = [
    ("vocab_size", "vocab_size", |it| it.vocab_size),
    ("context_length", "max_position_embeddings", |it| {
        it.max_position_embeddings
    }),
    ("embedding_length", "hidden_size", |it| it.hidden_size),
    ("block_count", "num_hidden_layers", |it| {
        it.num_hidden_layers
    }),
    ("feed_forward_length", "intermediate_size", |it| {
        it.intermediate_size
    }),
    ("attention.head_count", "num_attention_heads", |it| {
        it.num_attention_heads
    }),
    ("attention.head_count_kv", "num_key_value_heads", |it| {
        it.num_key_value_heads
    }),
    ("attention.key_length", "head_dim", |it| it.head_dim),
];
/// Sizes of heads that have to be that of [`SIZES`].
const HEAD_SIZES: [&str; 2] = ["attention.value_length", "rope.dimension_count"];

const EPSILON: &str = "attention.layer_norm_rms_epsilon";
const WINDOW: &str = "attention.sliding_window";
const THETA: &str = "rope.freq_base";
/// That of layers with a window.
const LOCAL_THETA: &str = "rope.freq_base_swa";
const SCALING: &str = "rope.scaling.type";
const SCALING_FACTOR: &str = "rope.scaling.factor";
/// Keys of models of other kinds.
const EXPERTS: &str = "expert_count";
const CAUSAL: &str = "attention.causal";
/// What scores and logits are bent by, as Hugging Face names it too.
const SOFTCAPS: [&str; 2] = ["attn_logit_softcapping", "final_logit_softcapping"];
/// The tensor of what frequencies are divided by.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names of the tables and of the last norm.
const WORDS: &str = "token_embd.weight";
const FINAL_NORM: &str = "output_norm.weight";
const HEAD: &str = "output.weight";

/// A tensor under both names, and what differs in its values.
#[derive(Clone, Debug)]
pub struct TensorNames {
    /// Hugging Face's name.
    pub hugging_face: String,
    /// llama.cpp's name.
    pub gguf: String,
    /// The shape by the configuration, outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether not every model has it.
    pub optional: bool,
    /// The order of the rows.
    pub rows: RowOrder,
    /// What llama.cpp's values are more than Hugging Face's.
    pub offset: f32,
}

/// The order of a tensor's rows in llama.cpp's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Hugging Face's.
    Same,
    /// Of each head's rows, the first and the second half in turn.
    HalvesInTurn {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of Hugging Face's tensor that is row `row` of llama.cpp's.
    pub fn in_hugging_face(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::HalvesInTurn { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }

    /// The row of llama.cpp's tensor that is row `row` of Hugging Face's.
    pub fn in_gguf(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::HalvesInTurn { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % (head_dim / 2) * 2 + within / (head_dim / 2)
            }
        }
    }
}

impl Architecture {
    /// The architecture of a configuration's family; none if llama.cpp's is not known here.
    pub fn of_model_type(model_type: &str) -> Option<&'static Self> {
        let mut all = ARCHITECTURES.iter();
        all.find(|it| it.model_types.contains(&model_type))
    }

    /// The architecture that a file names.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`] if it is none of those here; if the file has no name.
    pub(super) fn of_file(file: &GgufFile) -> Result<&'static Self, ModelError> {
        let name = file.required(keys::ARCHITECTURE, file.text(keys::ARCHITECTURE)?)?;
        let known = ARCHITECTURES.iter().find(|it| it.name == name);
        known.ok_or_else(|| ModelError::UnknownArchitecture {
            path: file.path().to_owned(),
            found: name.to_owned(),
            supported: ARCHITECTURES.each_ref().map(|it| it.name).join(", "),
        })
    }

    /// Checks that llama.cpp computes a configuration of this family as it is meant.
    ///
    /// # Errors
    /// What it does otherwise.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), String> {
        let has_bias = config.qkv_bias || config.attention_output_bias || config.mlp_bias;
        let scale = self.query_scalar(
            config.num_hidden_layers,
            config.hidden_size,
            [config.num_attention_heads, config.head_dim],
        );
        let scale = scale.powf(-0.5);
        let rope = config.rope.first().map(|rope| &rope.scaling);
        let problem = if config.hidden_act != self.activation {
            format!("`hidden_act` {}", config.hidden_act.name())
        } else if has_bias && !self.has_biases {
            "biases of linear layers".to_owned()
        } else if (config.attention_scale - scale).abs() > 1e-6 * scale {
            "this scale of the attention's scores (`query_pre_attn_scalar`)".to_owned()
        } else if self.is_tied && !config.tie_word_embeddings {
            "a head of its own (`tie_word_embeddings` false)".to_owned()
        } else if !matches!(
            rope,
            Some(RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. })
        ) {
            "this scaling of rotary positions".to_owned()
        } else if !self.windows_fit(config) {
            "windows in these layers (`sliding_window`)".to_owned()
        } else {
            return Ok(());
        };
        let name = self.name;
        Err(format!("llama.cpp's `{name}` does not have {problem}"))
    }

    /// The number by whose root scores are divided (`query_pre_attn_scalar`).
    fn query_scalar(
        &self,
        layers: usize,
        hidden_size: usize,
        [heads, head_dim]: [usize; 2],
    ) -> f64 {
        match self.scale_of_layers == Some(layers) {
            true => hidden_size as f64 / heads as f64,
            false => head_dim as f64,
        }
    }

    /// Whether the layers with a window are those that llama.cpp expects. Llama and Qwen have none
    /// there, so that texts that are longer than a window are read otherwise.
    fn windows_fit(&self, config: &DecoderConfig) -> bool {
        let Some(pattern) = self.window_pattern else {
            let window = config.sliding_windows.iter().flatten().min();
            if let Some(window) = window {
                tracing::warn!(
                    "llama.cpp knows no windows of this family: texts of more than {window} \
                     tokens are read otherwise there"
                );
            }
            return true;
        };
        let slides = |layer: usize| config.window_of_layer(layer).is_some();
        (0..config.num_hidden_layers).all(|layer| slides(layer) == ((layer + 1) % pattern != 0))
    }

    /// The tensors that a model may have.
    pub fn tensors(&self, config: &DecoderConfig) -> Vec<TensorNames> {
        let family = config.architecture;
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let inner = config.intermediate_size;
        let turned = match self.turns_neighbors {
            true => RowOrder::HalvesInTurn {
                head_dim: config.head_dim,
            },
            false => RowOrder::Same,
        };
        let tensor = |hugging_face: &str, gguf: &str, shape: &[usize]| TensorNames {
            hugging_face: hugging_face.to_owned(),
            gguf: gguf.to_owned(),
            shape: shape.to_vec(),
            optional: false,
            rows: RowOrder::Same,
            offset: 0.0,
        };
        let norm = |path: &str, gguf: &str, size: usize| TensorNames {
            offset: family.norm_offset,
            ..tensor(&format!("{path}.weight"), gguf, &[size])
        };
        let [words, head] = family.words_and_head;
        let table = [config.vocab_size, hidden];
        let mut all = vec![
            tensor(words, WORDS, &table),
            norm(family.final_norm, FINAL_NORM, hidden),
        ];
        if !config.tie_word_embeddings {
            all.push(tensor(head, HEAD, &table));
        }
        let names = &family.layer;
        let (attention, feed_forward) = (&names.attention, &names.feed_forward);
        let linears = [
            (Some(attention.query), "attn_q", [queries, hidden], turned),
            (Some(attention.key), "attn_k", [keys, hidden], turned),
            (
                Some(attention.value),
                "attn_v",
                [keys, hidden],
                RowOrder::Same,
            ),
            (
                Some(attention.output),
                "attn_output",
                [hidden, queries],
                RowOrder::Same,
            ),
            (
                feed_forward.gate,
                "ffn_gate",
                [inner, hidden],
                RowOrder::Same,
            ),
            (
                Some(feed_forward.up),
                "ffn_up",
                [inner, hidden],
                RowOrder::Same,
            ),
            (
                Some(feed_forward.down),
                "ffn_down",
                [hidden, inner],
                RowOrder::Same,
            ),
        ];
        let of_heads = attention
            .norms
            .filter(|_| family.normalizes_heads.is_some());
        let [of_queries, of_keys] = of_heads.map_or([None; 2], |norms| norms.map(Some));
        let [after_attention, after_feed_forward] = names
            .output_norms
            .map_or([None; 2], |norms| norms.map(Some));
        let norms = [
            (Some(names.attention_norm), "attn_norm", hidden),
            (of_queries, "attn_q_norm", config.head_dim),
            (of_keys, "attn_k_norm", config.head_dim),
            (after_attention, "post_attention_norm", hidden),
            (Some(names.feed_forward_norm), "ffn_norm", hidden),
            (after_feed_forward, "post_ffw_norm", hidden),
        ];
        for layer in 0..config.num_hidden_layers {
            let path = |module: &str| format!("{}.{layer}.{module}", family.layers);
            for (module, gguf, size) in norms {
                let gguf = format!("blk.{layer}.{gguf}.weight");
                all.extend(module.map(|module| norm(&path(module), &gguf, size)));
            }
            for (module, gguf, [out, input], rows) in linears {
                let Some(path) = module.map(path) else {
                    continue;
                };
                let gguf = format!("blk.{layer}.{gguf}");
                let weight = format!("{path}.weight");
                all.push(TensorNames {
                    rows,
                    ..tensor(&weight, &format!("{gguf}.weight"), &[out, input])
                });
                all.push(TensorNames {
                    rows,
                    optional: true,
                    ..tensor(&format!("{path}.bias"), &format!("{gguf}.bias"), &[out])
                });
            }
        }
        all
    }

    /// What llama.cpp divides the frequencies of rotary positions by, where they do not have one
    /// factor (Llama 3.1).
    pub fn rope_factors(&self, config: &DecoderConfig) -> Option<Vec<f32>> {
        let rope = config.rope.first()?;
        matches!(rope.scaling, RopeScaling::Llama3 { .. }).then(|| frequency_factors(rope))
    }

    /// The metadata of a configuration.
    pub fn metadata(&self, config: &DecoderConfig) -> Vec<(String, GgufValue)> {
        let mut metadata = Vec::new();
        let mut add = |key: &str, value: GgufValue| {
            metadata.push((format!("{}.{key}", self.name), value));
        };
        let number = |value: usize| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
        for (key, _, value) in SIZES {
            add(key, number(value(config)));
        }
        for key in HEAD_SIZES {
            add(key, number(config.head_dim));
        }
        add(EPSILON, GgufValue::F32(config.norm_eps as f32));
        let [first, local] = [0, 1].map(|at| config.rope.get(at));
        if let Some(rope) = first {
            add(THETA, GgufValue::F32(rope.rope_theta as f32));
            if let RopeScaling::Linear { factor } = rope.scaling {
                add(SCALING, GgufValue::String("linear".to_owned()));
                add(SCALING_FACTOR, GgufValue::F32(factor as f32));
            }
        }
        if let Some(rope) = local {
            add(LOCAL_THETA, GgufValue::F32(rope.rope_theta as f32));
        }
        let window = config.sliding_windows.iter().flatten().next();
        if let Some(window) = window.filter(|_| self.window_pattern.is_some()) {
            add(WINDOW, number(*window));
        }
        for (key, cap) in SOFTCAPS.into_iter().zip(config.softcaps) {
            if let Some(cap) = cap {
                add(key, GgufValue::F32(cap as f32));
            }
        }
        metadata
    }

    /// What a file's metadata and the names of its tensors say, under the keys of a `config.json`.
    ///
    /// # Errors
    /// If a key is missing or of another type, or says what is not computed here.
    pub(super) fn config(&self, file: &GgufFile) -> Result<Map<String, Value>, ModelError> {
        let full = |key: &str| format!("{}.{key}", self.name);
        let has = |name: &str| file.tensors().iter().any(|it| it.name == name);
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("model_type", json!(self.model_types[0]));
        let required = |key: &str| {
            let key = full(key);
            let size = file.count(&key)?.filter(|size| *size > 0);
            file.required(&key, size)
        };
        let [hidden, layers, heads] = [
            required("embedding_length")?,
            required("block_count")?,
            required("attention.head_count")?,
        ];
        let table = file.tensors().iter().find(|it| it.name == WORDS);
        let by_default = |key: &str| match key {
            "vocab_size" => table.and_then(|it| it.shape.first().copied()),
            "attention.head_count_kv" => Some(heads),
            "attention.key_length" => Some(hidden / heads),
            _ => None,
        };
        for (key, hugging_face, _) in SIZES {
            let size = file.count(&full(key))?.or_else(|| by_default(key));
            set(hugging_face, json!(file.required(&full(key), size)?));
        }
        let head_dim = file.count(&full("attention.key_length"))?;
        let head_dim = head_dim.unwrap_or(hidden / heads);
        for key in HEAD_SIZES.map(full) {
            if let Some(size) = file.count(&key)?.filter(|size| *size != head_dim) {
                let problem = format!("{size} is not the size of a head, {head_dim}");
                return Err(file.invalid(&key, problem).into());
            }
        }
        let key = full(EPSILON);
        let epsilon = file.required(&key, file.number(&key)?)?;
        set("rms_norm_eps", json!(epsilon));
        set("tie_word_embeddings", json!(!has(HEAD)));
        for (key, module) in [("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")] {
            if has(&format!("blk.0.{module}.bias")) {
                set(key, json!(true));
            }
        }
        if self.scale_of_layers.is_some() {
            let scalar = self.query_scalar(layers, hidden, [heads, head_dim]);
            set("query_pre_attn_scalar", json!(scalar));
        }
        if self.window_pattern.is_some()
            && let Some(window) = file.count(&full(WINDOW))?
        {
            set("sliding_window", json!(window));
        }
        for key in SOFTCAPS {
            if let Some(cap) = file.number(&full(key))? {
                set(key, json!(cap));
            }
        }
        for (key, hugging_face) in [(THETA, "rope_theta"), (LOCAL_THETA, "rope_local_base_freq")] {
            if let Some(theta) = file.number(&full(key))? {
                set(hugging_face, json!(theta));
            }
        }
        let key = full(SCALING);
        match file.text(&key)?.unwrap_or("none") {
            "none" => {}
            "linear" => {
                let key = full(SCALING_FACTOR);
                let factor = file.required(&key, file.number(&key)?)?;
                set(
                    "rope_scaling",
                    json!({"rope_type": "linear", "factor": factor}),
                );
            }
            other => {
                let problem = format!(
                    "`{other}` is not read (read are none, linear and the factors of Llama 3): take \
                     the model's safetensors"
                );
                return Err(file.invalid(&key, problem).into());
            }
        }
        let has_experts = file.count(&full(EXPERTS))?.is_some_and(|count| count > 0);
        let sees_all = file.flag(&full(CAUSAL))? == Some(false);
        for (key, is_so) in [(EXPERTS, has_experts), (CAUSAL, sees_all)] {
            if is_so {
                let problem = "models of this kind are not supported";
                return Err(file.invalid(&full(key), problem).into());
            }
        }
        Ok(config)
    }
}

/// What a scaling divides the frequencies by.
fn frequency_factors(rope: &RotaryEmbedding) -> Vec<f32> {
    let plain = RotaryEmbedding {
        scaling: RopeScaling::Default,
        ..rope.clone()
    };
    let [plain, scaled] = [&plain, rope].map(|it| it.inverse_frequencies(1));
    plain
        .iter()
        .zip(scaled)
        .map(|(plain, scaled)| plain / scaled)
        .collect()
}

/// The `rope_scaling` of frequencies that are divided by `factors`: that of Llama 3.1 and its
/// successors where the factors are theirs, else one that states them all.
pub(super) fn rope_scaling(config: &Map<String, Value>, factors: &[f32]) -> Value {
    /// `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings` of Llama 3.1,
    /// 3.2 and 3.3.
    const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);
    let (low, high, original) = LLAMA3;
    let factor = factors.last().copied().map_or(1.0, f64::from);
    let rope = RotaryEmbedding {
        head_dim: factors.len() * 2,
        interleaved: false,
        rope_theta: config
            .get("rope_theta")
            .and_then(Value::as_f64)
            .unwrap_or(1e4),
        max_position_embeddings: original,
        scaling: RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        },
    };
    let is_close = |(a, b): (&f32, f32)| (a - b).abs() <= 1e-4 * b.abs();
    if factors.iter().zip(frequency_factors(&rope)).all(is_close) {
        return json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        });
    }
    json!({
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.get("max_position_embeddings"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_rows_are_the_inverse_of_each_other() {
        let order = RowOrder::HalvesInTurn { head_dim: 6 };
        // As llama.cpp's converter has them, `reshape(heads, 2, 3).swapaxes(1, 2)`.
        let rows: Vec<usize> = (0..12).map(|row| order.in_hugging_face(row)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!((0..12).all(|row| order.in_gguf(order.in_hugging_face(row)) == row));
    }
}
