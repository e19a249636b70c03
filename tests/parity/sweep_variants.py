"""What `sweep.py` makes: every type that PEFT has, and the variants of its configuration.

Each key that a type's configuration has takes another value than the default in at least one variant, and each choice
among words takes every word; `uncovered` says which do not. Keys that only training reads change together, in the
variant `training`: a file with such values must be read too.
"""

import dataclasses
import enum
import typing
from dataclasses import dataclass

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from transformers.activations import ACT2FN

from tiny import Base

CONFIGS = {str(key.value): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
TYPES = sorted(CONFIGS)


@dataclass(frozen=True)
class Modules:
    """How an architecture names what types may have as targets."""

    words: str
    value: str
    output: str
    norm: str
    # The list of its layers, and an attention that gets adaption prompts.
    layers: str
    attention: str


BERT = Modules("word_embeddings", "value", "output.dense", "LayerNorm", "layer", "attention")
MODULES = {
    "bert": BERT,
    "roberta": BERT,
    "llama": Modules("embed_tokens", "v_proj", "down_proj", "input_layernorm", "layers", "self_attn"),
    "gpt2": Modules("wte", "c_attn", "mlp.c_proj", "ln_1", "h", "attn"),
    "t5": Modules("shared", "v", "wo", "layer_norm", "block", "SelfAttention"),
}

PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
# Types that choose their own modules, or all.
WITHOUT_TARGETS = (*PROMPTS, "ADAPTION_PROMPT", "SHADOW", "XLORA")

# Settings that every variant of a type has, sized for bases of hidden size 32.
USUAL = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [7, 9, 11], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "alpha": 6},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "LILY": {"r": 4},
    "LOHA": {"r": 4, "alpha": 6},
    "LOKR": {"r": 4, "alpha": 6},
    "LORA": {"r": 4, "lora_alpha": 6},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 1},
    "OFT": {"oft_block_size": 4},
    "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 4},
    "POLY": {"r": 4, "n_tasks": 1},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": {"r": 4, "psoft_alpha": 6},
    "PVERA": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"r": 4},
    "SHIRA": {"r": 2, "random_seed": 5},
    "SUPERTUNING": {"sparsity": 0.9},
    "TINYLORA": {"u": 6},
    "TRAINABLE_TOKENS": {"token_indices": [3, 11, 7]},
    "UNILORA": {"theta_d_length": 32},
    "VBLORA": {"num_vectors": 8, "vector_length": 4},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
    "XLORA": {"hidden_size": 32, "xlora_size": 8},
}

# Keys that only training reads, with values that are not the default.
TRAINING = {
    "ADALORA": {
        "tinit": 1, "tfinal": 2, "deltaT": 2, "beta1": 0.8, "beta2": 0.8, "orth_reg_weight": 0.1, "lora_dropout": 0.1,
    },
    "ADAMSS": {
        "use_asa": True, "asa_target_subspaces": 1, "init_warmup": 5, "final_warmup": 50, "mask_interval": 10,
        "asa_importance_beta": 0.8, "asa_uncertainty_beta": 0.8, "asa_schedule_exponent": 2.0,
    },
    "BOFT": {"boft_dropout": 0.1},
    "CPT": {
        "opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.9, "opt_projection_epsilon": 1.0,
        "opt_projection_format_epsilon": 0.5,
    },
    "DEFT": {"init_scale": 0.5, "deft_dropout": 0.1},
    "DELORA": {"module_dropout": 0.1},
    "FROD": {"frod_dropout": 0.1, "progressbar": True, "runtime_offload_base_weight": True},
    "GRALORA": {"gralora_dropout": 0.1},
    "HIRA": {"hira_dropout": 0.1},
    "LOHA": {"rank_dropout": 0.1, "module_dropout": 0.1, "use_effective_conv2d": True},
    "LOKR": {"rank_dropout": 0.1, "module_dropout": 0.1, "rank_dropout_scale": True, "use_effective_conv2d": True},
    "LORA": {"lora_dropout": 0.1},
    "MISS": {"miss_dropout": 0.1},
    "OFT": {"module_dropout": 0.1},
    "OSF": {"target_svd_config": {"query.weight": 8}},
    "P_TUNING": {"encoder_dropout": 0.1},
    "PSOFT": {"psoft_dropout": 0.1},
    "PVERA": {"pvera_dropout": 0.1, "generator_seed": 3},
    "RANDLORA": {"randlora_dropout": 0.1},
    "SHADOW": {"shadow_dropout": 0.1, "auxiliary_loss_weight": 0.1},
    "SUPERTUNING": {"r": 2, "lora_dropout": 0.1},
    "TINYLORA": {"init_v_bound": 0.1, "tinylora_dropout": 0.1},
    "UNILORA": {"init_theta_d_bound": 0.1, "unilora_dropout": 0.1},
    "VBLORA": {"init_vector_bank_bound": 0.1, "init_logits_std": 0.2, "vblora_dropout": 0.1},
    "VERA": {"vera_dropout": 0.1},
    "XLORA": {"xlora_dropout_p": 0.1},
}

# In the name of a variant that is saved with `path_initial_model_for_weight_conversion`.
CONVERTED = "converted"

# A prompt that begins as a text.
TEXT = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "korn litest", "tokenizer_name_or_path": "tokenizer"}

# Keys without a variant, and why not.
EXEMPT = {
    "token_dim": "PEFT sets it from the base",
    "num_attention_heads": "PEFT sets it from the base",
    "num_layers": "PEFT sets it from the base",
    "hidden_size": "it is the base's",
    "poly_type": "it has one value",
    "mask_type": "it has one value",
    "runtime_config": "it is not saved",
    "megatron_config": "its layers are Megatron's",
    "megatron_core": "its layers are Megatron's",
}
# Keys that AdaLoRA inherits from LoRA and does not use, or refuses.
EXEMPT_OF = {
    "ADALORA": {
        "r", "alpha_pattern", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora",
        "use_rslora", "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size", "monteclora_config",
        "layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config", "kasa_config",
        "ensure_weight_tying",
    },
    # PEFT counts its tokens, and its prefixes are those of a decoder.
    "CPT": {"num_virtual_tokens", "num_transformer_submodules"},
    "CARTRIDGE": {"num_transformer_submodules"},
    "PREFIX_TUNING": {"num_transformer_submodules"},
    # Arguments of a function that opens a tokenizer.
    "PROMPT_TUNING": {"tokenizer_kwargs"},
    "MULTITASK_PROMPT_TUNING": {"tokenizer_kwargs"},
    # Any other value than the default is another model's name.
    "SHADOW": {"shadow_model"},
}


def each(**choices: list) -> dict[str, dict]:
    """A variant for each value of each key."""
    return {f"{key}={value}": {key: value} for key, values in choices.items() for value in values}


def targets(kind: str, base: Base) -> tuple[str, str]:
    """The usual target modules of a type: one that every variant has, and another."""
    modules = MODULES[base.name]
    return {
        "BEFT": (modules.value, modules.output),
        "IA3": (base.names.ia3[0], modules.output),
        "LN_TUNING": (modules.norm, {"llama": "norm", "gpt2": "ln_f"}.get(base.name, modules.norm)),
        "TRAINABLE_TOKENS": (modules.words, modules.words),
    }.get(kind, (base.names.lora[0], modules.output))


def fields_of(kind: str) -> dict[str, dataclasses.Field]:
    """The keys of a type's configuration that are not those of every type."""
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    hints = typing.get_type_hints(CONFIGS[kind])
    own = [field for field in dataclasses.fields(CONFIGS[kind]) if field.name not in common]
    for field in own:
        field.type = hints[field.name]
    return {field.name: field for field in own}


def words_of(annotation) -> list[str]:
    """The words among which a key chooses."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [word.value for word in annotation]
    if typing.get_origin(annotation) is typing.Literal:
        return [word for word in typing.get_args(annotation) if isinstance(word, str)]
    return [word for inner in typing.get_args(annotation) for word in words_of(inner)]


def variants(kind: str, base: Base) -> dict[str, dict]:
    """The variants of a type by name: what each changes in the usual settings."""
    found = {"": {}}
    if kind in TRAINING:
        found["training"] = TRAINING[kind]
    return found | shared(kind, base) | own(kind, base)


def shared(kind: str, base: Base) -> dict[str, dict]:
    """Variants of the keys that many types have."""
    fields, modules = fields_of(kind), MODULES[base.name]
    first, second = targets(kind, base)
    found = {}
    if "target_modules" in fields and kind not in WITHOUT_TARGETS:
        found["two targets"] = {"target_modules": [first, second]}
        found["expression"] = {"target_modules": rf".*\.{first}"}
    if "exclude_modules" in fields and kind not in (*WITHOUT_TARGETS, "LN_TUNING"):
        found["exclude_modules"] = {"target_modules": [first, second], "exclude_modules": [second]}
        found["exclude_modules=expression"] = {"target_modules": [first, second], "exclude_modules": rf".*\.{second}"}
    if kind == "LN_TUNING":
        found |= each(exclude_modules=[rf".*\.{modules.layers}\.0\..*"])
    if "layers_to_transform" in fields:
        found["layers_to_transform=1"] = {"layers_to_transform": 1}
        found["layers_pattern"] = {"layers_to_transform": [0], "layers_pattern": modules.layers}
        found["layers_pattern=list"] = {"layers_to_transform": [1], "layers_pattern": [modules.layers]}
    if "target_modules" in fields and kind not in (*WITHOUT_TARGETS, "LN_TUNING", "TRAINABLE_TOKENS"):
        found["all-linear"] = {"target_modules": "all-linear"}
    if "fan_in_fan_out" in fields:
        found["fan_in_fan_out"] = {"fan_in_fan_out": True}
    if "bias" in fields:
        word = {"ADALORA": "lora_only"}.get(kind, f"{kind.lower()}_only")
        found |= each(bias=["all", word])
    if "modules_to_save" in fields:
        norm = {"llama": "post_attention_layernorm", "gpt2": "ln_2"}.get(base.name, modules.norm)
        found["modules_to_save"] = {"modules_to_save": ["dense"] if kind == "LN_TUNING" and norm == modules.norm else [norm]}
    for name in ("init_weights", "init_ia3_weights"):
        if name in fields and kind != "PREFIX_TUNING":
            default = fields[name].default
            other = [False] if default is True else [True] if default is False else []
            found |= each(**{name: other + [word for word in words_of(fields[name].type) if word != default]})
    return found


def own(kind: str, base: Base) -> dict[str, dict]:
    """Variants of a type's own keys."""
    modules = MODULES[base.name]
    first, second = targets(kind, base)
    is_language_model, is_encoder_decoder = base.task != "SEQ_CLS", base.task == "SEQ_2_SEQ_LM"
    if kind == "LORA":
        return lora(base, first, second)
    if kind == "IA3":
        feed_forward = base.names.ia3_feedforward
        both = [*base.names.ia3, *feed_forward]
        return {
            "feedforward_modules": {"target_modules": both, "feedforward_modules": feed_forward},
            "feedforward_modules=expression": {"target_modules": both, "feedforward_modules": rf".*\.{second}"},
        }
    return {
        "ADALORA": {
            # As after training: the budget's mask is in the file, and ranks differ.
            "rank_pattern": {},
            **each(lora_alpha=[3]),
            "trainable_token_indices": {"trainable_token_indices": [3, 11, 7]},
        },
        "ADAMSS": each(
            r=[4], num_subspaces=[3], subspace_rank=[2], use_dynamic_rank=[True], random_seed=[3], init_weights=[None]
        )
        | {"svd_threshold": {"use_dynamic_rank": True, "svd_threshold": 0.5}},
        "ADAPTION_PROMPT": each(adapter_len=[5], adapter_layers=[2]) | {"target_modules": {"target_modules": modules.attention}},
        "BOFT": each(boft_block_size=[8])
        | {
            "boft_n_butterfly_factor=2": {"boft_n_butterfly_factor": 2},
            "boft_block_num=4": {"boft_block_size": 0, "boft_block_num": 4},
        },
        "C3A": each(block_size=[8]) | {"block_size_pattern": {"block_size_pattern": {first: 8}}},
        "CARTRIDGE": each(num_virtual_tokens=[5], num_frozen_tokens=[0, 2]),
        "CPT": {
            "cpt_mask": {"cpt_token_ids": [7, 9, 11], "cpt_mask": [1, 0, 1], "cpt_tokens_type_mask": [1, 2, 3]},
            "tokenizer_name_or_path": {"tokenizer_name_or_path": "tokenizer"},
        },
        "DEFT": each(r=[2], decomposition_method=["qr"], para=[True], alpha=[6])
        | {"qr and para": {"decomposition_method": "qr", "para": True}},
        "DELORA": each(r=[2], delora_lambda=[4])
        | {"patterns": {"target_modules": [first, second], "rank_pattern": {first: 2}, "lambda_pattern": {second: 3}}},
        "FOURIERFT": each(n_frequency=[30], scaling=[40.0], random_loc_seed=[5])
        | {"n_frequency_pattern": {"target_modules": [first, second], "n_frequency_pattern": {first: 7}}},
        "FROD": each(save_projection=[False], sparse_rate=[0.1], projection_prng_key=[3], regularization_alpha=[0.1]),
        "GLORA": each(
            r=[2], config_A_B=["vector", "constant", "none"], config_C=["vector", "none"], config_D_E=["vector", "none"]
        ),
        "GRALORA": each(r=[8], alpha=[3], gralora_k=[4], hybrid_r=[2]),
        "HIRA": each(r=[2]) | {"rank_pattern": {"target_modules": [first, second], "rank_pattern": {first: 2}}},
        "HRA": each(r=[3, 2], apply_GS=[True]),
        "LILY": each(r=[2], stride_A=[2], num_B=[1, 3], scaling=[0.5]),
        "LOHA": each(r=[2], alpha=[3])
        | {"patterns": {"target_modules": [first, second], "rank_pattern": {first: 2}, "alpha_pattern": {second: 3}}},
        "LOKR": each(r=[1, 2], alpha=[3], decompose_factor=[4])
        | {
            "decompose_both": {"decompose_both": True, "r": 2},
            "patterns": {"target_modules": [first, second], "rank_pattern": {first: 2}, "alpha_pattern": {second: 3}},
        },
        "MISS": each(r=[8]) | {"mini_r": {"init_weights": "mini", "mini_r": 2}},
        "MULTITASK_PROMPT_TUNING": {
            **each(num_virtual_tokens=[5], num_tasks=[2], num_ranks=[2]),
            "prompt_tuning_init=TEXT": TEXT,
            **{
                f"prompt_tuning_init={start}": {
                    "prompt_tuning_init": start,
                    "prompt_tuning_init_state_dict_path": "source_prompts.safetensors",
                    "prompt_tuning_init_task": 1,
                }
                for start in ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")
            },
            **({"num_transformer_submodules=1": {"num_transformer_submodules": 1}} if is_encoder_decoder else {}),
        },
        "OFT": each(oft_block_size=[8], block_share=[True], use_cayley_neumann=[False], num_cayley_neumann_terms=[3])
        | {"r": {"r": 4, "oft_block_size": 0}, "coft": {"coft": True, "eps": 1e-3}},
        "OSF": each(effective_rank=[8, 0.25]) | {"rank_pattern": {"target_modules": [first, second], "rank_pattern": {first: 2}}},
        "PEANUT": each(r=[2], depth=[1, 2], scaling=[0.5], act_fn=list(ACT2FN) if base.name == "bert" else ["tanh", "gelu"]),
        "POLY": each(r=[2], n_splits=[2], n_skills=[2], n_tasks=[2]),
        "PREFIX_TUNING": each(num_virtual_tokens=[5], init_weights=["zero"])
        | {"prefix_projection": {"prefix_projection": True, "encoder_hidden_size": 8}},
        "PROMPT_TUNING": {
            **each(num_virtual_tokens=[5]),
            **each(prompt_tuning_init=["SAMPLE_VOCAB"]),
            "prompt_tuning_init=TEXT": TEXT,
            **({"num_transformer_submodules=1": {"num_transformer_submodules": 1}} if is_encoder_decoder else {}),
        },
        "PSOFT": each(
            r=[2], psoft_alpha=[3], psoft_mag_a=[False], psoft_mag_b=[False], psoft_orth=[False], use_cayley_neumann=[True],
            ab_svd_init=["pissa_init"], psoft_svd=["lowrank"],
        )
        | {
            "num_cayley_neumann_terms": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
            "cayley_neumann_eps": {"use_cayley_neumann": True, "cayley_neumann_eps": 0.5},
            "random_seed": {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 4, "random_seed": 3},
        },
        "PVERA": each(r=[2], save_projection=[False], d_initial=[0.5], projection_prng_key=[3])
        | {"sample_at_inference": {"sample_at_inference": True, "generator_seed": 3}},
        "P_TUNING": {
            **each(num_virtual_tokens=[5], encoder_reparameterization_type=["LSTM"], encoder_hidden_size=[4]),
            "encoder_num_layers": {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1},
            **({"num_transformer_submodules=1": {"num_transformer_submodules": 1}} if is_encoder_decoder else {}),
        },
        "RANDLORA": each(
            r=[2], sparse=[True], very_sparse=[True], randlora_alpha=[20], save_projection=[False], projection_prng_key=[3]
        )
        | {"sparse and not saved": {"sparse": True, "save_projection": False}},
        "ROAD": each(variant=["road_2", "road_4"], group_size=[4]),
        "SHADOW": each(
            r=[2], shadow_alpha=[0.5], shadow_num_hidden_layers=[2], shadow_hidden_size=[16], shadow_num_attention_heads=[2],
            shadow_intermediate_size=[24], share_embeddings=[False], update_hidden_size=[6],
        )
        | {
            "target_modules": {"target_modules": rf".*\.{modules.layers}\.1"},
            "exclude_modules": {"exclude_modules": rf".*\.{modules.layers}\.0"},
        },
        "SHIRA": each(r=[1], random_seed=[7]),
        "SUPERTUNING": each(sparsity=[0.8], select_top=[False], save_precomputed_indices=[False], r=[2])
        | {"lora_alpha": {"r": 2, "lora_alpha": 3}},
        "TINYLORA": each(r=[3], u=[8], weight_tying=[0.5, 1.0], save_projection=[False], projection_seed=[3]),
        "TRAINABLE_TOKENS": each(token_indices=[[5]]),
        "UNILORA": each(r=[2], theta_d_length=[48], save_indices=[True], proj_seed=[5]),
        "VBLORA": each(r=[2], num_vectors=[6], vector_length=[8], topk=[3], save_only_topk_weights=[True]),
        "VERA": each(r=[2], save_projection=[False], d_initial=[0.5], projection_prng_key=[3])
        | {"two targets, not saved": {"target_modules": [first, second], "save_projection": False}},
        "WAVEFT": each(
            n_frequency=[30], scaling=[40.0], use_idwt=[False], random_loc_seed=[5], proportional_parameters=[True],
            wavelet_family=["db2", "sym4", "coif1", "coif4", "coif5"],
        )
        | {"n_frequency_pattern": {"target_modules": [first, second], "n_frequency_pattern": {first: 7}}},
        "XLORA": each(
            adapters=[3], enable_softmax=[False], layerwise_scalings=[True], xlora_depth=[2], use_trainable_adapters=[True],
            softmax_temperature=[0.5], top_k_lora=[1], scaling_pass_value=[0.3], global_scaling_weight=[0.7],
        )
        | {"enable_softmax_topk": {"enable_softmax_topk": True, "enable_softmax": False, "top_k_lora": 1}},
    }.get(kind, {})


def lora(base: Base, first: str, second: str) -> dict[str, dict]:
    """The variants of LoRA."""
    words = MODULES[base.name].words
    starts = ["gaussian", False, "orthogonal", "pissa", "pissa_niter_4", "olora", "mica", "eva", "corda"]
    found = each(init_lora_weights=starts, r=[2], lora_alpha=[3], use_rslora=[True], use_dora=[True], lora_bias=[True])
    found |= {
        "loftq_config": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
        "eva_config": {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.5, tau=0.9, whiten=True, adjust_scaling_factors=False)},
        "corda_config": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")},
        "patterns": {"target_modules": [first, second], "rank_pattern": {first: 2, second: 3}, "alpha_pattern": {second: 5}},
        "embeddings": {"target_modules": [words, first]},
        "trainable_token_indices": {"trainable_token_indices": [3, 11, 7]},
        "trainable_token_indices=named": {"trainable_token_indices": {words: [3, 11]}},
        "kasa_config": {"kasa_config": KasaConfig(beta=1e-3, gamma=1e-2)},
        "arrow_config": {"arrow_config": ArrowConfig(top_k=1)},
        "bdlora a": {"use_bdlora": BdLoraConfig(target_modules_bd_a=base.names.lora, nblocks=2)},
        "bdlora b": {"use_bdlora": BdLoraConfig(target_modules_bd_b=base.names.lora, nblocks=2)},
        "bdlora and lora": {
            "target_modules": [first, second],
            "use_bdlora": BdLoraConfig(target_modules_bd_b=[first], nblocks=4, match_strict=False),
        },
        "qalora": {"use_qalora": True, "qalora_group_size": 8},
        "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
        "target_parameters": {"target_modules": [], "target_parameters": [f"{first}.weight"]},
        "dora and embeddings": {"use_dora": True, "target_modules": [words, first]},
        "dora and patterns": {"use_dora": True, "target_modules": [first, second], "rank_pattern": {first: 2}, "use_rslora": True},
        "dora and bias": {"use_dora": True, "bias": "all"},
    }
    for direction in ("ArBr", "A2rBr", "random"):
        config = LoraGAConfig(direction=direction, scale="unit", stable_gamma=4)
        found[f"lora_ga_config={direction}"] = {"init_lora_weights": "lora_ga", "lora_ga_config": config}
    # Saved as plain LoRA over the unchanged base, as PEFT's documentation advises for starts that change it.
    found |= {
        f"{name}, {CONVERTED}": found[name]
        for name in ("init_lora_weights=pissa", "init_lora_weights=olora", "init_lora_weights=corda", "lora_ga_config=ArBr")
    }
    for start in ("batch_average", "batch_average_once", "random"):
        found[f"velora_config={start}"] = {"velora_config": VeloraConfig(num_groups=4, scale=0.5, init_type=start)}
    for entropy in (False, True):
        config = MontecloraConfig(num_samples=2, buffer_size=4, use_entropy=entropy, dirichlet_prior=0.2)
        found[f"monteclora_config, use_entropy={entropy}"] = {"monteclora_config": config}
    if base.task == "CAUSAL_LM":
        # For other tasks PEFT never lets it act.
        found["alora_invocation_tokens"] = {"alora_invocation_tokens": [7]}
    if base.task != "SEQ_CLS":
        found["head"] = {"target_modules": ["lm_head", first]}
        found["ensure_weight_tying"] = {"target_modules": [words], "ensure_weight_tying": True}
        found["ensure_weight_tying, saved"] = {"modules_to_save": [words], "ensure_weight_tying": True}
    return found


def uncovered(bases: list[Base]) -> list[str]:
    """Keys of PEFT's configurations that no variant changes, and words that none takes."""
    missing = []
    for kind in TYPES:
        every = [USUAL.get(kind, {}) | changes for base in bases for changes in variants(kind, base).values()]
        for name, field in fields_of(kind).items():
            if name in EXEMPT or name in EXEMPT_OF.get(kind, ()):
                continue
            is_target = name == "target_modules" and kind not in WITHOUT_TARGETS
            values = [settings[name] for settings in every if name in settings and settings[name] != field.default]
            # AdaLoRA's ranks are PEFT's own, X-LoRA's adapters are made for it.
            if not values and not is_target and (kind, name) != ("ADALORA", "rank_pattern"):
                missing.append(f"{kind}: {name}")
            for word in words_of(field.type):
                if word not in (field.default, "pissa_niter_[number of iters]") and word not in values:
                    missing.append(f"{kind}: {name}={word}")
    return missing
