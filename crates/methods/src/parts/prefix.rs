//! Prefixes: keys and values in front of those of every self-attention.
//!
//! The table `[p, 2 L kv]` holds keys and values of one attention, then of the next, and so on;
//! `kv` is the width of all key heads together, which is also that of all value heads.

use std::collections::BTreeMap;
use std::sync::Mutex;

use burn::tensor::Tensor;
use epiphyte_models::adapter::{AttentionKind, AttentionSite, name_id};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook};
use epiphyte_ops::{Dropout, Prefix, Sequences};
use serde_json::{Map, Value};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::method::{Method, Stored, StoredTensors};
use crate::framework::parameters::{Param, ParameterSet};
use crate::parts::virtual_tokens::{self, KEY};

/// The keys that HF PEFT fills in from the base.
pub(crate) const COMPUTED: &[&str] = &[
    "num_attention_heads",
    "num_transformer_submodules",
    "token_dim",
];

/// Their values.
pub(crate) fn computed(base: &Base) -> Map<String, Value> {
    let stacks = if base.dimensions.encoder_layers > 0 {
        2
    } else {
        1
    };
    let values = [base.dimensions.kv_heads, stacks, kv_width(base)];
    let keys = COMPUTED.iter().map(|&key| key.to_owned());
    keys.zip(values.map(Value::from)).collect()
}

/// Width of all key heads together.
pub(crate) fn kv_width(base: &Base) -> usize {
    base.dimensions.kv_heads * base.dimensions.head_dim
}

crate::settings! {
    /// How a prefix starts as a text.
    pub struct TextStart {
        /// Text whose keys and values in the base the prefix starts as; it needs as many tokens as
        /// there are virtual ones.
        prefix_init_text: Option<String> = None, unset "random keys and values";
        /// The tokens of the text. Not in the file: once trained, the initial values are of no use.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix_init_token_ids: Option<Vec<u32>> = None, flag "", as Integers;
    }
}

impl TextStart {
    /// As [`MethodConfig::texts`](crate::MethodConfig::texts).
    pub(crate) fn texts(&self) -> Vec<(String, bool)> {
        let text = self.prefix_init_text.iter();
        text.map(|text| (text.clone(), true)).collect()
    }

    /// As [`MethodConfig::set_tokens`](crate::MethodConfig::set_tokens).
    pub(crate) fn set_tokens(&mut self, mut tokens: Vec<Vec<u32>>) {
        self.prefix_init_token_ids = tokens.pop();
    }

    /// As [`MethodConfig::check_start`](crate::MethodConfig::check_start), for a prefix of this
    /// length.
    pub(crate) fn check(
        &self,
        method: &'static str,
        length: usize,
        base: &Base,
    ) -> Result<(), MethodError> {
        let Some(ids) = &self.prefix_init_token_ids else {
            return Ok(());
        };
        let value = self.prefix_init_text.clone();
        let wrong = |expected: String| {
            Err(MethodError::Value {
                method,
                key: "prefix_init_text",
                value: format!("{:?}", value.clone().unwrap_or_default()),
                expected,
            })
        };
        if base.dimensions.encoder_layers > 0 {
            return wrong("a text has keys and values in one stack, and this base has two".into());
        }
        let most = base.dimensions.max_positions.unwrap_or(usize::MAX);
        if ids.len() < length || ids.len() > most {
            return wrong(format!(
                "a prefix of {length} virtual tokens can start as a text of {length} to {most} \
                 tokens, and this one has {}",
                ids.len()
            ));
        }
        virtual_tokens::check_ids(
            method,
            "prefix_init_token_ids",
            "the text",
            ids,
            base.word_embedding_table(),
        )
    }
}

/// Which attentions of an encoder-decoder have a prefix beside the decoder's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The encoder's.
    pub(crate) encoder: bool,
    /// Those of the decoder over the encoder's output.
    pub(crate) cross: bool,
}

/// Where in the table the keys and values of each attention are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The pair of keys and values of each layer's self-attention, if it has a prefix.
    pub(crate) own: Vec<Option<usize>>,
    /// That of each layer's cross-attention.
    cross: Vec<Option<usize>>,
    /// How many pairs the table has.
    pub(crate) pairs: usize,
    /// Whether there is a zero pair behind each in the file, as HF PEFT expects of
    /// encoder-decoders.
    spaced: bool,
    /// `num_layers` in the file.
    pub(crate) counted: usize,
}

impl Layout {
    /// The layout with this `num_layers`, or that of new adapters; none if there is none with it.
    pub(crate) fn new(base: &Base, reach: Reach, num_layers: Option<usize>) -> Option<Self> {
        let (layers, encoder) = (base.dimensions.layers, base.dimensions.encoder_layers);
        let decoder = layers - encoder;
        let is_peft = encoder > 0 && reach == Reach::default();
        // The decoder's pairs come first, then the encoder's, then those of cross-attention.
        let own = |layer: usize| match layer.checked_sub(encoder) {
            Some(at) => Some(at),
            None => reach.encoder.then_some(decoder + layer),
        };
        let before_cross = decoder + if reach.encoder { encoder } else { 0 };
        let cross = |layer: usize| {
            let at = layer
                .checked_sub(encoder)
                .filter(|_| encoder > 0 && reach.cross);
            at.map(|at| before_cross + at)
        };
        let crosses = (0..layers).map(cross).collect::<Vec<Option<usize>>>();
        let pairs = before_cross + crosses.iter().flatten().count();
        let counted = if is_peft { 2 * decoder } else { pairs };
        let layout = Self {
            own: (0..layers).map(own).collect(),
            cross: crosses,
            pairs,
            spaced: is_peft,
            counted,
        };
        match num_layers {
            None => Some(layout),
            Some(number) if number == counted => Some(layout),
            Some(number) if is_peft && number == decoder => {
                let shared = |layer: usize| Some(2 * layer.checked_sub(encoder)? % number);
                Some(Self {
                    own: (0..layers).map(shared).collect(),
                    spaced: false,
                    counted: number,
                    ..layout
                })
            }
            Some(_) => None,
        }
    }

    /// The pair of an attention.
    fn pair(&self, at: AttentionSite) -> Option<usize> {
        match at.kind {
            AttentionKind::Cross => self.cross[at.layer],
            AttentionKind::Encoder | AttentionKind::Decoder => self.own[at.layer],
        }
    }

    /// The table as the file has it, of rows that are `pair` values for each pair.
    fn for_file(&self, values: &[f32], pair: usize) -> Vec<f32> {
        match self.spaced {
            false => values.to_vec(),
            true => {
                let pairs = values.chunks(pair);
                pairs
                    .flat_map(|it| [it.to_vec(), vec![0.0; pair]].concat())
                    .collect()
            }
        }
    }

    /// The table of a file.
    fn of_file(&self, values: &[f32], pair: usize) -> Vec<f32> {
        let step = if self.spaced { 2 } else { 1 };
        values
            .chunks(pair)
            .step_by(step)
            .flatten()
            .copied()
            .collect()
    }
}

/// Keys and values for every attention of the layout.
#[derive(Debug)]
pub(crate) struct Prefixes {
    /// The method's name.
    pub(crate) method: &'static str,
    /// `[length, 2 · pairs · kv_size]`, trained or derived.
    pub(crate) table: Param,
    /// The parameters whose rows, one after another, are the table; none where a network computes
    /// it.
    pub(crate) pieces: Vec<Param>,
    /// Virtual tokens.
    pub(crate) length: usize,
    /// Where the keys and values of each attention are.
    pub(crate) layout: Layout,
    /// Of an encoder-decoder.
    pub(crate) encoder_layers: usize,
    /// Width of all key heads together.
    pub(crate) kv_size: usize,
    /// Dropout on keys and values, with a draw for each sequence.
    pub(crate) dropout: f64,
    /// The tokens as whose keys and values the prefix starts.
    pub(crate) start: Option<Vec<u32>>,
}

impl Prefixes {
    /// Keys and values of a pair in one matrix, `[length, 2 · kv_size]`.
    fn of_pair(&self, pair: usize) -> Tensor<2> {
        let size = 2 * self.kv_size;
        self.table.get::<2>().narrow(1, pair * size, size)
    }

    /// Keys and values apart.
    fn split(&self, both: Tensor<2>) -> [Tensor<2>; 2] {
        let keys = both.clone().narrow(1, 0, self.kv_size);
        [keys, both.narrow(1, self.kv_size, self.kv_size)]
    }

    /// Puts the rows of a table in place.
    fn set(&self, table: &[f32]) {
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.count();
            piece.set_values(table[start..end].to_vec());
            start = end;
        }
    }
}

impl Adapter for Prefixes {
    fn prefix_length(&self, decoder: bool) -> usize {
        let first = if decoder { self.encoder_layers } else { 0 };
        self.layout.own[first].map_or(0, |_| self.length)
    }

    fn prefix(&self, at: AttentionSite, _x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        let both = self.of_pair(self.layout.pair(at)?);
        let count = cx.rows.count();
        let boundaries = (0..=count).map(|sequence| sequence * self.length);
        let rows = Sequences::new(boundaries.collect());
        let rows = match cx.rows.keys() {
            Some(keys) => rows.with_keys(keys.to_vec()),
            None => rows,
        };
        let place = match at.kind {
            AttentionKind::Cross => "cross prefix",
            AttentionKind::Encoder | AttentionKind::Decoder => "prefix",
        };
        let Some(dropout) = Dropout::new(self.dropout, name_id(place) + at.layer as u64, &rows)
        else {
            let [keys, values] = self.split(both);
            return Some(Prefix::Shared { keys, values });
        };
        // Each sequence has its own draw, as in the paper's code.
        let repeated: Vec<usize> = (0..count).flat_map(|_| 0..self.length).collect();
        let [keys, values] = self.split(dropout.apply(epiphyte_ops::rows(both, &repeated)));
        Some(Prefix::PerSequence {
            length: self.length,
            keys,
            values,
        })
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Prefix(at) if self.layout.pair(at).is_some())
    }
}

impl Method for Prefixes {
    fn begin_stage(
        &mut self,
        stage: usize,
        _head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        let Some(tokens) = self.start.as_ref().filter(|_| stage == 0) else {
            return Ok(());
        };
        let past = Past::default();
        data.forward_text(tokens, &past)?;
        let table = past.table().narrow(0, 0, self.length);
        let table = table.inner().try_into_vec_as::<f32>();
        self.set(&table.expect("states are f32 and on a device that can be read"));
        Ok(())
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let values = self.layout.for_file(&self.table.to_vec(), 2 * self.kv_size);
        let shape = [self.length, values.len() / self.length];
        vec![Stored::f32(KEY, &shape, values)]
    }

    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let pairs = self.layout.pairs * if self.layout.spaced { 2 } else { 1 };
        let shape = [self.length, 2 * pairs * self.kv_size];
        if let Some(values) = file.take(KEY, &shape)? {
            self.set(&self.layout.of_file(&values, 2 * self.kv_size));
        }
        Ok(())
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: self.method,
            reason: "its keys and values depend on no input",
        })
    }

    fn changed(&self) -> usize {
        2 * self.layout.pairs * self.length * self.kv_size
    }
}

/// The base, whose keys and values of self-attention are written down.
#[derive(Debug, Default)]
struct Past(Mutex<BTreeMap<usize, [Tensor<2>; 2]>>);

impl Past {
    /// What was written down, `[tokens, 2 · layers · kv_size]`.
    fn table(self) -> Tensor<2> {
        let layers = self.0.into_inner().expect("no holder of the lock panics");
        Tensor::cat(layers.into_values().flatten().collect(), 1)
    }
}

impl Adapter for Past {
    fn attention(
        &self,
        at: AttentionSite,
        qkv: [Tensor<2>; 3],
        _cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        let [_, keys, values] = &qkv;
        if at.kind != AttentionKind::Cross {
            let mut layers = self.0.lock().expect("no holder of the lock panics");
            layers.insert(at.layer, [keys.clone(), values.clone()]);
        }
        qkv
    }
}
