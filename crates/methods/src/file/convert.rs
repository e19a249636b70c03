//! Changes of a base's weights as LoRA, whatever made them: the first singular vectors of each.
//!
//! A linear layer that changes from `W` to `W + D` gets `A = Vᵀ [r, in]` and `B = U σ [out, r]`
//! of `D = U σ Vᵀ` with scaling 1, as HF PEFT's `convert_to_lora` has it: the nearest matrix of
//! rank r. The rank is a number, or follows from a share of `Σ σ²` that each layer keeps. A bias
//! that changes is the bias of B (`lora_bias`), exactly. Nothing else of a base has a place in
//! LoRA.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::{Base, LinearInfo};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::framework::method::MethodConfig;
use crate::parts::low_rank_start::to_vec;
use crate::parts::svd::Svd;
use crate::registry::by_name;
use crate::reparametrized::lora::LoraConfig;
use crate::{AdapterModule, MethodError};

/// How the rank of each layer is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankRule {
    /// The same for all.
    Fixed(usize),
    /// The smallest that keeps this share of the squares of the singular values.
    Energy(f64),
}

impl FromStr for RankRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "use a whole number for the rank, or a share of the change between 0 and 1";
        match (text.parse::<usize>(), text.parse::<f64>()) {
            (Ok(rank @ 1..), _) => Ok(Self::Fixed(rank)),
            (_, Ok(share)) if share > 0.0 && share < 1.0 => Ok(Self::Energy(share)),
            _ => Err(expected.to_owned()),
        }
    }
}

impl fmt::Display for RankRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(rank) => write!(f, "{rank}"),
            Self::Energy(share) => write!(f, "{share}"),
        }
    }
}

/// What became of one linear layer.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertedLayer {
    /// Its path.
    pub path: String,
    /// The rank of its LoRA.
    pub rank: usize,
    /// The norm of what is lost of its change, over the norm of the change.
    pub relative_error: f64,
}

/// What became of all.
#[derive(Clone, Debug, Serialize)]
pub struct Conversion {
    /// The layers.
    pub layers: Vec<ConvertedLayer>,
    /// The norm of what is lost of all changes, over their norm.
    pub relative_error: f64,
}

/// The two matrices of a layer, and the change of its bias.
struct Pair {
    a: Tensor<2>,
    b: Tensor<2>,
    bias: Option<Vec<f32>>,
}

/// For each tensor's name the difference from the base, in the order in which Hugging Face stores
/// it; none where the tensor stays.
pub type ChangeOf<'a> = dyn Fn(&str) -> Result<Option<Vec<f32>>, MethodError> + 'a;

/// LoRA over `base` that changes its tensors as `change` says, or nearly so.
///
/// # Errors
/// [`MethodError::NotLora`] if something changes that LoRA has no place for, or nothing does;
/// [`MethodError::Value`] for a rank that a layer does not have; what `change` returns.
pub fn to_lora(
    base: &Base,
    device: &Device,
    rule: RankRule,
    change: &ChangeOf<'_>,
) -> Result<(AdapterModule, Conversion), MethodError> {
    let linears: BTreeMap<&str, &LinearInfo> = base
        .linears()
        .iter()
        .map(|linear| (linear.site.path.as_str(), linear))
        .collect();
    let mut pairs: BTreeMap<&str, Pair> = BTreeMap::new();
    let mut biases: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    let mut layers = Vec::new();
    let mut others = Vec::new();
    let (mut lost, mut whole) = (0.0, 0.0);
    let names = base.tensors().keys().cloned().chain(base.tied_head());
    for name in names.filter(|name| !base.is_of_head(name)) {
        let is_zero = |values: &Vec<f32>| values.iter().all(|value| *value == 0.0);
        let Some(values) = change(&name)?.filter(|values| !is_zero(values)) else {
            continue;
        };
        let (path, parameter) = name.rsplit_once('.').unwrap_or(("", &name));
        let linear = linears.get_key_value(path);
        let tensor = base.tensor(&name);
        match (linear, parameter, tensor) {
            (Some((path, _)), "bias", _) => {
                biases.insert(path, values);
            }
            (Some((path, linear)), "weight", Some(tensor)) => {
                let count = values.len();
                let flat = Tensor::from_data(TensorData::new(values, [count]), &Device::flex());
                let matrix = tensor.unflatten(flat).expect("a linear layer has a matrix");
                let svd = Svd::new(matrix);
                let rank = rule.rank(linear, &svd.values)?;
                let squares = |values: &[f64]| values.iter().map(|it| it * it).sum::<f64>();
                let (own_lost, own) = (squares(&svd.values[rank..]), squares(&svd.values));
                lost += own_lost;
                whole += own;
                layers.push(ConvertedLayer {
                    path: (*path).to_owned(),
                    rank,
                    relative_error: (own_lost / own).sqrt(),
                });
                let pair = Pair {
                    a: svd.right(0..rank, 0.0),
                    b: svd.left(0..rank, 1.0),
                    bias: None,
                };
                pairs.insert(path, pair);
            }
            _ => others.push(name),
        }
    }
    if !others.is_empty() {
        let shown = others.iter().take(3).map(|name| format!("`{name}`"));
        let shown = shown.collect::<Vec<_>>().join(", ");
        let rest = match others.len() {
            0..=3 => String::new(),
            count => format!(" and {} more", count - 3),
        };
        return Err(MethodError::NotLora {
            reason: format!(
                "{shown}{rest} change too, and LoRA changes the weights and biases of linear layers: \
                 convert to a delta, or merge"
            ),
        });
    }
    for (path, bias) in biases {
        let linear = linears[path];
        let pair = pairs.entry(path).or_insert_with(|| Pair {
            a: Tensor::zeros([1, linear.inputs], &Device::flex()),
            b: Tensor::zeros([linear.outputs, 1], &Device::flex()),
            bias: None,
        });
        pair.bias = Some(bias);
    }
    if pairs.is_empty() {
        return Err(MethodError::NotLora {
            reason: "no tensor of the base changes".to_owned(),
        });
    }
    let definition = by_name(LoraConfig::NAME)?;
    let config = definition.configure(settings(base, &pairs))?;
    let module = AdapterModule::new(config, base, device, 0)?;
    for param in module.parameters().stored() {
        let (path, end) = param.key().split_once(".lora_").unwrap_or_default();
        let values = match (pairs.get(path), end) {
            (Some(pair), "A.weight") => to_vec(pair.a.clone()),
            (Some(pair), "B.weight") => to_vec(pair.b.clone()),
            (Some(Pair { bias, .. }), "B.bias") => {
                let zeros = || vec![0.0; param.count()];
                bias.clone().unwrap_or_else(zeros)
            }
            _ => unreachable!("LoRA has no such tensor: {}", param.key()),
        };
        param.set_values(values);
    }
    module.parameters().derive(false);
    let relative_error = if whole > 0.0 {
        (lost / whole).sqrt()
    } else {
        0.0
    };
    let conversion = Conversion {
        layers,
        relative_error,
    };
    Ok((module, conversion))
}

impl RankRule {
    /// The rank of a layer whose change has these singular values.
    fn rank(self, linear: &LinearInfo, values: &[f64]) -> Result<usize, MethodError> {
        match self {
            Self::Fixed(rank) if rank > values.len() => Err(MethodError::Value {
                method: LoraConfig::NAME,
                key: "rank",
                value: rank.to_string(),
                expected: format!(
                    "`{}` has rank {} at most: choose that or less",
                    linear.site.path,
                    values.len()
                ),
            }),
            Self::Fixed(rank) => Ok(rank),
            Self::Energy(share) => {
                let total: f64 = values.iter().map(|value| value * value).sum();
                let mut sum = 0.0;
                let reached = values.iter().position(|value| {
                    sum += value * value;
                    sum >= share * total
                });
                Ok(reached.map_or(values.len(), |at| at + 1))
            }
        }
    }
}

/// The settings of LoRA with these matrices.
fn settings(base: &Base, pairs: &BTreeMap<&str, Pair>) -> Map<String, Value> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let is_whole = |name: &str| {
        let all = base
            .linears()
            .iter()
            .map(|linear| linear.site.path.as_str());
        all.filter(|path| last(path) == name)
            .all(|path| pairs.contains_key(path))
    };
    // Names where all of a name are meant, paths for the others.
    let targets: BTreeSet<String> = pairs
        .keys()
        .map(|path| match is_whole(&last(path)) {
            true => last(path),
            false => path.strip_prefix(base.prefix).unwrap_or(path).to_owned(),
        })
        .collect();
    let rank = |pair: &Pair| pair.a.dims()[0];
    let most = pairs.values().map(rank).max().unwrap_or(1);
    let others = pairs.iter().filter(|(_, pair)| rank(pair) != most);
    let pattern = others.map(|(path, pair)| {
        let path = path.strip_prefix(base.prefix).unwrap_or(path);
        (path.replace('.', "\\."), json!(rank(pair)))
    });
    let pattern: Map<String, Value> = pattern.collect();
    let settings = json!({
        "r": most,
        "lora_alpha": most,
        "target_modules": targets,
        "rank_pattern": pattern.clone(),
        "alpha_pattern": pattern,
        "lora_bias": pairs.values().any(|pair| pair.bias.is_some()),
    });
    match settings {
        Value::Object(settings) => settings,
        _ => Map::new(),
    }
}

/// An adapter as LoRA over the same base, with the task's head and the modules that it saved whole.
///
/// # Errors
/// As [`to_lora`]; [`MethodError::NotMergeable`] for methods that change more than weights.
pub fn adapter_to_lora(
    module: AdapterModule,
    base: &Base,
    device: &Device,
    rule: RankRule,
) -> Result<(AdapterModule, Conversion), MethodError> {
    let (_, settings) = module.stored_whole();
    let bias = settings.get("bias").filter(|bias| **bias != json!("none"));
    if let Some(bias) = bias {
        return Err(MethodError::NotLora {
            reason: format!(
                "`bias` is {bias}: biases of the base are saved with it; merge it instead"
            ),
        });
    }
    let whole: BTreeSet<&str> = module.whole().collect();
    let (lora, conversion) = to_lora(base, device, rule, &|name| {
        // What the file has whole stays so, unless the method acts on it too.
        if whole.contains(name) && module.method().merged(name, base)?.is_none() {
            return Ok(None);
        }
        change(&module, base, name)
    })?;
    drop(whole);
    Ok((module.with_method_of(lora), conversion))
}

/// What an adapter adds to the base's tensor `name`, in the order in which Hugging Face stores it;
/// none where it stays.
///
/// # Errors
/// [`MethodError::NotMergeable`].
pub fn change(
    module: &AdapterModule,
    base: &Base,
    name: &str,
) -> Result<Option<Vec<f32>>, MethodError> {
    let Some(merged) = module.merged(name, base)? else {
        return Ok(None);
    };
    let merged = merged.inner().try_into_vec_as::<f32>();
    let merged = merged.expect("weights are f32 and can be read");
    let before = match base.tensor(name) {
        Some(tensor) => tensor.to_vec(),
        // A head that was tied to the table.
        None => to_vec(base.word_embedding_table().to_tensor()),
    };
    let changes = merged
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before);
    Ok(Some(changes.collect()))
}
