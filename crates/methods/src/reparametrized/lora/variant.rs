//! What LoRA's variants take from it: targets with rank and scaling, layers, counts and checks.

use epiphyte_models::{Base, LinearInfo};

use super::{LoraConfig, LoraInit, written_init};
use crate::MethodError;
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::low_rank::LowRankLayers;
use crate::parts::replace::Replaced;

impl LoraConfig {
    /// The targets, each with its rank and scaling; `method` is the method of LoRA's kind whose
    /// settings these are.
    pub(crate) fn targets<'b>(
        &self,
        method: &'static str,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, f64)>, MethodError> {
        self.scaled(method, self.selection(method).of(base)?)
    }

    /// The initial values of a target's `A` that starts without reading the weight.
    pub(crate) fn initial_a(&self, linear: &LinearInfo, rank: usize) -> Init {
        match self.init_lora_weights {
            LoraInit::Gaussian => Init::Normal {
                std: 1.0 / rank as f64,
            },
            _ => Init::Uniform {
                bound: 1.0 / (linear.inputs as f64).sqrt(),
            },
        }
    }

    /// The layers of a variant of LoRA whose delta of a linear layer `build` returns.
    pub(crate) fn layers<D: Delta>(
        &self,
        method: &'static str,
        base: &Base,
        parameters: &mut ParameterSet,
        mut build: impl FnMut(&LinearInfo, (usize, f64), &mut ParameterSet) -> D,
    ) -> Result<LowRankLayers<D>, MethodError> {
        let targets = self.targets(method, base)?;
        let linears = targets
            .iter()
            .map(|&(linear, rank, scaling)| (linear, build(linear, (rank, scaling), parameters)));
        let linears = Deltas::new(base, linears.collect::<Vec<_>>());
        let names = self.whole.names(base, &Self::wraps(&targets, None));
        Ok(LowRankLayers {
            linears,
            words: None,
            whole: Replaced::with_keys(names, base, parameters),
        })
    }

    /// How many values a variant of LoRA trains on `base`; `of_linear` are those of a linear layer.
    pub(crate) fn count_of(
        &self,
        method: &'static str,
        base: &Base,
        of_linear: impl Fn(&LinearInfo, usize) -> usize,
    ) -> Result<usize, MethodError> {
        let targets = self.targets(method, base)?;
        let own = targets
            .iter()
            .map(|(linear, rank, _)| of_linear(linear, *rank));
        Ok(own.sum::<usize>() + self.whole.count(base, &Self::wraps(&targets, None)))
    }

    /// As [`MethodConfig::check_start`], for the method of LoRA's kind whose settings these are.
    pub(crate) fn check_start_as(
        &self,
        method: &'static str,
        base: &Base,
    ) -> Result<(), MethodError> {
        let selection = self.selection(method);
        selection.check_start(base)?;
        self.check_patterns(method, &selection.of(base)?, None, base)
    }

    /// The settings with the target modules that are left to the base, for the file.
    pub(crate) fn resolved_as(&self, method: &'static str, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection(method).targets(base)),
            ..self.clone()
        }
    }

    /// Checks that the file's two matrices are the whole change of the base.
    pub(crate) fn check_plain_base(&self) -> Result<(), String> {
        let init = self.init_lora_weights;
        let takes = matches!(init, LoraInit::Pissa | LoraInit::Olora) || init.is_stored_plain();
        match takes || self.lora_bias {
            false => Ok(()),
            true => Err(format!(
                "with init_lora_weights = {} or lora_bias the two matrices are not the whole \
                 change; convert it to plain LoRA first, with HF PEFT: save_pretrained(..., \
                 path_initial_model_for_weight_conversion=...)",
                written_init(init)
            )),
        }
    }

    /// Checks the settings that not every variant of LoRA has: starts that read the weight, and
    /// the bias of B. Beside kaiming and gaussian, a variant may have some starts.
    pub(crate) fn check_variant(
        &self,
        method: &'static str,
        starts: &[LoraInit],
    ) -> Result<(), MethodError> {
        let init = self.init_lora_weights;
        let plain = [LoraInit::Kaiming, LoraInit::Gaussian, LoraInit::Eva];
        let (key, value) = match plain.contains(&init) || starts.contains(&init) {
            false => ("init_lora_weights", written_init(init)),
            true if self.lora_bias => ("lora_bias", "true".to_owned()),
            true => return Ok(()),
        };
        Err(MethodError::Value {
            method,
            key,
            value,
            expected: "that is a setting of plain LoRA only; leave it out".to_owned(),
        })
    }
}
