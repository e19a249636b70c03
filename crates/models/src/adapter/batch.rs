//! One or several adapters over one base in one forward pass.
//!
//! Each adapter has its own sequences. All rows are in one matrix, so that the products with frozen
//! matrices are shared; where an adapter acts, the rows are split by adapter, each adapter does
//! with its own what it would do alone, and the results are concatenated. A row's result in a
//! frozen product does not depend on the other rows, so each adapter gets what it would get alone.

use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::Sequences;

use super::{Adapter, ForwardContext, Hidden, Hook, Identity, Owner, Stream, concat, narrow};
use crate::tokens::{Mode, Tokens};

/// One adapter with the sequences that it is applied to.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// The adapter.
    pub adapter: &'a dyn Adapter,
    /// Its sequences.
    pub tokens: &'a Tokens<'a>,
    /// Why the pass is made.
    pub mode: Mode,
    /// The adapter's own streams that travel with the layer.
    pub streams: &'a [Stream],
}

impl<'a> Entry<'a> {
    /// What a hook is told, for these rows of the entry's sequences.
    pub fn context<'c>(&'c self, rows: &'c Sequences) -> ForwardContext<'c>
    where
        'a: 'c,
    {
        ForwardContext {
            rows,
            tokens: self.tokens,
            mode: self.mode,
            streams: self.streams,
        }
    }
}

/// Adapters that share a forward pass, in the order in which their sequences lie.
#[derive(Clone)]
pub struct AdapterBatch<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> AdapterBatch<'a> {
    /// Adapters that share a pass; one adapter alone is a batch of one.
    ///
    /// # Panics
    /// If there is no adapter.
    pub fn new(entries: impl IntoIterator<Item = Entry<'a>>) -> Self {
        let entries: Vec<Entry<'a>> = entries.into_iter().collect();
        assert!(!entries.is_empty(), "a batch has at least one adapter");
        Self { entries }
    }

    /// One adapter, in evaluation mode.
    pub fn single(adapter: &'a dyn Adapter, tokens: &'a Tokens<'a>) -> Self {
        Self::new([Entry {
            adapter,
            tokens,
            mode: Mode::Evaluation,
            streams: &[],
        }])
    }

    /// The base model without an adapter.
    pub fn base(tokens: &'a Tokens<'a>) -> Self {
        Self::single(&Identity, tokens)
    }

    /// The adapters.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// Each adapter's own streams, out of all that travel.
    pub(crate) fn streams(&self, all: &[Stream]) -> Vec<Vec<Stream>> {
        let of = |number| {
            let own = all
                .iter()
                .filter(move |it| it.owner == Owner::Adapter(number));
            own.cloned().collect()
        };
        (0..self.entries.len()).map(of).collect()
    }

    /// The same adapters, which see these streams of theirs.
    pub(crate) fn with_streams<'s>(&self, streams: &'s [Vec<Stream>]) -> AdapterBatch<'s>
    where
        'a: 's,
    {
        let entries = self.entries.iter().zip(streams);
        AdapterBatch::new(entries.map(|(entry, own)| Entry {
            streams: own,
            ..*entry
        }))
    }

    /// Whether any adapter does anything at a hook.
    pub fn uses(&self, hook: Hook<'_>) -> bool {
        self.entries.iter().any(|entry| entry.adapter.uses(hook))
    }

    /// The lowest layer in which any adapter does anything.
    pub fn first_layer(&self) -> usize {
        let layers = self.entries.iter().map(|entry| entry.adapter.first_layer());
        layers.min().unwrap_or(usize::MAX)
    }

    /// The rows of `rows` that this layer has to compute after its attention, where `selected` are
    /// read in the end: of an adapter that reads several rows at once all, of others those that are
    /// selected, as if each were alone.
    pub(crate) fn kept_rows(
        &self,
        layer: usize,
        rows: &Sequences,
        selected: &[usize],
    ) -> Vec<usize> {
        let mut kept = Vec::with_capacity(selected.len());
        for (entry, _, range) in self.per_adapter(rows) {
            if entry.adapter.mixes_rows(layer) {
                kept.extend(range);
                continue;
            }
            let before = |at: usize| selected.partition_point(|&row| row < at);
            kept.extend_from_slice(&selected[before(range.start)..before(range.end)]);
        }
        kept
    }

    /// Each adapter with the numbers of its sequences.
    fn each(&self) -> impl Iterator<Item = (usize, &Entry<'a>, Range<usize>)> + '_ {
        let starts = self.entries.iter().scan(0, |end, entry| {
            let start = *end;
            *end += entry.tokens.sequences.count();
            Some(start..*end)
        });
        let entries = self.entries.iter().enumerate().zip(starts);
        entries.map(|((number, entry), sequences)| (number, entry, sequences))
    }

    /// Each adapter with its own sequences of `rows` and the range of rows that these take.
    pub(crate) fn per_adapter(
        &self,
        rows: &Sequences,
    ) -> Vec<(&Entry<'a>, Sequences, Range<usize>)> {
        if let [only] = &self.entries[..] {
            return vec![(only, rows.clone(), 0..rows.tokens())];
        }
        self.each()
            .map(|(_, entry, sequences)| {
                (entry, rows.part(sequences.clone()), rows.range(&sequences))
            })
            .collect()
    }

    /// Runs `body` once. If several adapters share the batch and one of them uses one of `hooks`,
    /// splits the rows by adapter, runs `body` for each adapter and concatenates.
    ///
    /// All `inputs` have the rows of `rows`.
    pub(crate) fn map<const N: usize>(
        &self,
        hooks: &[Hook<'_>],
        inputs: [Tensor<2>; N],
        rows: &Sequences,
        body: impl Fn([Tensor<2>; N], &dyn Adapter, &ForwardContext<'_>) -> Tensor<2>,
    ) -> Tensor<2> {
        if let [only] = &self.entries[..] {
            return body(inputs, only.adapter, &only.context(rows));
        }
        if !hooks.iter().any(|&hook| self.uses(hook)) {
            return body(inputs, &Identity, &self.entries[0].context(rows));
        }
        let parts = self.per_adapter(rows);
        let outputs = parts.iter().map(|(entry, own, range)| {
            let inputs = inputs.each_ref().map(|input| narrow(input, range));
            body(inputs, entry.adapter, &entry.context(own))
        });
        concat(outputs.collect())
    }

    /// As [`AdapterBatch::map`], for queries, keys and values; keys and values may be rows of other
    /// tokens, `key_rows`, and there are none where each sequence's cache has them. `x` is the
    /// attention's input, with the rows of the queries.
    pub(crate) fn map_attention(
        &self,
        hooks: &[Hook<'_>],
        (q, kv): (Tensor<2>, Option<[Tensor<2>; 2]>),
        x: Tensor<2>,
        (rows, key_rows): (&Sequences, Option<&Sequences>),
        body: impl Fn(
            (Tensor<2>, Option<[Tensor<2>; 2]>),
            Tensor<2>,
            Option<Sequences>,
            &dyn Adapter,
            &ForwardContext<'_>,
        ) -> Tensor<2>,
    ) -> Tensor<2> {
        if let [only] = &self.entries[..] {
            let cx = only.context(rows);
            return body((q, kv), x, key_rows.cloned(), only.adapter, &cx);
        }
        // Each sequence with a cache has its own keys.
        let cached = |entry: &Entry<'_>| entry.tokens.cache.is_some();
        if !hooks.iter().any(|&hook| self.uses(hook)) && !self.entries.iter().any(cached) {
            let cx = self.entries[0].context(rows);
            return body((q, kv), x, key_rows.cloned(), &Identity, &cx);
        }
        let outputs = self.each().map(|(_, entry, sequences)| {
            let range = rows.range(&sequences);
            let keys = key_rows.unwrap_or(rows).range(&sequences);
            let kv = kv
                .as_ref()
                .map(|kv| kv.each_ref().map(|it| narrow(it, &keys)));
            let own = rows.part(sequences.clone());
            let own_keys = key_rows.map(|rows| rows.part(sequences));
            let cx = entry.context(&own);
            let (q, x) = (narrow(&q, &range), narrow(&x, &range));
            body((q, kv), x, own_keys, entry.adapter, &cx)
        });
        concat(outputs.collect())
    }

    /// Calls [`Adapter::hidden`] of each adapter with its own rows and streams.
    pub(crate) fn hidden(&self, layer: usize, hidden: Hidden) -> Hidden {
        self.see(Hook::Hidden(layer), hidden, |adapter, hidden, cx| {
            adapter.hidden(layer, hidden, cx)
        })
    }

    /// Calls [`Adapter::encoded`] of each adapter with its own rows and streams.
    pub(crate) fn encoded(&self, hidden: Hidden) -> Hidden {
        self.see(Hook::Encoded, hidden, |adapter, hidden, cx| {
            adapter.encoded(hidden, cx)
        })
    }

    fn see(
        &self,
        hook: Hook<'_>,
        hidden: Hidden,
        see: impl Fn(&dyn Adapter, Hidden, &ForwardContext<'_>) -> Hidden,
    ) -> Hidden {
        if !self.uses(hook) {
            return hidden;
        }
        if let [only] = &self.entries[..] {
            let rows = hidden.rows.clone();
            return see(only.adapter, hidden, &only.context(&rows));
        }
        let angles = hidden.angles.clone();
        let parts: Vec<Hidden> = self
            .each()
            .map(|(number, entry, sequences)| {
                let part = hidden.part(sequences, Owner::Adapter(number));
                let rows = part.rows.clone();
                let seen = see(entry.adapter, part, &entry.context(&rows));
                seen.owned_by(number)
            })
            .collect();
        Hidden {
            angles,
            ..Hidden::concat(&parts)
        }
    }
}

impl Stream {
    /// A stream of an adapter, from [`Adapter::hidden`].
    pub fn of_adapter(name: &'static str, states: Tensor<2>, rows: Sequences) -> Self {
        Self {
            name,
            owner: Owner::Adapter(0),
            states,
            rows,
        }
    }
}

impl std::fmt::Debug for AdapterBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.entries.iter().map(|entry| entry.tokens);
        f.debug_list().entries(tokens).finish()
    }
}
