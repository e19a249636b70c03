//! Adaption prompts (LLaMA-Adapter): tokens that the queries of the upper layers attend to through
//! a gate that starts at zero.
//!
//! Zhang, Han, Liu, Gao, Zhou, Hu, Yan, Lu, Li, Qiao, "LLaMA-Adapter: Efficient Fine-tuning of
//! Language Models with Zero-init Attention", ICLR 2024, arXiv 2303.16199.
//!
//! In each of the top `adapter_layers` layers the output of self-attention becomes
//!
//! ```text
//! attn(x) + g · W_o softmax(q (A W_kᵀ)ᵀ / √d_h) (A W_vᵀ)
//! ```
//!
//! for each head, with trained `A: [adapter_len, d]` and `g: [1]`, the layer's own frozen
//! projections, and its queries `q`, which are rotated where the model rotates them; the keys of
//! the prompt are not. It has a softmax of its own, so that a gate of zero is the base. This is HF
//! PEFT's form: the paper has a gate for each head. Where queries, keys and values come from one
//! `Conv1D` (GPT-2), PEFT adds the prompt's values without the output projection; so it is here. A
//! bias of the output projection is not added a second time. PEFT does add it, for a Llama with
//! `attention_bias`, which is refused.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `n (l d + 1)` in `n` layers, `l` virtual tokens each |
//! | file | `<self-attention>.adaption_prompt` `[1, l, d]`, `.adaption_gate` `[1]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::adapter::Block;
use epiphyte_models::blocks::{NormPlacement, Projections};
use epiphyte_models::{
    Adapter, Base, BaseTensor, ForwardContext, Hook, LinearInfo, Role, Sublayer,
};
use epiphyte_ops::{Attention, FrozenMatrix, Keys, Sequences, Weight, add, attention, linear};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::Modules;

crate::settings! {
    /// The settings of adaption prompts, under HF PEFT's names.
    pub struct AdaptionPromptConfig {
        /// Virtual tokens of each layer.
        adapter_len: Option<usize> = None, in Size, unset "10";
        /// Layers with a prompt, from the top.
        adapter_layers: Option<usize> = None, in Size, unset "all layers but the two lowest";
        /// Name of the self-attention modules; the base has one.
        target_modules: Option<Modules> = None, unset "depends on the model's family";
    }
}

impl AdaptionPromptConfig {
    fn length(&self) -> usize {
        self.adapter_len.unwrap_or(10)
    }

    /// The modules that get a prompt, from the lowest.
    fn modules<'b>(&self, base: &'b Base) -> Result<Vec<Module<'b>>, MethodError> {
        let modules = modules(base)?;
        let name = name(modules[0].path);
        if let Some(given) = &self.target_modules {
            let given = match given {
                Modules::Endings(names) => names.join(","),
                Modules::Pattern(name) => name.clone(),
            };
            if given != name {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "target_modules",
                    value: given,
                    expected: format!("the self-attention of this base is called `{name}`"),
                });
            }
        }
        let all = modules.len();
        let layers = self.layers(base);
        let Some(first) = all.checked_sub(layers) else {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "adapter_layers",
                value: layers.to_string(),
                expected: format!("this base has {all} layers"),
            });
        };
        Ok(modules.into_iter().skip(first).collect())
    }

    fn layers(&self, base: &Base) -> usize {
        let all = base.dimensions.layers;
        self.adapter_layers
            .unwrap_or_else(|| all.saturating_sub(2).max(1))
    }
}

/// The last part of a module's path.
fn name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A self-attention of the base.
struct Module<'b> {
    layer: usize,
    path: &'b str,
    /// The layers whose output has keys and values: one with both, or one of each.
    projections: Vec<&'b LinearInfo>,
    output: &'b LinearInfo,
}

/// The self-attentions of a base, which must be such that PEFT's formula says what a prompt does.
fn modules(base: &Base) -> Result<Vec<Module<'_>>, MethodError> {
    let refused = |reason: &str| {
        Err(MethodError::NotApplicable {
            method: AdaptionPromptConfig::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason: reason.to_owned(),
        })
    };
    if base.dimensions.encoder_layers > 0 {
        return refused("it is defined for models of one stack");
    }
    let layers = base.dimensions.layers;
    let mut modules = Vec::with_capacity(layers);
    for (layer, shape) in base.layer_shapes().iter().enumerate() {
        let attention = &shape.attention;
        if attention.norms.is_some() {
            return refused("its queries and keys have norms, for which no prompt is defined");
        }
        if !matches!(
            shape.placement,
            NormPlacement::Before | NormPlacement::After
        ) {
            return refused("its attention's output has a norm, for which no prompt is defined");
        }
        if attention.rotary && attention.output_bias {
            return refused(
                "HF PEFT adds the bias of its output projection twice, so that no gate is the base",
            );
        }
        let of_role = |role: Role| {
            let mut linears = base.linears().iter();
            linears.find(|it| it.site.layer == Some(layer) && it.site.role == role)
        };
        let projections: Option<Vec<&LinearInfo>> = match attention.projections {
            Projections::Separate => [Role::Key, Role::Value].into_iter().map(of_role).collect(),
            _ => of_role(Role::QueryKeyValue).map(|it| vec![it]),
        };
        let (Some(projections), Some(output)) = (projections, of_role(Role::AttentionOutput))
        else {
            return refused(
                "its layers share their modules, but the method's parameters are named after a \
                 module of each layer; LoRA acts on shared modules",
            );
        };
        let path = projections[0].site.path.rsplit_once('.');
        let path = path.map_or("", |(path, _)| path);
        modules.push(Module {
            layer,
            path,
            projections,
            output,
        });
    }
    Ok(modules)
}

/// A frozen linear layer.
#[derive(Clone, Debug)]
struct Projection {
    weight: FrozenMatrix,
    bias: Option<Tensor<1>>,
}

impl Projection {
    fn new(base: &Base, linear: &LinearInfo) -> Self {
        let tensor = |name: &str| base.tensor(&format!("{}.{name}", linear.site.path));
        let weight = tensor("weight").and_then(BaseTensor::matrix);
        Self {
            weight: weight.expect("a linear layer has a weight").clone(),
            bias: tensor("bias")
                .filter(|_| linear.bias)
                .map(BaseTensor::to_flat),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, &Weight::Frozen(self.weight.clone()), self.bias.clone())
    }
}

/// Keys and values side by side, out of the outputs of an attention's projections.
fn keys_values(projected: Vec<Tensor<2>>, shape: &Attention, layout: Projections) -> Tensor<2> {
    let (head, kv) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let all = Tensor::cat(projected, 1);
    let [rows, width] = all.dims();
    match layout {
        Projections::FusedByHead => {
            let by_head = all.reshape([rows, shape.heads, 3 * head]);
            let both = [1, 2].map(|which| {
                let one = by_head.clone().narrow(2, which * head, head);
                one.reshape([rows, kv])
            });
            Tensor::cat(both.to_vec(), 1)
        }
        _ => all.narrow(1, width - 2 * kv, 2 * kv),
    }
}

impl MethodConfig for AdaptionPromptConfig {
    const NAME: &'static str = "adaption-prompt";
    const PEFT_TYPE: &'static str = "ADAPTION_PROMPT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "tokens that upper layers attend to through a gate that starts at zero (LLaMA-Adapter)";
    const PAPER: &'static str = "Zhang et al. 2023, arXiv 2303.16199";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "extra input"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = false;
    const LISTS_MODULES: bool = false;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "adapter_len": 3, "adapter_layers": 2 }),
            json!({ "adapter_layers": 1 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (length, size) = (self.length(), base.dimensions.hidden_size);
        let modules = self.modules(base)?;
        let first = modules[0].layer;
        let layers = modules.into_iter().map(|module| {
            let of = &base.layer_shapes()[module.layer].attention;
            let layout = of.projections;
            let attention = Attention {
                heads: of.heads,
                kv_heads: of.kv_heads,
                head_dim: of.head_dim,
                scale: 1.0 / (of.head_dim as f32).sqrt(),
                softcap: None,
                causal: false,
                window: None,
                dropout: 0.0,
            };
            let key = |name: &str| format!("{}.{name}", module.path);
            let normal = Init::Normal { std: 1.0 };
            let prompt = parameters.declare(key("adaption_prompt"), &[1, length, size], normal);
            let gate = parameters.declare(key("adaption_gate"), &[1], Init::Zeros);
            let projections = module.projections.iter();
            let projections: Vec<Projection> =
                projections.map(|it| Projection::new(base, it)).collect();
            let kv = 2 * of.kv_heads * of.head_dim;
            let (source, shape) = (prompt.clone(), attention.clone());
            let keys_values =
                parameters.derived(key("adaption_keys_values"), &[length, kv], move || {
                    let prompt = source.flat().reshape([length, size]);
                    let projected = projections.iter().map(|it| it.forward(prompt.clone()));
                    let both = keys_values(projected.collect(), &shape, layout);
                    both.reshape([length * kv])
                });
            let output = match layout {
                Projections::FusedConv1d => None,
                _ => Some(Weight::Frozen(Projection::new(base, module.output).weight)),
            };
            AdaptedAttention {
                prompt,
                gate,
                keys_values,
                output,
                attention,
            }
        });
        Ok(Box::new(AdaptionPrompt {
            layers: layers.collect(),
            first,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let modules = self.modules(base)?.len();
        Ok(modules * (self.length() * base.dimensions.hidden_size + 1))
    }

    fn resolved(&self, base: &Base) -> Self {
        let modules = modules(base).unwrap_or_default();
        let target = modules.first().map(|module| name(module.path).to_owned());
        Self {
            adapter_len: Some(self.length()),
            adapter_layers: Some(self.layers(base)),
            target_modules: target.map(Modules::Pattern),
        }
    }
}

/// The prompts of all layers that have one.
#[derive(Debug)]
struct AdaptionPrompt {
    /// From the lowest.
    layers: Vec<AdaptedAttention>,
    /// The lowest layer with a prompt.
    first: usize,
}

/// The prompt of a layer.
#[derive(Debug)]
struct AdaptedAttention {
    /// `[1, length, hidden]`
    prompt: Param,
    /// `[1]`
    gate: Param,
    /// Keys and values of the prompt, computed once a step: `[length, 2 · kv_size]`.
    keys_values: Param,
    /// The output projection; none where PEFT has none.
    output: Option<Weight>,
    attention: Attention,
}

impl AdaptionPrompt {
    fn at(&self, layer: usize, block: Block) -> Option<&AdaptedAttention> {
        let index = layer.checked_sub(self.first)?;
        self.layers
            .get(index)
            .filter(|_| block == Block::SelfAttention)
    }
}

impl Adapter for AdaptionPrompt {
    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let (Some(adapted), Some(queries)) =
            (self.at(sublayer.layer, sublayer.block), sublayer.queries)
        else {
            return output;
        };
        let both = adapted.keys_values.get::<2>();
        let [length, width] = both.dims();
        let keys = Keys {
            rows: Some(Sequences::new(vec![0, length])),
            ..Keys::new(
                both.clone().narrow(1, 0, width / 2),
                both.narrow(1, width / 2, width / 2),
            )
        };
        // Every row attends to the same keys, so that all of them are one sequence.
        let rows = Sequences::new(vec![0, queries.dims()[0]]);
        let read = attention(&adapted.attention, queries.clone(), &rows, keys, 0);
        let read = read * adapted.gate.flat().reshape([1, 1]);
        let added = match &adapted.output {
            Some(weight) => linear(read, weight, None),
            None => read,
        };
        add(output, added)
    }

    fn first_layer(&self) -> usize {
        self.first
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Sublayer(layer, block) if self.at(layer, block).is_some())
    }
}

impl Method for AdaptionPrompt {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: AdaptionPromptConfig::NAME,
            reason: "its prompts are read through a softmax of their own",
        })
    }

    fn changed(&self) -> usize {
        let count = |it: &AdaptedAttention| it.prompt.count() + it.gate.count();
        self.layers.iter().map(count).sum()
    }
}
