//! A model: a frozen base, its backbone, and a head.

use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::{
    IGNORED, Sequences, binary_cross_entropy, cross_entropy, mean_squared_error,
    span_cross_entropy, symmetric_divergence,
};

use crate::adapter::{Adapter, AdapterBatch, Entry, FIRST_PASS, Hidden, Stream, VirtualTargets};
use crate::backbone::Backbone;
use crate::base::Base;
use crate::heads::{
    ClassificationHead, EmbeddingHead, Head, LanguageModelHead, MaskedLmHead, Pooling, Verbalizer,
    WordPosition,
};
use crate::tokens::{Mode, Tokens};

/// A model with a head.
#[derive(Debug)]
pub struct Model {
    base: Base,
    backbone: Box<dyn Backbone>,
    head: Head,
}

/// The labels of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A class for each sequence.
    Classes(&'a [i64]),
    /// A number for each sequence.
    Values(&'a [f32]),
    /// For each sequence 0 or 1 for each class, of which any number may be right: `[sequences,
    /// classes]`.
    ClassSets(&'a [f32]),
    /// A class for each token, not shifted; -100 does not count.
    TokenClasses(&'a [i64]),
    /// The first and the last token of an answer for each sequence, counted from its own first.
    Spans {
        /// The first tokens.
        starts: &'a [i64],
        /// The last tokens.
        ends: &'a [i64],
    },
    /// The number of the right choice for each example, whose choices are sequences in a row.
    Choices {
        /// The right ones, from 0.
        chosen: &'a [i64],
        /// The choices of an example.
        choices: usize,
    },
    /// A label for each token, in Hugging Face's convention: the label of a token is the token
    /// itself, the model shifts, -100 does not count.
    Tokens(&'a [i64]),
    /// A label for each token of the decoder, not shifted; -100 does not count.
    DecoderTokens(&'a [i64]),
    /// Texts that are compared with each other.
    Texts {
        /// How many in a row belong together: an anchor, its positive, its negatives.
        together: usize,
        /// A number for each group.
        scores: Option<&'a [f32]>,
    },
}

/// A loss and the number of targets that it is the mean of.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The mean, one value.
    pub mean: Tensor<1>,
    /// The number of targets.
    pub targets: usize,
}

/// The final-layer rows that the loss reads, with a label for each.
#[derive(Clone, Debug)]
pub struct LossRows<'a> {
    rows: Vec<usize>,
    labels: Labels<'a>,
}

#[derive(Clone, Debug)]
enum Labels<'a> {
    Classes(&'a [i64]),
    Values(&'a [f32]),
    ClassSets {
        sets: &'a [f32],
        sequences: usize,
    },
    /// The class of each row that is read.
    TokenClasses(Vec<i64>),
    Spans {
        ends: [&'a [i64]; 2],
        /// Where each sequence's rows end among those that are read, from 0.
        boundaries: Vec<usize>,
    },
    Choices {
        chosen: &'a [i64],
        choices: usize,
    },
    /// The next token for each row that is read, and what its loss is multiplied by.
    Next(Vec<i64>, Vec<f32>),
    /// Texts that are compared, `count` groups of `together`.
    Texts {
        count: usize,
        together: usize,
        scores: Option<&'a [f32]>,
    },
}

impl LossRows<'_> {
    /// The rows that the loss reads, in ascending order.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The number of targets.
    pub fn targets(&self) -> usize {
        match &self.labels {
            Labels::Classes(classes) => classes.len(),
            Labels::Values(values) => values.len(),
            Labels::ClassSets { sequences, .. } => *sequences,
            Labels::Spans { boundaries, .. } => boundaries.len() - 1,
            Labels::Choices { chosen, .. } => chosen.len(),
            Labels::Texts { count, .. } => *count,
            Labels::TokenClasses(labels) | Labels::Next(labels, _) => labels.len(),
        }
    }
}

impl Model {
    /// Puts a model together.
    pub(crate) fn new(mut base: Base, backbone: Box<dyn Backbone>, head: Head) -> Self {
        base.is_bare = matches!(head, Head::Embedding(_));
        Self {
            base,
            backbone,
            head,
        }
    }

    /// Says that the checkpoint brought the task's head.
    pub(crate) fn set_has_head(&mut self, has_head: bool) {
        self.base.has_head = has_head;
    }

    /// The frozen tensors.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.base.dimensions.layers
    }

    /// The stack of layers.
    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    /// Whether the base's own dropout is on during training.
    pub fn has_dropout(&self) -> bool {
        self.backbone.has_dropout()
    }

    /// The classification head, if the model has one.
    pub fn classification_head(&self) -> Option<&ClassificationHead> {
        match &self.head {
            Head::Classification(head) => Some(head),
            _ => None,
        }
    }

    /// Whether the head has logits for each token, and is not a language model's.
    pub fn reads_tokens(&self) -> bool {
        let head = self.classification_head();
        head.is_some_and(|head| head.pooling == Pooling::EachToken)
    }

    /// The language model's head, if the model has one.
    pub fn language_head(&self) -> Option<&LanguageModelHead> {
        match &self.head {
            Head::LanguageModel(head) => Some(head),
            _ => None,
        }
    }

    /// The masked language model's head, if the model has one.
    pub fn masked_head(&self) -> Option<&MaskedLmHead> {
        match &self.head {
            Head::MaskedLm(head) => Some(head),
            _ => None,
        }
    }

    /// Makes a language model one of classes: the words of each stand for it. Other models stay as
    /// they are.
    pub fn set_verbalizer(&mut self, verbalizer: Verbalizer) {
        match &mut self.head {
            Head::MaskedLm(head) => head.verbalizer = Some(verbalizer),
            Head::LanguageModel(head) => head.verbalizer = Some(verbalizer),
            Head::Classification(_) | Head::Embedding(_) => {}
        }
    }

    /// The tokens that an encoder-decoder's decoder reads before it predicts a word that stands for
    /// a class; none without a verbalizer.
    pub fn decoder_prompt(&self) -> Option<&[u32]> {
        match &self.language_head()?.verbalizer.as_ref()?.position {
            WordPosition::DecoderStart(tokens) => Some(tokens),
            WordPosition::Mask(_) | WordPosition::TextEnd => None,
        }
    }

    /// Pooling, normalization and loss of embeddings, if the model makes them.
    pub fn embedding_head(&self) -> Option<&EmbeddingHead> {
        match &self.head {
            Head::Embedding(head) => Some(head),
            _ => None,
        }
    }

    /// Whether the loss of an example depends on the others of its batch, so that a batch is one
    /// micro-batch.
    pub fn compares_examples(&self) -> bool {
        self.embedding_head().is_some()
    }

    /// The input of the first layer, for one adapter's sequences; with the final states of the
    /// adapter's [first pass](Adapter::first_pass) as a stream, if it has one.
    pub fn embed(&self, entry: &Entry<'_>) -> Hidden {
        let mut hidden = self.backbone.embed(entry);
        hidden.carried.extend(self.first_pass(entry));
        hidden
    }

    /// The final states of the adapter's [first pass](Adapter::first_pass).
    pub fn first_pass(&self, entry: &Entry<'_>) -> Option<Stream> {
        let first = entry.adapter.first_pass()?;
        // Keys and values of this pass are not those that a text goes on with.
        let tokens = Tokens {
            cache: None,
            ..entry.tokens.clone()
        };
        let Hidden { states, rows, .. } = self.hidden(&tokens, first);
        Some(Stream::of_adapter(FIRST_PASS, states.inner(), rows))
    }

    /// Some layers, each after the adapters' [`hidden`](Adapter::hidden) hook. With `selected`,
    /// only these rows leave the model's last layer.
    pub fn run(
        &self,
        layers: Range<usize>,
        hidden: Hidden,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let last = self.layers();
        let mut hidden = hidden;
        for index in layers.clone() {
            hidden = batch.hidden(index, hidden);
            let streams = batch.streams(&hidden.carried);
            let batch = &batch.with_streams(&streams);
            if let Some(selected) = selected.filter(|_| index + 1 == last) {
                return self.last_layer(hidden, selected, batch);
            }
            hidden = self.backbone.layer(index, hidden, None, batch);
        }
        if layers.end == last {
            hidden = batch.hidden(last, hidden);
        }
        hidden
    }

    /// The last layer and the hook after it, of which only the `selected` rows are read.
    fn last_layer(&self, hidden: Hidden, selected: &[usize], batch: &AdapterBatch<'_>) -> Hidden {
        let last = self.layers();
        let rows = self.final_rows(&hidden);
        let kept = batch.kept_rows(last - 1, &rows, selected);
        let early = Some(&kept[..]).filter(|kept| kept.len() < rows.tokens());
        let hidden = self.backbone.layer(last - 1, hidden, early, batch);
        // Adapters that read several rows at once see theirs after the layer too.
        let hidden = batch.hidden(last, hidden);
        let places = selected
            .iter()
            .map(|row| kept.partition_point(|kept| kept < row));
        hidden.select_rows(&places.collect::<Vec<_>>())
    }

    /// What follows the last layer.
    pub fn finish(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        self.backbone.finish(hidden, batch)
    }

    /// The rows that the head reads, in ascending order.
    pub fn head_rows(
        &self,
        tokens: &Tokens<'_>,
        rows: &Sequences,
        adapter: &dyn Adapter,
    ) -> Vec<usize> {
        let pooled = |pooling: Pooling| match pooling {
            Pooling::First if adapter.pools_text() => Pooling::first_of_text(tokens, rows),
            pooling => pooling.rows(tokens, rows),
        };
        match &self.head {
            Head::Classification(head) => pooled(head.pooling),
            Head::MaskedLm(head) => head.rows(tokens, rows),
            Head::Embedding(head) => pooled(head.pooling.into()),
            Head::LanguageModel(_) => rows.lasts().collect(),
        }
    }

    /// Runs all layers for all rows, in evaluation mode.
    pub fn hidden(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden {
        let batch = AdapterBatch::single(adapter, tokens);
        let hidden = self.embed(&batch.entries()[0]);
        let first = self.backbone.first_layer(tokens);
        let hidden = self.run(first..self.layers(), hidden, None, &batch);
        self.finish(hidden, &batch)
    }

    /// Logits of a model with a classification head: of every sequence, `[sequences, labels]`, or
    /// of every token, `[tokens, labels]`. Of a language model those of the last token,
    /// `[sequences, vocabulary]`, of a masked one those of every token; of both, with a verbalizer,
    /// those of the classes, `[sequences, classes]`. Of a model that makes embeddings these,
    /// `[sequences, hidden]`.
    pub fn logits(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Tensor<2> {
        self.batch_logits(&AdapterBatch::single(adapter, tokens))
    }

    /// As [`Model::logits`], of the sequences of several adapters in one forward pass, in the order
    /// of the adapters. Each adapter gets what it would get alone.
    ///
    /// # Panics
    /// If, with an encoder-decoder, some texts go on behind a cache and others begin.
    pub fn batch_logits(&self, batch: &AdapterBatch<'_>) -> Tensor<2> {
        let (mut embedded, mut selected, mut start) = (Vec::new(), Vec::new(), 0);
        let first = self.backbone.first_layer(batch.entries()[0].tokens);
        for (number, entry) in batch.entries().iter().enumerate() {
            let begins = self.backbone.first_layer(entry.tokens);
            assert_eq!(begins, first, "all texts of a batch begin, or all go on");
            let hidden = self.embed(entry).owned_by(number);
            let rows = self.final_rows(&hidden);
            let read = self.head_rows(entry.tokens, &rows, entry.adapter);
            selected.extend(read.into_iter().map(|row| start + row));
            start += rows.tokens();
            embedded.push(hidden);
        }
        let hidden = Hidden::concat(&embedded);
        drop(embedded);
        let read = self.run(first..self.layers(), hidden, Some(&selected), batch);
        self.head_logits(self.finish(read, batch), batch)
    }

    /// The sequences of the last layer's states: a decoder's where there is one.
    pub fn final_rows(&self, hidden: &Hidden) -> Sequences {
        let decoder = hidden.stream(DECODER_STREAM);
        decoder.map_or(&hidden.rows, |stream| &stream.rows).clone()
    }

    /// Logits of the rows that are read, from states that [`Model::finish`] has seen.
    pub fn head_logits(&self, read: Hidden, batch: &AdapterBatch<'_>) -> Tensor<2> {
        match &self.head {
            Head::Classification(head) => head.forward(read, batch),
            Head::LanguageModel(head) => head.forward(read.states, &read.rows, batch),
            Head::MaskedLm(head) => head.forward(read, batch),
            Head::Embedding(head) => head.forward(read),
        }
    }

    /// What the loss of a batch reads; none if nothing has a target. `tokens` are those that
    /// labels are given for, `run` the sequences of the last layer's states, virtual tokens
    /// included, which have targets if the `adapter` has any for them.
    pub fn loss_rows<'a>(
        &self,
        targets: Targets<'a>,
        tokens: &Tokens<'_>,
        run: &Sequences,
        adapter: &dyn Adapter,
    ) -> Option<LossRows<'a>> {
        let counted = |rows: &mut dyn Iterator<Item = usize>, labels: &[i64]| {
            let read = |(_, label): &(usize, &i64)| **label != IGNORED;
            rows.zip(labels).filter(read).unzip()
        };
        let next = |next: Vec<i64>, weights: Vec<f32>| {
            let (rows, next): (Vec<usize>, _) = counted(&mut (0..next.len()), &next);
            let weights = rows.iter().map(|&row| weights[row]).collect();
            LossRows {
                rows,
                labels: Labels::Next(next, weights),
            }
        };
        let loss_rows = match targets {
            Targets::Classes(classes) => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::Classes(classes),
            },
            Targets::Values(values) => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::Values(values),
            },
            Targets::ClassSets(sets) => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::ClassSets {
                    sets,
                    sequences: run.count(),
                },
            },
            Targets::TokenClasses(labels) => {
                let mut rows = self.head_rows(tokens, run, adapter).into_iter();
                let (rows, labels) = counted(&mut rows, labels);
                LossRows {
                    rows,
                    labels: Labels::TokenClasses(labels),
                }
            }
            Targets::Spans { starts, ends } => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::Spans {
                    ends: [starts, ends],
                    boundaries: tokens.sequences.boundaries().to_vec(),
                },
            },
            Targets::Choices { chosen, choices } => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::Choices { chosen, choices },
            },
            Targets::Tokens(labels) => {
                let of_virtual = adapter.virtual_targets();
                let (labels, weights) = next_tokens(labels, &tokens.sequences, run, of_virtual);
                next(labels, weights)
            }
            Targets::DecoderTokens(labels) => {
                let decoder = tokens.decoder.as_ref().map(|decoder| &decoder.sequences);
                let labels = behind_virtual(labels, decoder.unwrap_or(&tokens.sequences), run);
                let weights = vec![1.0; labels.len()];
                next(labels, weights)
            }
            Targets::Texts { together, scores } => LossRows {
                rows: self.head_rows(tokens, run, adapter),
                labels: Labels::Texts {
                    count: self.compared(together, scores) * tokens.sequences.count() / together,
                    together,
                    scores,
                },
            },
        };
        (loss_rows.targets() > 0).then_some(loss_rows)
    }

    /// 1 if texts of which this many belong together have a loss, 0 if not.
    fn compared(&self, together: usize, scores: Option<&[f32]>) -> usize {
        let head = self.embedding_head().filter(|_| together > 1);
        let has_loss = head.is_some_and(|head| scores.is_some() || !head.loss.reads_scores());
        usize::from(has_loss)
    }

    /// Mean loss of the rows that the loss reads, one value, for one adapter; none where the model
    /// has no head for these labels.
    pub fn loss_of(
        &self,
        read: Hidden,
        loss_rows: &LossRows<'_>,
        label_smoothing: f64,
        entry: &Entry<'_>,
    ) -> Option<Tensor<1>> {
        let batch = AdapterBatch::new([*entry]);
        match (&loss_rows.labels, &self.head) {
            (Labels::Classes(classes), Head::Classification(head)) => {
                cross_entropy(head.forward(read, &batch), classes, label_smoothing)
            }
            (Labels::Values(values), Head::Classification(head)) => {
                Some(mean_squared_error(head.forward(read, &batch), values))
            }
            (Labels::ClassSets { sets, .. }, Head::Classification(head)) => {
                Some(binary_cross_entropy(head.forward(read, &batch), sets))
            }
            (Labels::TokenClasses(labels), Head::Classification(head)) => {
                cross_entropy(head.forward(read, &batch), labels, label_smoothing)
            }
            (Labels::TokenClasses(labels), Head::MaskedLm(head)) => {
                cross_entropy(head.forward(read, &batch), labels, label_smoothing)
            }
            (Labels::Classes(classes), Head::MaskedLm(head)) => {
                cross_entropy(head.forward(read, &batch), classes, label_smoothing)
            }
            (Labels::Classes(classes), Head::LanguageModel(head)) => {
                let logits = head.forward(read.states, &read.rows, &batch);
                cross_entropy(logits, classes, label_smoothing)
            }
            (Labels::Spans { ends, boundaries }, Head::Classification(head)) => {
                span_cross_entropy(head.forward(read, &batch), boundaries, *ends)
            }
            (Labels::Choices { chosen, choices }, Head::Classification(head)) => {
                let logits = head.forward(read, &batch);
                let logits = logits.reshape([chosen.len(), *choices]);
                cross_entropy(logits, chosen, label_smoothing)
            }
            (Labels::Next(next, weights), Head::LanguageModel(head)) => {
                let targets = (&next[..], &weights[..]);
                head.loss(read.states, targets, label_smoothing, (&read.rows, entry))
            }
            (
                &Labels::Texts {
                    together, scores, ..
                },
                Head::Embedding(head),
            ) => head.loss(head.forward(read), together, scores, label_smoothing),
            _ => None,
        }
    }

    /// How far the predictions of two forward passes over the same examples are from each other,
    /// for the rows that the loss reads: the symmetric divergence of their distributions over
    /// classes or words. None where there is no such distribution: of numbers, sets of classes,
    /// spans and embeddings.
    pub fn divergence(
        &self,
        passes: [(Hidden, &Entry<'_>); 2],
        loss_rows: &LossRows<'_>,
    ) -> Option<Tensor<1>> {
        let choices = match &loss_rows.labels {
            Labels::Classes(_) | Labels::TokenClasses(_) | Labels::Next(..) => None,
            Labels::Choices { chosen, choices } => Some([chosen.len(), *choices]),
            Labels::Values(_)
            | Labels::ClassSets { .. }
            | Labels::Spans { .. }
            | Labels::Texts { .. } => return None,
        };
        let [logits, others] = passes.map(|(read, entry)| {
            let logits = self.head_logits(read, &AdapterBatch::new([*entry]));
            match choices {
                Some(shape) => logits.reshape(shape),
                None => logits,
            }
        });
        Some(symmetric_divergence(logits, others))
    }

    /// Mean loss over what has a target; none if nothing has.
    pub fn loss(
        &self,
        tokens: &Tokens<'_>,
        targets: Targets<'_>,
        label_smoothing: f64,
        adapter: &dyn Adapter,
    ) -> Option<Loss> {
        let entry = Entry {
            adapter,
            tokens,
            mode: Mode::Evaluation,
            streams: &[],
        };
        let batch = AdapterBatch::new([entry]);
        let hidden = self.embed(&entry);
        let rows = self.final_rows(&hidden);
        let loss_rows = self.loss_rows(targets, tokens, &rows, adapter)?;
        let read = self.run(0..self.layers(), hidden, Some(loss_rows.rows()), &batch);
        let read = self.finish(read, &batch);
        let mean = self.loss_of(read, &loss_rows, label_smoothing, &entry)?;
        Some(Loss {
            mean,
            targets: loss_rows.targets(),
        })
    }
}

/// The name of the stream in which a decoder's embedded tokens wait for the encoder's end.
pub const DECODER_STREAM: &str = "decoder";

/// The name of the stream in which an encoder's output travels through the decoder.
pub const ENCODER_STREAM: &str = "encoder";

/// The label of each row of a decoder; virtual tokens, which come first, have none.
///
/// `data` are the sequences that labels are given for, `run` those of the states.
fn behind_virtual(labels: &[i64], data: &Sequences, run: &Sequences) -> Vec<i64> {
    let mut all = vec![IGNORED; run.tokens()];
    for (data, states) in data
        .boundaries()
        .windows(2)
        .zip(run.boundaries().windows(2))
    {
        let own = &labels[data[0]..data[1]];
        all[states[1] - own.len()..states[1]].copy_from_slice(own);
    }
    all
}

/// What each row should predict: the label of the row after it, within its sequence.
///
/// `data` are the sequences that labels are given for, `run` those of the states; where the latter
/// are longer, virtual tokens come first and the last of them predicts the first real token, as in
/// PEFT. Virtual tokens are predicted where they have targets. Returns the labels and what the loss
/// of each is multiplied by.
fn next_tokens(
    labels: &[i64],
    data: &Sequences,
    run: &Sequences,
    of_virtual: Option<VirtualTargets<'_>>,
) -> (Vec<i64>, Vec<f32>) {
    let mut next = vec![IGNORED; run.tokens()];
    let mut weights = vec![1.0; run.tokens()];
    for (data, states) in data
        .boundaries()
        .windows(2)
        .zip(run.boundaries().windows(2))
    {
        let virtual_tokens = (states[1] - states[0]) - (data[1] - data[0]);
        for (at, &label) in labels[data[0]..data[1]].iter().enumerate() {
            if let Some(before) = (states[0] + virtual_tokens + at).checked_sub(1)
                && before >= states[0]
            {
                next[before] = label;
            }
        }
        let Some(targets) = of_virtual else { continue };
        let targets = targets.labels.iter().zip(targets.weights).skip(1);
        for (before, (&label, &weight)) in (states[0]..).zip(targets) {
            (next[before], weights[before]) = (label, weight);
        }
    }
    (next, weights)
}
