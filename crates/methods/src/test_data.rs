//! What unit tests of methods share: a small model, made-up gradients, a file in memory.

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, HeadKind, Model, ModelConfig, random_model};
use epiphyte_ops::random;
use serde_json::json;

use crate::{
    CalibrationData, Each, Gradients, MethodError, Param, Stored, StoredTensors, StoredValues,
};

/// A BERT of hidden size 16 with two layers and a head for three classes.
pub(crate) fn model() -> Model {
    let config = json!({
        "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
    });
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
    let head = HeadKind::Classification { labels: 3 };
    let model = random_model(
        &config.unwrap(),
        head,
        &Device::default(),
        Default::default(),
        0,
    );
    model.unwrap()
}

/// Gradients of one example, drawn at random from its number and the parameters' keys.
pub(crate) fn gradients(params: &[Param], example: u64) -> Gradients {
    let mut gradients = Gradients::new();
    for param in params {
        let values = random::normal(name_id(param.key()) ^ example, param.count(), 1.0);
        let data = TensorData::new(values, [param.count()]);
        gradients.add(param, Tensor::from_data(data, &Device::default()));
    }
    gradients
}

/// Moves every value at random.
pub(crate) fn move_all<'p>(params: impl Iterator<Item = &'p Param>) {
    for param in params {
        let noise = random::normal(name_id(param.key()) ^ 77, param.count(), 0.1);
        let moved = param.to_vec().into_iter().zip(noise);
        param.set_values(moved.map(|(value, noise)| value + noise).collect());
    }
}

/// Calibration data whose gradients are [`gradients`].
#[derive(Debug, Default)]
pub(crate) struct Examples {
    /// The number of examples.
    pub(crate) count: usize,
    /// Whether they come in reversed order.
    pub(crate) reversed: bool,
}

impl CalibrationData for Examples {
    fn examples(&self) -> usize {
        self.count
    }

    fn forward(&mut self, _examples: usize, _adapter: &dyn Adapter) -> Result<(), MethodError> {
        Ok(())
    }

    fn forward_text(&mut self, _ids: &[u32], _adapter: &dyn Adapter) -> Result<(), MethodError> {
        Ok(())
    }

    fn gradients(
        &mut self,
        examples: usize,
        each: Each,
        params: &[Param],
        _adapter: &dyn Adapter,
        see: &mut dyn FnMut(&Gradients),
    ) -> Result<(), MethodError> {
        assert_eq!(each, Each::Example);
        for number in 0..examples as u64 {
            let example = match self.reversed {
                true => examples as u64 - 1 - number,
                false => number,
            };
            see(&gradients(params, example));
        }
        Ok(())
    }
}

/// Stored tensors in memory; what is taken is gone.
#[derive(Debug)]
pub(crate) struct StoredList(pub(crate) Vec<Stored>);

impl StoredList {
    fn remove(&mut self, key: &str) -> Option<Stored> {
        let place = self.0.iter().position(|stored| stored.key == key)?;
        Some(self.0.remove(place))
    }
}

impl StoredTensors for StoredList {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let stored = self.0.iter().find(|stored| stored.key == key)?;
        Some(stored.shape.clone())
    }

    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        match self.remove(key) {
            Some(Stored {
                shape: found,
                values: StoredValues::F32(values),
                ..
            }) => {
                assert_eq!(found, shape, "{key}");
                Ok(Some(values))
            }
            other => panic!("{key}: {other:?}"),
        }
    }

    fn take_indices(&mut self, key: &str) -> Result<Option<Vec<i32>>, MethodError> {
        match self.remove(key) {
            Some(Stored {
                values: StoredValues::Integers(_, values),
                ..
            }) => Ok(Some(values.into_iter().map(|value| value as i32).collect())),
            other => panic!("{key}: {other:?}"),
        }
    }

    fn take_integers(
        &mut self,
        key: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<i64>>, MethodError> {
        match self.remove(key) {
            Some(Stored {
                shape: found,
                values: StoredValues::Integers(_, values),
                ..
            }) => {
                assert_eq!(found, shape, "{key}");
                Ok(Some(values))
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}
