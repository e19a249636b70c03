//! Adapters that read the final states of a first pass before they act.

use std::sync::Mutex;

use burn::tensor::Tensor;
use epiphyte_models::adapter::FIRST_PASS;
use epiphyte_models::{Adapter, AdapterBatch, Entry, ForwardContext, Hidden, Identity, Mode};

use crate::support::{TestBatch, models, to_vec};

/// Doubles the states that enter every layer, and notes what it reads of the base's final states.
#[derive(Default)]
struct ReadsBase(Mutex<Vec<Vec<f32>>>);

impl Adapter for ReadsBase {
    fn hidden(&self, _layer: usize, hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        let base = hidden.stream(FIRST_PASS).expect("the stream travels on");
        assert_eq!(base.rows.tokens(), base.states.dims()[0]);
        self.0.lock().unwrap().push(to_vec(base.states.clone()));
        hidden.with(hidden.states.clone() * 2.0)
    }

    fn first_pass(&self) -> Option<&dyn Adapter> {
        Some(&Identity)
    }
}

#[test]
fn the_base_stream_holds_the_bases_own_final_states_in_every_layer() {
    for on in models() {
        let batch = TestBatch::new(&on.model, None);
        let base = to_vec(on.model.hidden(&batch.tokens(), &Identity).states);
        let adapter = ReadsBase::default();
        let own = to_vec(on.model.hidden(&batch.tokens(), &adapter).states);
        assert_ne!(own, base, "{}", on.name);
        let read = adapter.0.into_inner().unwrap();
        assert_eq!(read, vec![base; on.model.layers() + 1], "{}", on.name);
    }
}

/// Beside an adapter that needs no pass of the base, each keeps its own.
#[test]
fn the_base_stream_belongs_to_its_adapter_alone() {
    for on in models() {
        let batch = TestBatch::new(&on.model, None);
        let tokens = batch.tokens();
        let base = to_vec(on.model.hidden(&tokens, &Identity).states);
        let reading = ReadsBase::default();
        let own = to_vec(on.model.hidden(&tokens, &reading).states);
        let reading = ReadsBase::default();
        let adapters: [&dyn Adapter; 3] = [&Identity, &reading, &Identity];
        let entries = adapters.map(|adapter| Entry {
            adapter,
            tokens: &tokens,
            mode: Mode::Evaluation,
            streams: &[],
        });
        let hidden = entries.iter().enumerate();
        let hidden: Vec<Hidden> = hidden
            .map(|(number, entry)| on.model.embed(entry).owned_by(number))
            .collect();
        let batch = AdapterBatch::new(entries);
        let hidden = Hidden::concat(&hidden);
        let hidden = on.model.run(0..on.model.layers(), hidden, None, &batch);
        let states: Tensor<2> = on.model.finish(hidden, &batch).states;
        assert_eq!(
            to_vec(states),
            [&base[..], &own, &base].concat(),
            "{}",
            on.name
        );
        let read = reading.0.into_inner().unwrap();
        assert_eq!(read, vec![base; on.model.layers() + 1], "{}", on.name);
    }
}
