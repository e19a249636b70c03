//! A forward pass and what it comes to.

use std::sync::Mutex;

use burn::tensor::Tensor;
use epiphyte_models::{
    Adapter, AdapterBatch, ENCODER_STREAM, ForwardContext, Hidden, Identity, Model,
};

use crate::compare;
use crate::golden::{Base, Batch, Expected};

/// How near outputs must be, absolute.
pub(crate) const OUTPUTS: f32 = 1e-4;

/// Compares a base without any adapter.
pub(crate) fn check(base: &Base, differences: &mut Vec<String>) {
    let expected = Expected::open(&base.dir.join("expected.safetensors"));
    let name = base
        .dir
        .file_name()
        .expect("a directory has a name")
        .to_string_lossy();
    let (batch, model) = (base.batch(), &base.model);
    let mut same = |key: &str, found: &[f32]| {
        compare(
            &format!("{name} {key}"),
            found,
            &expected.get(key),
            OUTPUTS,
            differences,
        );
    };
    if expected.has("logits_alone") {
        // transformers scales rotary positions by the longest text of a batch; here each text's own
        // length decides, so a text has in company the logits that transformers gives it alone.
        same("logits_alone", &logits(model, &batch, &Identity));
        let alone: Vec<f32> = base
            .each_row()
            .flat_map(|row| logits(model, &row, &Identity))
            .collect();
        same("logits_alone", &alone);
        return;
    }
    same("logits", &logits(model, &batch, &Identity));
    same("loss", &values(loss(model, &batch, &Identity)));

    let layers = model.base().dimensions.layers;
    let states = States::default();
    let last = values(model.hidden(&batch.tokens(), &states).states);
    let States { entering, encoder } = states;
    let entering = entering.into_inner().expect("no holder of the lock panics");
    if let Some(encoder) = encoder.into_inner().expect("no holder of the lock panics") {
        same("encoder_states", &encoder);
    }
    assert_eq!(entering.len(), layers + 1);
    for (index, states) in entering.iter().take(layers).enumerate() {
        same(&format!("hidden_states/{index}"), states);
    }
    same(&format!("hidden_states/{layers}"), &last);
}

/// Keeps the states that enter each layer, and those that leave the last; of an encoder-decoder
/// also the encoder's output.
#[derive(Default)]
struct States {
    entering: Mutex<Vec<Vec<f32>>>,
    encoder: Mutex<Option<Vec<f32>>>,
}

impl Adapter for States {
    fn hidden(&self, _layer: usize, hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        let entering = self.entering.lock();
        entering
            .expect("no holder of the lock panics")
            .push(values(hidden.states.clone()));
        if let Some(encoder) = hidden.stream(ENCODER_STREAM) {
            let kept = self.encoder.lock();
            *kept.expect("no holder of the lock panics") = Some(values(encoder.states.clone()));
        }
        hidden
    }
}

/// Logits of each sequence, or of each token of a language model, virtual tokens left out.
pub(crate) fn logits(model: &Model, batch: &Batch, adapter: &dyn Adapter) -> Vec<f32> {
    let tokens = batch.tokens();
    let Some(head) = model.language_head() else {
        return values(model.logits(&tokens, adapter));
    };
    let hidden = model.hidden(&tokens, adapter);
    let data = match &tokens.decoder {
        Some(decoder) => &decoder.sequences,
        None => &tokens.sequences,
    };
    let ends = hidden.rows.boundaries()[1..].iter().zip(data.lengths());
    let real: Vec<usize> = ends.flat_map(|(&end, length)| end - length..end).collect();
    let real = hidden.select_rows(&real);
    let adapters = AdapterBatch::single(adapter, &tokens);
    values(head.forward(real.states, &real.rows, &adapters))
}

/// The mean loss, one value.
pub(crate) fn loss(model: &Model, batch: &Batch, adapter: &dyn Adapter) -> Tensor<1> {
    let loss = model.loss(&batch.tokens(), batch.targets(), 0.0, adapter);
    loss.expect("every golden batch has targets").mean
}

/// The values of a tensor, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .inner()
        .try_into_vec_as::<f32>()
        .expect("f32 on a device that can be read")
}
