//! What travels from layer to layer.

use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::{Angles, Sequences};

use crate::rope::RotaryEmbedding;

/// The hidden states between two layers, and everything that travels with them.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// The residual stream, `[tokens, hidden]`, virtual tokens included.
    pub states: Tensor<2>,
    /// The sequences that the rows form.
    pub rows: Sequences,
    /// States that later layers read: an encoder's output, a side network's states.
    pub carried: Vec<Stream>,
    /// The rows' rotary angles, for each rotary embedding of the model; empty once rows were
    /// selected.
    pub(crate) angles: Vec<Angles>,
}

/// States that travel with the residual stream until a later layer reads them.
///
/// Gradients reach whoever made them: each layer has its own autodiff graph, and a stream's
/// gradient is passed from graph to graph as that of the residual stream is.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its name, unique among the streams of one owner.
    pub name: &'static str,
    /// Whose it is.
    pub owner: Owner,
    /// `[rows, any size]`
    pub states: Tensor<2>,
    /// The sequences that its rows form.
    pub rows: Sequences,
}

/// Who put a stream among those that travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The model; the stream holds rows of every adapter of the batch.
    Model,
    /// One adapter of the batch, by its number; no other sees the stream.
    Adapter(usize),
}

impl Hidden {
    /// States of these sequences, with nothing beside them.
    pub fn new(states: Tensor<2>, rows: Sequences) -> Self {
        Self {
            states,
            rows,
            carried: Vec::new(),
            angles: Vec::new(),
        }
    }

    /// The same with the rows' rotary angles, positions counted from `offset`: for a layer whose
    /// heads are not of the base's size.
    #[must_use]
    pub fn with_rotary(self, rotary: &RotaryEmbedding, offset: usize) -> Self {
        Self {
            angles: vec![rotary.angles(&self.rows, offset)],
            ..self
        }
    }

    /// Other states for the same rows.
    #[must_use]
    pub fn with(&self, states: Tensor<2>) -> Self {
        Self {
            states,
            ..self.clone()
        }
    }

    /// The same, with the streams of adapters marked as those of adapter `number` of a batch.
    #[must_use]
    pub fn owned_by(mut self, number: usize) -> Self {
        for stream in &mut self.carried {
            if let Owner::Adapter(owner) = &mut stream.owner {
                *owner = number;
            }
        }
        self
    }

    /// Takes the stream of this name out.
    pub fn take(&mut self, name: &str) -> Option<Stream> {
        let index = self.carried.iter().position(|stream| stream.name == name)?;
        Some(self.carried.remove(index))
    }

    /// The stream of this name.
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.carried.iter().find(|stream| stream.name == name)
    }

    /// Selects rows of the residual stream, in ascending order. Only valid after the last
    /// attention.
    #[must_use]
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        if rows.len() == self.rows.tokens() {
            return self.clone();
        }
        Self {
            states: epiphyte_ops::rows(self.states.clone(), rows),
            rows: self.rows.select_rows(rows),
            carried: self.carried.clone(),
            angles: Vec::new(),
        }
    }

    /// The rows of some sequences, with the streams of the model and of `owner`. Without angles:
    /// only valid where no attention follows, or for what reads no angles.
    #[must_use]
    pub fn part(&self, sequences: Range<usize>, owner: Owner) -> Self {
        let carried = self.carried.iter().filter_map(|stream| match stream.owner {
            Owner::Model => Some(Stream {
                states: narrow(&stream.states, &stream.rows.range(&sequences)),
                rows: stream.rows.part(sequences.clone()),
                ..stream.clone()
            }),
            own if own == owner => Some(stream.clone()),
            Owner::Adapter(_) => None,
        });
        Self {
            states: narrow(&self.states, &self.rows.range(&sequences)),
            rows: self.rows.part(sequences.clone()),
            carried: carried.collect(),
            angles: Vec::new(),
        }
    }

    /// Concatenates the rows of several, and each stream of the model that all of them have.
    ///
    /// Streams that adapters own stay separate.
    #[must_use]
    pub fn concat(parts: &[Self]) -> Self {
        if let [only] = parts {
            return only.clone();
        }
        let sets = parts.iter().map(|part| part.angles.len()).min();
        let angles = (0..sets.unwrap_or(0))
            .map(|set| Angles::concat(parts.iter().map(|part| &part.angles[set])));
        let angles = angles.collect();
        let of_model = |part: &Self| -> Vec<Stream> {
            let streams = part.carried.iter();
            let streams = streams.filter(|stream| stream.owner == Owner::Model);
            streams.cloned().collect()
        };
        let each: Vec<Vec<Stream>> = parts.iter().map(of_model).collect();
        let first = each.first().map_or(&[][..], |streams| streams);
        let joined = first.iter().enumerate().map(|(index, stream)| Stream {
            states: concat(
                each.iter()
                    .map(|streams| streams[index].states.clone())
                    .collect(),
            ),
            rows: Sequences::concat(each.iter().map(|streams| &streams[index].rows)),
            ..stream.clone()
        });
        let own = parts.iter().flat_map(|part| part.carried.iter());
        let own = own.filter(|stream| stream.owner != Owner::Model).cloned();
        Self {
            states: concat(parts.iter().map(|part| part.states.clone()).collect()),
            rows: Sequences::concat(parts.iter().map(|part| &part.rows)),
            carried: joined.chain(own).collect(),
            angles,
        }
    }
}

/// A range of rows.
pub(crate) fn narrow(x: &Tensor<2>, rows: &Range<usize>) -> Tensor<2> {
    if rows.len() == x.dims()[0] {
        return x.clone();
    }
    x.clone().narrow(0, rows.start, rows.len())
}

/// Rows one after another.
pub(crate) fn concat(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    Tensor::cat(parts, 0)
}
