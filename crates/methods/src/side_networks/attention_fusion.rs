//! Attention Fusion: a trained query attends, for each token, over the token's states in all layers
//! of the frozen base, and the head reads what it finds.
//!
//! Cao, Satya Prakash, Hamza, "Attention Fusion: a light yet efficient late fusion mechanism for
//! task adaptation in NLU", Findings of NAACL 2022, pages 857-866.
//!
//! **A reconstruction**: there is no code of the authors, and the paper says less than one needs.
//! It says that the states of a frozen network's layers are aggregated by attention with a task's
//! own query, that 0.0009 % of the parameters are trained, about one vector of the hidden size, and
//! that nothing is trained in the network. Decided here:
//!
//! - with `v_l [d]` a token's state before the first layer (`l = 0`) and after each, normalized
//!   without parameters unless `fusion_norm` is off, and `q: [d]`: `α = softmax_l(v_l · q / √d)`,
//!   `c = Σ_l α_l v_l`; the head reads `c` in place of the last state
//! - `q` starts at zero, so that `c` is at first the mean of the layers
//! - where the base ends with a norm, it is applied to `c`
//! - a frozen pooler, which was trained to read the last state, is passed over: its linear layer
//!   hands `c` on
//! - an encoder-decoder fuses the layers of its decoder
//!
//! No gradient enters the base: its states are constants, and it is run without a graph.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `d` |
//! | file | `fusion_query` `[d]` |
//! | merges | no |

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use epiphyte_models::{
    Adapter, Base, ForwardContext, Hidden, Hook, LazyLinear, Role, Site, Stream,
};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};

crate::settings! {
    /// The settings of Attention Fusion.
    #[derive(Copy, Eq)]
    pub struct AttentionFusionConfig {
        /// Normalize each layer's state before it is fused.
        fusion_norm: bool = true, as Boolean;
        /// Fuse the embeddings, the states before the first layer, as well.
        fusion_embeddings: bool = true, as Boolean;
    }
}

/// The name of the stream that holds the states of the layers so far, side by side.
const LAYERS_STREAM: &str = "layers";

/// Added to variances, as BERT's norms have it.
const EPSILON: f64 = 1e-12;

impl AttentionFusionConfig {
    /// The first hook whose states are fused.
    fn first(self, base: &Base) -> Result<usize, MethodError> {
        let first = base.dimensions.encoder_layers + usize::from(!self.fusion_embeddings);
        if first < base.dimensions.layers {
            return Ok(first);
        }
        Err(MethodError::NotApplicable {
            method: Self::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason: "there is one state of each token, so nothing can be fused; set \
                     `fusion_embeddings` to true"
                .to_owned(),
        })
    }
}

/// The path of a frozen pooler's linear layer, if it has as many outputs as inputs.
fn pooler(base: &Base) -> Option<String> {
    let mut linears = base.linears().iter();
    let pooler = linears.find(|linear| {
        let weight = format!("{}.weight", linear.site.path);
        linear.site.role == Role::Pooler
            && linear.inputs == linear.outputs
            && !base.is_of_head(&weight)
    });
    pooler.map(|linear| linear.site.path.clone())
}

impl MethodConfig for AttentionFusionConfig {
    const NAME: &'static str = "attention-fusion";
    const PEFT_TYPE: &'static str = "ATTENTION_FUSION";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a trained query over the states of all layers; no gradient in the base";
    const PAPER: &'static str = "Cao et al. 2022, NAACL Findings (a reconstruction)";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        gradients_through_base: Some(false),
        ..crate::Claims::survey("extra decoder")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "fusion_norm": false, "fusion_embeddings": false }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let size = base.dimensions.hidden_size;
        Ok(Box::new(AttentionFusion {
            query: parameters.declare("fusion_query", &[size], Init::Zeros),
            normalizes: self.fusion_norm,
            first: self.first(base)?,
            layers: base.dimensions.layers,
            pooler: pooler(base),
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.first(base)?;
        Ok(base.dimensions.hidden_size)
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// The query, and which layers it attends over.
#[derive(Debug)]
struct AttentionFusion {
    query: Param,
    normalizes: bool,
    /// The first hook whose states are fused.
    first: usize,
    layers: usize,
    /// The path of the pooler's linear layer that is passed over.
    pooler: Option<String>,
}

impl AttentionFusion {
    fn passes_over(&self, site: &Site) -> bool {
        self.pooler.as_deref() == Some(&*site.path)
    }

    /// `v_l` of each row, without a graph.
    fn normalized(&self, states: Tensor<2>) -> Tensor<2> {
        let states = states.inner();
        if !self.normalizes {
            return states;
        }
        let centered = states.clone() - states.mean_dim(1);
        let variance = (centered.clone() * centered.clone()).mean_dim(1);
        centered / (variance + EPSILON).sqrt()
    }

    /// `c` of each row, from the states of all layers side by side, `[rows, layers · d]`.
    fn fused(&self, layers: Tensor<2>) -> Tensor<2> {
        let [rows, width] = layers.dims();
        let size = self.query.count();
        let layers = layers.reshape([rows, width / size, size]);
        let scaled = self.query.flat() / (size as f64).sqrt();
        let scores = (layers.clone() * scaled.reshape([1, 1, size])).sum_dim(2);
        let shares = softmax(scores, 1);
        (layers * shares).sum_dim(1).reshape([rows, size])
    }
}

impl Adapter for AttentionFusion {
    fn hidden(&self, layer: usize, mut hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        if layer < self.first {
            return hidden;
        }
        let own = self.normalized(hidden.states.clone());
        let layers = match hidden.take(LAYERS_STREAM) {
            Some(below) => Tensor::cat(vec![below.states, own], 1),
            None => own,
        };
        if layer == self.layers {
            return hidden.with(self.fused(layers));
        }
        let stream = Stream::of_adapter(LAYERS_STREAM, layers, hidden.rows.clone());
        hidden.carried.push(stream);
        hidden
    }

    fn linear(&self, site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.passes_over(site) {
            true => product.input().clone(),
            false => product.compute(),
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        match hook {
            Hook::Hidden(layer) => layer >= self.first,
            Hook::Linear(site) => self.passes_over(site),
            _ => false,
        }
    }

    /// The states of the layers below are of all rows.
    fn mixes_rows(&self, layer: usize) -> bool {
        layer + 1 == self.layers
    }
}

impl Method for AttentionFusion {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: AttentionFusionConfig::NAME,
            reason: "the head reads the states of all layers",
        })
    }

    fn changed(&self) -> usize {
        self.query.count()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_models::Base;
    use epiphyte_ops::random;
    use serde_json::json;

    use super::{AttentionFusion, AttentionFusionConfig};
    use crate::small_bert::{bert, bert_base_count, distance};
    use crate::{Init, MethodConfig, ParameterSet};

    fn fusion(query: Vec<f32>) -> AttentionFusion {
        let mut parameters = ParameterSet::new(&Device::default(), 0);
        let param = parameters.declare("fusion_query", &[query.len()], Init::Zeros);
        param.set_values(query);
        AttentionFusion {
            query: param,
            normalizes: false,
            first: 0,
            layers: 3,
            pooler: None,
        }
    }

    /// The states of four layers of a size of 5, three rows.
    fn layers() -> Vec<f32> {
        random::normal(1, 3 * 4 * 5, 1.0)
    }

    fn fused(fusion: &AttentionFusion, layers: &[f32]) -> Vec<f32> {
        let data = TensorData::new(layers.to_vec(), [3, 4 * 5]);
        let fused = fusion.fused(Tensor::from_data(data, &Device::default()));
        fused.try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn a_query_of_zeros_takes_the_mean_and_a_long_one_a_single_layer() {
        let layers = layers();
        let of = |row: usize, layer: usize| &layers[(row * 4 + layer) * 5..][..5];
        let means = fused(&fusion(vec![0.0; 5]), &layers);
        let query = random::normal(2, 5, 1.0);
        let chosen = fused(&fusion(query.iter().map(|it| it * 1e4).collect()), &layers);
        for row in 0..3 {
            for at in 0..5 {
                let mean = (0..4).map(|layer| of(row, layer)[at]).sum::<f32>() / 4.0;
                assert!((means[row * 5 + at] - mean).abs() < 1e-6);
            }
            let score = |layer: &usize| -> f32 {
                let products = of(row, *layer).iter().zip(&query);
                products.map(|(a, b)| a * b).sum()
            };
            let best = (0..4).max_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
            assert!(distance(&chosen[row * 5..][..5], of(row, best)) < 1e-4);
        }
    }

    #[test]
    fn the_order_of_the_layers_changes_nothing() {
        let layers = layers();
        let turned: Vec<f32> = (0..3)
            .flat_map(|row| [2, 0, 3, 1].map(|layer| (row, layer)))
            .flat_map(|(row, layer)| layers[(row * 4 + layer) * 5..][..5].to_vec())
            .collect();
        let fusion = fusion(random::normal(3, 5, 2.0));
        let difference = distance(&fused(&fusion, &layers), &fused(&fusion, &turned));
        assert!(difference < 1e-6);
    }

    #[test]
    fn one_vector_is_trained() {
        let model = bert();
        let count = |base: &Base| AttentionFusionConfig::default().count(base).unwrap();
        assert_eq!(count(model.base()), 8);
        assert_eq!(bert_base_count("attention-fusion", json!({}), 768), 768);
    }
}
