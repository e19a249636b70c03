//! Full fine-tuning: every tensor of the base is trained.
//!
//! The baseline that all methods are compared with. Trains, changes and stores every value; the
//! file holds each tensor under its own name. Merging puts the trained tensors in place.

use epiphyte_models::Base;

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::parts::replace::{Replaced, count};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// Full fine-tuning has no settings.
    #[derive(Copy, Eq)]
    pub struct FullConfig {}
}

impl MethodConfig for FullConfig {
    const NAME: &'static str = "full";
    const PEFT_TYPE: &'static str = "FULL";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "every tensor of the base";
    const PAPER: &'static str = "the baseline";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-4;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        Ok(Box::new(Replaced::new(base, parameters, |_| true)))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(count(base, |_| true))
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}
