//! Starts of LoRA that the training data decides.

use std::collections::BTreeMap;
use std::sync::Mutex;

use burn::tensor::{Device, Tensor};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, ForwardContext, Site};
use epiphyte_ops::FrozenMatrix;

use super::{LoraInit, LoraModel, weight_name};
use crate::MethodError;
use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::parameters::{Param, ParameterSet};
use crate::parts::low_rank_start::{Pair, to_vec};
use crate::parts::replace::Replaced;
use crate::parts::svd::eigenvectors;

/// How many training examples are run for a start that they decide; CorDA's authors name 256.
const START_EXAMPLES: usize = 256;

impl LoraModel {
    /// The weights of the targets whose start the data decides.
    fn weights(base: &Base, paths: &BTreeMap<String, (usize, f64)>) -> Vec<(String, FrozenMatrix)> {
        let weights = paths.keys().filter_map(|path| {
            let name = weight_name(base, path);
            Some((path.clone(), base.tensor(&name)?.matrix()?.clone()))
        });
        weights.collect()
    }

    /// Sums of `xᵀ x` over the inputs of each target, `[in, in]`, and their number.
    fn inputs(&self, data: &mut dyn CalibrationData) -> Result<Inputs, MethodError> {
        let inputs = Inputs {
            paths: self.sources.keys().cloned().collect(),
            divides: self.config.init_lora_weights == LoraInit::Corda,
            sums: Mutex::default(),
        };
        data.forward(START_EXAMPLES.min(data.examples()), &inputs)?;
        Ok(inputs)
    }

    /// The mean gradients of the targets' weights, `[out, in]`.
    fn gradients(
        &self,
        base: &Base,
        data: &mut dyn CalibrationData,
    ) -> Result<BTreeMap<String, Tensor<2>>, MethodError> {
        let names = self
            .sources
            .keys()
            .map(|path| (path, weight_name(base, path)));
        let names: Vec<(&String, String)> = names.collect();
        let mut parameters = ParameterSet::new(&device_of(base), 0);
        let with_keys = names.iter().map(|(_, name)| (&**name, name.clone()));
        let mut with_keys: Vec<(&str, String)> = with_keys.collect();
        with_keys.dedup();
        let weights = Replaced::with_keys(with_keys, base, &mut parameters);
        parameters.track(true);
        let params: Vec<Param> = weights.params().cloned().collect();
        let mut sums: BTreeMap<String, Tensor<1>> = BTreeMap::new();
        let examples = START_EXAMPLES.min(data.examples());
        let mut calls = 0;
        data.gradients(examples, Each::Batch, &params, &weights, &mut |gradients| {
            calls += 1;
            for param in &params {
                if let Some(gradient) = gradients.get(param) {
                    let gradient = gradient.clone();
                    let sum = match sums.remove(param.key()) {
                        Some(sum) => sum + gradient,
                        None => gradient,
                    };
                    sums.insert(param.key().to_owned(), sum);
                }
            }
        })?;
        let means = names.into_iter().filter_map(|(path, name)| {
            let mean = sums.get(&name)?.clone() / f64::from(calls.max(1));
            let tensor = base.with_values(&name, mean);
            Some((path.clone(), tensor.tensor(&name)?.to_matrix()?))
        });
        Ok(means.collect())
    }

    /// Sets the start of a target.
    fn start(&self, path: &str, pair: Pair) {
        let Some(lora) = self.layers.linears.get(path) else {
            return;
        };
        lora.a.set_values(to_vec(pair[0].clone()));
        lora.b.set_values(to_vec(pair[1].clone()));
        if let Some(taken) = &lora.taken {
            taken.set(pair);
        }
    }

    /// Sets the starts of all targets, if the data decides them.
    pub(super) fn start_from(&self, data: &mut dyn CalibrationData) -> Result<(), MethodError> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let weights = Self::weights(base, &self.sources);
        if self.config.init_lora_weights == LoraInit::LoraGa {
            let settings = self.config.lora_ga_config.clone().unwrap_or_default();
            let mut gradients = self.gradients(base, data)?;
            for (path, weight) in weights {
                let (rank, scaling) = self.sources[&path];
                if let Some(gradient) = gradients.remove(&path) {
                    let key = self.seed ^ name_id(&path);
                    let pair = settings.pair(gradient, &weight, rank, (scaling, key));
                    self.start(&path, pair);
                }
            }
            return Ok(());
        }
        let inputs = self.inputs(data)?.sums.into_inner();
        let mut inputs = inputs.expect("no holder of the lock panics");
        for (path, weight) in weights {
            let (rank, scaling) = self.sources[&path];
            let Some((sum, count)) = inputs.remove(&path) else {
                continue;
            };
            if self.config.init_lora_weights == LoraInit::Corda {
                let settings = self.config.corda_config.clone().unwrap_or_default();
                self.start(
                    &path,
                    settings.pair(&(sum / count as f64), &weight, rank, scaling),
                );
            } else if let Some(lora) = self.layers.linears.get(&path) {
                let [size, _] = sum.dims();
                let rows = to_vec(sum);
                let rows = rows.chunks(size);
                let rows = rows.map(|row| row.iter().copied().map(f64::from).collect());
                let (_, vectors) = eigenvectors(rows.collect());
                let first = vectors.into_iter().take(rank).flatten();
                lora.a.set_values(first.map(|value| value as f32).collect());
            }
        }
        Ok(())
    }
}

/// Where the tensors of a base are.
fn device_of(base: &Base) -> Device {
    base.word_embedding_table().device().clone()
}

/// Collects the inputs of linear layers.
#[derive(Debug)]
struct Inputs {
    paths: Vec<String>,
    /// Whether the inputs of each text are divided by their largest value, as in CorDA.
    divides: bool,
    sums: Mutex<BTreeMap<String, (Tensor<2>, usize)>>,
}

impl Adapter for Inputs {
    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        if !self.paths.contains(&site.path) {
            return x;
        }
        let mut sums = self.sums.lock().expect("no holder of the lock panics");
        for ends in cx
            .rows
            .boundaries()
            .windows(2)
            .filter(|ends| ends[0] < ends[1])
        {
            let mut own = x.clone().inner().narrow(0, ends[0], ends[1] - ends[0]);
            if self.divides {
                let largest = own.clone().max().into_scalar::<f32>().abs();
                own = own / largest.max(f32::MIN_POSITIVE);
            }
            let square = own.clone().transpose().matmul(own);
            let (sum, count) = match sums.remove(&site.path) {
                Some((sum, count)) => (sum + square, count + 1),
                None => (square, 1),
            };
            sums.insert(site.path.clone(), (sum, count));
        }
        x
    }
}
