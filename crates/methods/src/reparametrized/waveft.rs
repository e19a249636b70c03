//! WaveFT: a weight's change is the inverse wavelet transform of a few trained coefficients.
//!
//! Bilican, Yılmaz, Tekalp, Cinbiş, "Exploring Sparsity for Parameter Efficient Fine Tuning Using
//! Wavelets", 2025, arXiv 2505.12532; the transform and its order of quadrants are HF PEFT's code.
//!
//! `y = x Wᵀ + b + x ΔWᵀ` with `ΔW = s T(F)`, where F: `[out, in]` is zero but for n trained
//! coefficients, whose places are drawn as HF PEFT draws them from `random_loc_seed`, and T is one
//! level of an inverse wavelet transform with filters of length L, or nothing without `use_idwt`. F
//! stands in the middle of a grid that is `L - 2` larger, and one more where that is odd. The
//! grid's quadrants are coefficients of lowpass filters (top left), of the highpass filter along
//! rows (top right), along columns (bottom left) and along both. A coefficient at `(i, j)` of its
//! quadrant adds `f[k] g[l]` at `(2 i + k - L + 2, 2 j + l - L + 2)`, for the filters f and g of
//! the two directions; the result is cut to the weight's size from its middle. Coefficients start
//! at zero, so nothing changes at first. `ΔW` is computed once a step.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ n` over the targets |
//! | changes | `Σ in · out` |
//! | file | `<path>.waveft_spectrum` `[n]` |
//! | merges | `W + ΔW` |
//!
//! Of `proportional_parameters`, n of a layer is its share of `n_frequency` for each, by size.

use std::collections::HashMap;

use burn::tensor::Tensor;
use epiphyte_models::{Base, LinearInfo};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets, check_keys, first_match};
use crate::parts::delta::{Change, Deltas};
use crate::parts::spectrum::{SparseMap, Term, check_count, places};
use crate::parts::start::Start;
use crate::parts::wavelets::{highpass, lowpass, names};

crate::settings! {
    /// The settings of WaveFT, under HF PEFT's names.
    pub struct WaveFtConfig {
        /// Trained coefficients of a layer.
        n_frequency: usize = 2592, in AtLeastOne;
        /// Scale of the update.
        scaling: f64 = 25.0, flag "spectrum-scaling", in SinglePrecision;
        /// Wavelet: db1 to db10, sym2 to sym10, or coif1 to coif3.
        wavelet_family: String = "db1".to_owned(), flag "wavelet";
        /// Transform the coefficients; without, they are entries of the update.
        use_idwt: bool = true, as Boolean;
        /// Seed of the coefficients' places, apart from the run's.
        random_loc_seed: u64 = 777;
        /// Other numbers of coefficients for some modules: name=number,... where a name is a
        /// regular expression for the end of the path and the first match wins.
        n_frequency_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Share the coefficients of all layers among them by their sizes.
        proportional_parameters: bool = false;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

impl WaveFtConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its number of coefficients.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        let targets = self.selection().of(base)?;
        let size = |linear: &LinearInfo| linear.inputs * linear.outputs;
        let whole: usize = targets.iter().copied().map(size).sum();
        let budget = (self.n_frequency * targets.len()) as f64;
        let targets = targets.into_iter().map(|linear| {
            let path = &linear.site.path;
            let count = match self.proportional_parameters {
                true => {
                    let share = size(linear) as f64 / whole as f64;
                    (share * budget).round_ties_even().max(1.0) as usize
                }
                false => first_match(Self::NAME, &self.n_frequency_pattern, path)?
                    .unwrap_or(self.n_frequency),
            };
            check_count(Self::NAME, ("n_frequency", count), count, linear, base)?;
            Ok((linear, count))
        });
        targets.collect()
    }

    /// The lowpass filter.
    fn filter(&self) -> Result<&'static [f64], MethodError> {
        lowpass(&self.wavelet_family).ok_or_else(|| MethodError::Value {
            method: Self::NAME,
            key: "wavelet_family",
            value: self.wavelet_family.clone(),
            expected: format!(
                "HF PEFT has working filters for {} only",
                names().collect::<Vec<_>>().join(", ")
            ),
        })
    }

    /// What each coefficient adds to a weight of this size.
    fn map(
        &self,
        size: [usize; 2],
        count: usize,
        parameters: &ParameterSet,
    ) -> Result<SparseMap, MethodError> {
        let places = places(size, count, self.random_loc_seed);
        if !self.use_idwt {
            let places = places.into_iter().map(|place| place as i32).collect();
            return Ok(SparseMap::at(size, places, parameters.device()));
        }
        let low = self.filter()?;
        let high = highpass(low);
        let filter = |is_low: bool| if is_low { low } else { &high };
        let [rows, columns] = size.map(|size| Side::new(size, low.len()));
        let mut terms: Vec<Term> = Vec::new();
        for (value, place) in places.into_iter().enumerate() {
            let (row, is_top) = rows.in_half(place / size[1]);
            let (column, is_left) = columns.in_half(place % size[1]);
            // The quadrant's half along one side chooses the filter of the other.
            let along_rows = rows.spread(row, filter(is_left));
            for (row, factor) in along_rows {
                let along_columns = columns.spread(column, filter(is_top));
                let of_row =
                    along_columns.map(|(column, it)| (value, row * size[1] + column, factor * it));
                terms.extend(of_row);
            }
        }
        Ok(SparseMap::of(size, &terms, parameters.device()))
    }
}

/// One side of the grid of coefficients.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// Size of the weight.
    size: usize,
    /// Where the spectrum begins in the grid.
    offset: usize,
    /// Size of a quadrant.
    half: usize,
    /// What is cut from the transform at its beginning: `L - 2`, and what exceeds the weight.
    cut: usize,
}

impl Side {
    fn new(size: usize, filter: usize) -> Self {
        let grid = (size + filter - 2).next_multiple_of(2);
        Self {
            size,
            offset: (grid - size) / 2,
            half: grid / 2,
            // The transform has `grid + 2 - L` values, of which the middle ones count.
            cut: filter - 2 + (grid + 2 - filter - size) / 2,
        }
    }

    /// A place of the spectrum as one of its half of the grid, and whether that is the first.
    fn in_half(self, place: usize) -> (usize, bool) {
        let place = place + self.offset;
        (place % self.half, place < self.half)
    }

    /// Where a coefficient's filter adds what, inside of the weight.
    fn spread(self, place: usize, filter: &[f64]) -> impl Iterator<Item = (usize, f64)> {
        let at = filter.iter().enumerate();
        at.filter_map(move |(shift, factor)| {
            let place = (2 * place + shift).checked_sub(self.cut)?;
            (place < self.size).then_some((place, *factor))
        })
    }
}

impl MethodConfig for WaveFtConfig {
    const NAME: &'static str = "waveft";
    const PEFT_TYPE: &'static str = "WAVEFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "wavelet coefficients of changes of chosen linear layers";
    const PAPER: &'static str = "Bilican et al. 2025, arXiv 2505.12532";
    const CLAIMS: Option<crate::Claims> =
        Some(crate::Claims::paper("HF PEFT's documentation", "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "n_frequency": 40, "spectrum_scaling": 3 }),
            json!({
                "n_frequency": 30, "wavelet": "coif1", "spectrum_scaling": 3,
                "proportional_parameters": true, "target_modules": "all-linear",
            }),
            json!({
                "n_frequency": 20, "use_idwt": false, "init_weights": "random",
                "spectrum_scaling": 3,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?;
        let mut maps = HashMap::new();
        for (linear, count) in &targets {
            let size = [linear.outputs, linear.inputs];
            if let std::collections::hash_map::Entry::Vacant(e) = maps.entry((size, *count)) {
                e.insert(self.map(size, *count, parameters)?);
            }
        }
        let deltas = targets.into_iter().map(|(linear, count)| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let size = [linear.outputs, linear.inputs];
            let init = self.init_weights;
            let init = init.choose(Init::Zeros, Init::Normal { std: 0.01 });
            let spectrum = parameters.declare(key("waveft_spectrum"), &[count], init);
            let (map, scale) = (maps[&(size, count)].clone(), self.scaling);
            let change = parameters.derived(key("waveft_change"), &size, move || {
                map.apply(spectrum.flat() * scale)
            });
            (linear, WaveFt(change))
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection();
        selection.check_start(base)?;
        let (pattern, targets) = (&self.n_frequency_pattern, selection.of(base)?);
        check_keys(Self::NAME, "n_frequency_pattern", pattern, &targets)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self
            .targets(base)?
            .into_iter()
            .map(|(_, count)| count)
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// `ΔW`, `[out, in]`, of one linear layer.
#[derive(Debug)]
struct WaveFt(Param);

impl Change for WaveFt {
    fn matrix(&self) -> Tensor<2> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, distance, module, set_random};

    /// An orthogonal transform keeps lengths; that of the shortest wavelet needs no larger grid.
    #[test]
    fn the_change_is_as_long_as_its_coefficients() {
        let model = bert();
        let settings = json!({ "n_frequency": 30, "spectrum_scaling": 2 });
        let module = module(&model, "waveft", settings);
        let path = "bert.encoder.layer.0.attention.self.query";
        let spectrum = set_random(&module, &format!("{path}.waveft_spectrum"));
        module.parameters().derive(false);
        let change = module
            .parameters()
            .get(&format!("{path}.waveft_change"))
            .unwrap();
        let length = |values: &[f32]| values.iter().map(|it| it * it).sum::<f32>().sqrt();
        let change = length(&change.to_vec());
        assert!((change - 2.0 * length(&spectrum)).abs() < 1e-4, "{change}");
        assert!(distance(&spectrum, &[0.0; 30]) > 0.0);
    }

    #[test]
    fn counts_are_the_coefficients() {
        assert_eq!(bert_base_count("waveft", json!({}), 0), 24 * 2592);
        let shares = json!({
            "proportional_parameters": true, "n_frequency": 100,
            "target_modules": ["query", "intermediate.dense"],
        });
        assert_eq!(bert_base_count("waveft", shares, 0), 12 * (40 + 160));
    }

    #[test]
    fn wavelets_without_working_filters_are_refused_by_name() {
        let settings = json!({ "n_frequency": 30, "wavelet": "coif5" });
        let settings = settings.as_object().unwrap().clone();
        let config = crate::by_name("waveft")
            .unwrap()
            .configure(settings)
            .unwrap();
        let device = burn::tensor::Device::default();
        let module = crate::AdapterModule::new(config, bert().base(), &device, 0);
        let error = module.unwrap_err().to_string();
        assert!(
            error.contains("`wavelet_family` is coif5") && error.contains("db10"),
            "{error}"
        );
    }
}
