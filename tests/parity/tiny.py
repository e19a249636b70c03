"""The tiny models and method configurations that the parity scripts share."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from transformers import (
    AlbertConfig,
    AlbertForMultipleChoice,
    AlbertForQuestionAnswering,
    AlbertForMaskedLM,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForMaskedLM,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DistilBertConfig,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    ElectraConfig,
    ElectraForMultipleChoice,
    ElectraForQuestionAnswering,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2ForQuestionAnswering,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForTokenClassification,
    GPTNeoXForQuestionAnswering,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    MBartConfig,
    MBartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    ModernBertConfig,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    MPNetConfig,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MT5Config,
    MT5ForConditionalGeneration,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
)

import peft_methods

CASES = peft_methods.cases()
VOCABULARY = 100


@dataclass(frozen=True)
class Names:
    """How an architecture names what the methods act on."""

    lora: list[str]
    ia3: list[str]
    ia3_feedforward: list[str]
    # Two targets of `lora_patterns`, and an expression for the second in the second layer.
    patterns: tuple[str, str, str]
    # What `freeze` trains, the second layer's feed-forward: a part of its names, and parts that its names lack.
    feed_forward: tuple[str, list[str]]


BERT = Names(
    lora=["query", "value"],
    ia3=["key", "value"],
    ia3_feedforward=["output.dense"],
    patterns=("attention.self.query", "output.dense", r"layers?\.1\..*output.dense"),
    feed_forward=("layer.1.", ["attention", "LayerNorm"]),
)
DISTILBERT = Names(
    lora=["q_lin", "v_lin"],
    ia3=["k_lin", "v_lin"],
    ia3_feedforward=["lin2"],
    patterns=("attention.q_lin", "lin2", r"layer\.1\.ffn\.lin2"),
    feed_forward=("layer.1.ffn.", []),
)
ALBERT = replace(BERT, ia3_feedforward=["ffn_output"])
DEBERTA = replace(BERT, lora=["query_proj", "value_proj"], ia3=["key_proj", "value_proj"])
BART = Names(
    lora=["q_proj", "v_proj"],
    ia3=["q_proj", "v_proj"],
    ia3_feedforward=["fc2"],
    patterns=("self_attn.q_proj", "fc2", r".*decoder\.layers\.1\.fc2"),
    feed_forward=("decoder.layers.1.fc", []),
)
MODERNBERT = Names(
    lora=["Wqkv"],
    ia3=["Wqkv"],
    ia3_feedforward=["mlp.Wo"],
    patterns=("attn.Wqkv", "mlp.Wo", r"layers\.1\.mlp\.Wo"),
    feed_forward=("layers.1.mlp.", []),
)
MPNET = replace(BERT, lora=["q", "v"], ia3=["k", "v"])
LLAMA = Names(
    lora=["q_proj", "v_proj"],
    ia3=["k_proj", "v_proj"],
    ia3_feedforward=["down_proj"],
    patterns=("self_attn.q_proj", "down_proj", r"layers?\.1\..*down_proj"),
    feed_forward=("layers.1.mlp.", []),
)
GPT2 = Names(
    lora=["c_attn"],
    ia3=["c_attn"],
    ia3_feedforward=["mlp.c_proj"],
    patterns=("attn.c_attn", "c_proj", r"h\.1\..*c_proj"),
    feed_forward=("h.1.mlp.", []),
)

PACKED = replace(LLAMA, lora=["qkv_proj"])
GPT_NEOX = Names(
    lora=["query_key_value"],
    ia3=["query_key_value"],
    ia3_feedforward=["dense_4h_to_h"],
    patterns=("attention.query_key_value", "dense_4h_to_h", r"layers\.1\..*dense_4h_to_h"),
    feed_forward=("layers.1.mlp.", []),
)
OPT = Names(
    lora=["q_proj", "v_proj"],
    ia3=["q_proj", "k_proj"],
    ia3_feedforward=["fc2"],
    patterns=("self_attn.q_proj", "fc2", r"layers\.1\.fc2"),
    feed_forward=("layers.1.fc", []),
)

T5 = Names(
    lora=["q", "v"],
    ia3=["k", "v"],
    ia3_feedforward=["wo"],
    patterns=("SelfAttention.q", "wo", r".*decoder\.block\.1\..*wo"),
    feed_forward=("decoder.block.1.layer.2.DenseReluDense.", []),
)
MT5 = replace(T5, ia3=["k", "v", "wi_1"], ia3_feedforward=[])

# Parts of the names of norms and of tables of embeddings.
NORMS, EMBEDDINGS = ("norm", "ln_"), ("embed", "wte", "wpe")


@dataclass
class Base:
    """A tiny base model, the batch it is run on and the names of its modules."""

    name: str
    make: Callable
    names: Names
    task: str
    lengths: list[int]
    # Lengths of the decoder's targets.
    targets: list[int] | None = None
    labels: list | None = None
    pair: bool = False
    # The task's head, where PEFT does not know its name.
    head: str | None = None
    # What the head reads: each token's class, an answer's ends, or choices; else a sequence or its next tokens.
    reads: str | None = None
    # How transformers computes attention, where its own choice leaves something out, such as soft caps.
    attention: str | None = None
    # Names that transformers changes when it saves a model: the live beginning, and that of the file.
    renames: dict[str, str] = field(default_factory=dict)
    # Whether the embedding of padding, where a decoder reads it, gets a gradient.
    reads_padding: bool = True
    # How bitsandbytes keeps the linear layers: nf4, fp4 or int8.
    quantization: str | None = None
    # Steps of the optimizer, and its learning rate.
    steps: int = 5
    lr: float = 1e-2
    methods: list[str] = field(default_factory=list)


def bert(num_labels: int):
    """A BERT classifier (`num_labels` > 1) or regressor (1)."""
    return lambda: BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=num_labels,
        )
    )


def roberta(model_class, config_class, **changes):
    """A RoBERTa classifier whose positions begin at 4; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 68,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
    } | changes
    return lambda: model_class(config_class(**settings))


def encoder(model_class, config_class, **changes):
    """A classifier over an encoder with BERT's layers; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
    } | changes
    return lambda: model_class(config_class(**settings))


def gpt2(model_class, **changes):
    """A GPT-2 whose feed-forward is not four times the hidden size; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | changes
    return lambda: model_class(GPT2Config(**settings))


def decoder(model_class, config_class, **changes):
    """A decoder of the Llama family; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | changes
    return lambda: model_class(config_class(**settings))


def relative(model_class, config_class, **changes):
    """A still smaller decoder, of which every parameter is trained; `changes` override the tiny configuration."""
    settings = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "head_dim": 6}
    return decoder(model_class, config_class, **(settings | changes))


def small_decoder(config_class, **settings):
    """`relative` for classes of one configuration."""
    return lambda model_class, **changes: relative(model_class, config_class, **settings, **changes)


small_gpt_neox = small_decoder(GPTNeoXConfig, rotary_pct=0.5, head_dim=4)


def scaled_llama(**rope):
    """A still smaller Llama whose rotary embedding is scaled as `rope` says; forward only."""
    return decoder(
        LlamaForCausalLM,
        LlamaConfig,
        vocab_size=60,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        tie_word_embeddings=True,
        max_position_embeddings=rope.pop("max_position_embeddings", 64),
        rope_parameters={"rope_theta": 10000.0, **rope},
    )


def t5(model_class, config_class=T5Config, own_head=False, **changes):
    """An encoder-decoder of the T5 family; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    } | changes

    def make():
        model = model_class(config_class(**settings))
        if own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        return model

    return make


def small_t5(model_class, **changes):
    """A still smaller encoder-decoder of the T5 family, its stacks of different depth."""
    settings = {"vocab_size": 40, "d_model": 16, "d_kv": 3, "d_ff": 24, "num_decoder_layers": 1}
    return t5(model_class, **settings, **changes)


# transformers makes NaN of a padded query whose window holds padding only.
CAPPED_LENGTHS = [14, 13, 20, 15]
def bart(model_class, config_class=BartConfig, **changes):
    """An encoder-decoder of the BART family; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": 60,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 20,
        "max_position_embeddings": 40,
        "dropout": 0.0,
        "scale_embedding": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "decoder_start_token_id": 1,
    } | changes
    return lambda: model_class(config_class(**settings))


HEAD_LENGTHS = [9, 6, 11, 4]
HEAD_LABELS = {
    "tokens": [[-100, 2, 0, -100, 1, 1, 0, 2, -100], [0, -100, 1, 1, 2, -100], [-100] * 4 + [1] * 7, [2, 0, 1, 2]],
    "answers": [[2, 4], [0, 0], [10, 10], [1, 3]],
    "choices": [1, 0],
}
HEAD_TASKS = {"tokens": "TOKEN_CLS", "answers": "QUESTION_ANS", "choices": "SEQ_CLS"}


def with_other_heads(name, names, config_class, classes, **changes):
    """The encoder of a family, still smaller, with the heads for tokens, answers and choices."""
    small = {
        "vocab_size": 26,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 24,
    }
    return [
        Base(
            f"{name}_{reads}",
            encoder(model_class, config_class, **(small | changes | {"num_labels": 3 if reads == "tokens" else 2})),
            names,
            HEAD_TASKS[reads],
            HEAD_LENGTHS,
            labels=HEAD_LABELS[reads],
            reads=reads,
            methods=["lora", "full"] if name == "bert" else ["full"],
        )
        for reads, model_class in zip(HEAD_TASKS, classes)
    ]


MODERNBERT_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
BERT_LENGTHS, TEXT_LENGTHS, TARGET_LENGTHS = [12, 7, 16, 4], [14, 9, 20, 5], [6, 11, 3, 8]
PEFT_METHODS = ["lora", "lora_patterns", "ia3", "prompt_tuning", "prefix_tuning", "prefix_tuning_mlp"]

BASES = [
    Base(
        "bert",
        bert(3),
        BERT,
        "SEQ_CLS",
        BERT_LENGTHS,
        labels=[0, 2, 1, 2],
        pair=True,
        methods=[*PEFT_METHODS, "adalora", "dora", "vera", "ia3_paper", "full", "bitfit", "bitfit_subset", "freeze"],
    ),
    Base("bert_regression", bert(1), BERT, "SEQ_CLS", BERT_LENGTHS, labels=[0.4, 2.5, -1.0, 3.75], methods=["lora", "bitfit"]),
    Base("llama", decoder(LlamaForCausalLM, LlamaConfig), LLAMA, "CAUSAL_LM", TEXT_LENGTHS, methods=[*PEFT_METHODS, "adalora", "dora", "vera", "full", "freeze"]),
    Base(
        "llama_nf4",
        # On a CPU bitsandbytes decodes rows wrongly that are not whole blocks of 64.
        decoder(LlamaForCausalLM, LlamaConfig, vocab_size=60, hidden_size=64, intermediate_size=64),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        quantization="nf4",
        steps=100,
        lr=1e-3,
        methods=["lora"],
    ),
    Base(
        "llama_int8",
        decoder(LlamaForCausalLM, LlamaConfig, vocab_size=60, num_hidden_layers=1),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        quantization="int8",
        methods=["lora"],
    ),
    Base(
        "llama_tied",
        decoder(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "full"],
    ),
    Base(
        "llama_classifier",
        decoder(LlamaForSequenceClassification, LlamaConfig, num_labels=3),
        LLAMA,
        "SEQ_CLS",
        TEXT_LENGTHS,
        labels=[0, 2, 1, 2],
        methods=["lora", "ia3", "prompt_tuning", "prefix_tuning"],
    ),
    Base(
        "qwen2",
        decoder(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "ia3", "prefix_tuning", "bitfit"],
    ),
    Base(
        "mistral",
        decoder(MistralForCausalLM, MistralConfig, sliding_window=8),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "prompt_tuning", "prefix_tuning"],
    ),
    Base(
        "llama_rope_llama3",
        scaled_llama(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
    Base("llama_rope_linear", scaled_llama(rope_type="linear", factor=4.0), LLAMA, "CAUSAL_LM", TEXT_LENGTHS),
    Base(
        "llama_rope_dynamic",
        scaled_llama(rope_type="dynamic", factor=2.0, max_position_embeddings=8),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
    Base(
        "llama_rope_yarn",
        scaled_llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
        LLAMA,
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
    *[
        Base(
            name,
            relative(*classes, **changes),
            names,
            "CAUSAL_LM",
            CAPPED_LENGTHS if name == "gemma2" else TEXT_LENGTHS,
            attention="eager" if name == "gemma2" else None,
            renames={"lm_head.": "embed_out."} if names is GPT_NEOX else {},
            methods=["lora", "full"],
        )
        for name, classes, names, changes in [
            ("qwen3", (Qwen3ForCausalLM, Qwen3Config), LLAMA, {"attention_bias": True}),
            ("gemma", (GemmaForCausalLM, GemmaConfig), LLAMA, {"tie_word_embeddings": True}),
            (
                "gemma2",
                (Gemma2ForCausalLM, Gemma2Config),
                LLAMA,
                {
                    "sliding_window": 8,
                    "query_pre_attn_scalar": 8,
                    "attn_logit_softcapping": 2.0,
                    "final_logit_softcapping": 3.0,
                },
            ),
            (
                "gemma3_text",
                (Gemma3ForCausalLM, Gemma3TextConfig),
                LLAMA,
                {
                    "sliding_window": 8,
                    "query_pre_attn_scalar": 8,
                    "layer_types": ["sliding_attention", "full_attention"],
                    "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30000.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
                    },
                },
            ),
            ("phi3", (Phi3ForCausalLM, Phi3Config), PACKED, {"partial_rotary_factor": 0.7, "sliding_window": 8}),
            (
                "smollm3",
                (SmolLM3ForCausalLM, SmolLM3Config),
                LLAMA,
                {
                    "head_dim": 4,
                    "no_rope_layers": [1, 0],
                    "use_sliding_window": True,
                    "sliding_window": 8,
                    "attention_bias": True,
                    "mlp_bias": True,
                },
            ),
            ("olmo2", (Olmo2ForCausalLM, Olmo2Config), LLAMA, {"head_dim": 4, "attention_bias": True}),
            ("glm", (GlmForCausalLM, GlmConfig), LLAMA, {"head_dim": 8}),
            ("glm4", (Glm4ForCausalLM, Glm4Config), LLAMA, {"head_dim": 8}),
            ("gpt_neox", (GPTNeoXForCausalLM, GPTNeoXConfig), GPT_NEOX, {"rotary_pct": 0.5, "head_dim": 4}),
            (
                "gpt_neox_sequential",
                (GPTNeoXForCausalLM, GPTNeoXConfig),
                GPT_NEOX,
                {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0, "head_dim": 4},
            ),
            ("opt", (OPTForCausalLM, OPTConfig), OPT, {"ffn_dim": 24, "dropout": 0.0, "tie_word_embeddings": True}),
        ]
    ],
    Base(
        "roberta",
        roberta(RobertaForSequenceClassification, RobertaConfig),
        BERT,
        "SEQ_CLS",
        BERT_LENGTHS,
        labels=[0, 2, 1, 2],
        methods=[*PEFT_METHODS, "full", "bitfit", "bitfit_subset", "freeze"],
    ),
    Base(
        "xlm_roberta_regression",
        roberta(XLMRobertaForSequenceClassification, XLMRobertaConfig, num_labels=1, type_vocab_size=2, pad_token_id=1),
        BERT,
        "SEQ_CLS",
        BERT_LENGTHS,
        labels=[0.4, 2.5, -1.0, 3.75],
        pair=True,
        methods=["lora"],
    ),
    *[
        Base(
            name,
            encoder(*classes, **changes),
            names,
            "SEQ_CLS",
            CAPPED_LENGTHS if names is MODERNBERT else BERT_LENGTHS,
            labels=[0, 2, 1, 2],
            methods=["lora", "full"],
        )
        for name, classes, names, changes in [
            (
                "distilbert",
                (DistilBertForSequenceClassification, DistilBertConfig),
                DISTILBERT,
                {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "hidden_dim": 24},
            ),
            ("electra", (ElectraForSequenceClassification, ElectraConfig), BERT, {"embedding_size": 8}),
            (
                "deberta",
                (DebertaV2ForSequenceClassification, DebertaV2Config),
                DEBERTA,
                {
                    "relative_attention": True,
                    "position_buckets": 8,
                    "norm_rel_ebd": "layer_norm",
                    "share_att_key": True,
                    "pos_att_type": "p2c|c2p",
                    "position_biased_input": False,
                    "type_vocab_size": 2,
                },
            ),
            (
                "deberta_own_projections",
                (DebertaV2ForSequenceClassification, DebertaV2Config),
                DEBERTA,
                {"relative_attention": True, "max_relative_positions": 12, "pos_att_type": ["p2c", "c2p"]},
            ),
            ("mpnet", (MPNetForSequenceClassification, MPNetConfig), MPNET, {"pad_token_id": 1}),
            (
                "albert",
                (AlbertForSequenceClassification, AlbertConfig),
                ALBERT,
                {"embedding_size": 8, "num_hidden_layers": 3, "classifier_dropout_prob": 0.0},
            ),
            (
                "albert_groups",
                (AlbertForSequenceClassification, AlbertConfig),
                ALBERT,
                {
                    "num_hidden_groups": 2,
                    "inner_group_num": 2,
                    "num_hidden_layers": 3,
                    "embedding_size": 16,
                    "classifier_dropout_prob": 0.0,
                },
            ),
            (
                "modernbert",
                (ModernBertForSequenceClassification, ModernBertConfig),
                MODERNBERT,
                MODERNBERT_TOKENS | {"num_hidden_layers": 3, "local_attention": 16, "classifier_pooling": "mean"},
            ),
            (
                "modernbert_biases",
                (ModernBertForSequenceClassification, ModernBertConfig),
                MODERNBERT,
                MODERNBERT_TOKENS
                | {
                    "layer_types": ["sliding_attention", "full_attention"],
                    "local_attention": 17,
                    "rope_parameters": {
                        "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                    },
                    "norm_bias": True,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "classifier_bias": True,
                    "hidden_activation": "silu",
                    "classifier_activation": "tanh",
                },
            ),
        ]
    ],
    *with_other_heads(
        "bert",
        BERT,
        BertConfig,
        [BertForTokenClassification, BertForQuestionAnswering, BertForMultipleChoice],
    ),
    *with_other_heads(
        "roberta",
        BERT,
        RobertaConfig,
        [RobertaForTokenClassification, RobertaForQuestionAnswering, RobertaForMultipleChoice],
        type_vocab_size=1,
        pad_token_id=3,
    ),
    *with_other_heads(
        "distilbert",
        DISTILBERT,
        DistilBertConfig,
        [DistilBertForTokenClassification, DistilBertForQuestionAnswering, DistilBertForMultipleChoice],
        vocab_size=28,
        hidden_dim=12,
    ),
    *with_other_heads(
        "electra",
        BERT,
        ElectraConfig,
        [ElectraForTokenClassification, ElectraForQuestionAnswering, ElectraForMultipleChoice],
        embedding_size=4,
    ),
    *with_other_heads(
        "mpnet",
        MPNET,
        MPNetConfig,
        [MPNetForTokenClassification, MPNetForQuestionAnswering, MPNetForMultipleChoice],
        pad_token_id=1,
    ),
    *with_other_heads(
        "deberta",
        DEBERTA,
        DebertaV2Config,
        [DebertaV2ForTokenClassification, DebertaV2ForQuestionAnswering, DebertaV2ForMultipleChoice],
        relative_attention=True,
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
    ),
    *with_other_heads(
        "albert",
        ALBERT,
        AlbertConfig,
        [AlbertForTokenClassification, AlbertForQuestionAnswering, AlbertForMultipleChoice],
        embedding_size=4,
    ),
    *with_other_heads(
        "modernbert",
        MODERNBERT,
        ModernBertConfig,
        [ModernBertForTokenClassification, ModernBertForQuestionAnswering, ModernBertForMultipleChoice],
        classifier_pooling="mean",
        **MODERNBERT_TOKENS,
    ),
    *[
        Base(
            f"{name}_masked_lm",
            encoder(*classes, hidden_act="gelu", **changes),
            names,
            "MASKED_LM",
            CAPPED_LENGTHS if names is MODERNBERT else BERT_LENGTHS,
            methods=["lora", "full"],
        )
        for name, classes, names, changes in [
            ("bert", (BertForMaskedLM, BertConfig), BERT, {}),
            ("roberta", (RobertaForMaskedLM, RobertaConfig), BERT, {"pad_token_id": 1, "type_vocab_size": 1}),
            (
                "distilbert",
                (DistilBertForMaskedLM, DistilBertConfig),
                DISTILBERT,
                {"dropout": 0.0, "attention_dropout": 0.0, "hidden_dim": 24},
            ),
            ("electra", (ElectraForMaskedLM, ElectraConfig), BERT, {"embedding_size": 8}),
            (
                "deberta",
                (DebertaV2ForMaskedLM, DebertaV2Config),
                DEBERTA,
                {"relative_attention": True, "pos_att_type": "p2c", "position_biased_input": False},
            ),
            ("deberta_v3", (DebertaV2ForMaskedLM, DebertaV2Config), DEBERTA, {"legacy": False}),
            ("mpnet", (MPNetForMaskedLM, MPNetConfig), MPNET, {"pad_token_id": 1}),
            ("albert", (AlbertForMaskedLM, AlbertConfig), ALBERT, {"embedding_size": 8}),
            ("modernbert", (ModernBertForMaskedLM, ModernBertConfig), MODERNBERT, MODERNBERT_TOKENS),
        ]
    ],
    Base(
        "gpt2",
        gpt2(GPT2LMHeadModel, scale_attn_by_inverse_layer_idx=True),
        GPT2,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=[*PEFT_METHODS, "full", "bitfit", "freeze"],
    ),
    Base(
        "gpt2_untied",
        gpt2(GPT2LMHeadModel, scale_attn_weights=False, tie_word_embeddings=False, activation_function="relu"),
        GPT2,
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora"],
    ),
    Base(
        "gpt2_classifier",
        gpt2(GPT2ForSequenceClassification, num_labels=3),
        GPT2,
        "SEQ_CLS",
        TEXT_LENGTHS,
        labels=[0, 2, 1, 2],
        methods=["lora", "ia3", "prompt_tuning", "prefix_tuning"],
    ),
    *[
        Base(
            f"{name}_{reads}",
            make(model_class, classifier_dropout=0.0, num_labels=3 if reads == "tokens" else 2),
            names,
            HEAD_TASKS[reads],
            HEAD_LENGTHS,
            labels=HEAD_LABELS[reads],
            reads=reads,
            methods=["lora", "full"],
        )
        for name, reads, make, model_class, names in [
            ("llama", "tokens", small_decoder(LlamaConfig), LlamaForTokenClassification, LLAMA),
            ("llama", "answers", small_decoder(LlamaConfig), LlamaForQuestionAnswering, LLAMA),
            ("mistral", "answers", small_decoder(MistralConfig), MistralForQuestionAnswering, LLAMA),
            ("gpt2", "tokens", gpt2, GPT2ForTokenClassification, GPT2),
            ("gpt2", "answers", gpt2, GPT2ForQuestionAnswering, GPT2),
            ("gpt_neox", "tokens", small_gpt_neox, GPTNeoXForTokenClassification, GPT_NEOX),
            ("gpt_neox", "answers", small_gpt_neox, GPTNeoXForQuestionAnswering, GPT_NEOX),
            ("t5", "tokens", small_t5, T5ForTokenClassification, T5),
            ("t5", "answers", small_t5, T5ForQuestionAnswering, T5),
            ("bart", "answers", bart, BartForQuestionAnswering, BART),
        ]
    ],
    Base(
        "t5",
        t5(T5ForConditionalGeneration),
        T5,
        "SEQ_2_SEQ_LM",
        TEXT_LENGTHS,
        targets=TARGET_LENGTHS,
        methods=["lora", "lora_patterns", "ia3", "prompt_tuning", "full", "freeze"],
    ),
    Base(
        "t5_v1_1",
        t5(
            T5ForConditionalGeneration,
            own_head=True,
            num_layers=1,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
        T5,
        "SEQ_2_SEQ_LM",
        TEXT_LENGTHS,
        targets=TARGET_LENGTHS,
        methods=["lora", "full"],
    ),
    Base(
        "t5_classifier",
        t5(T5ForSequenceClassification, num_labels=3),
        T5,
        "SEQ_CLS",
        TEXT_LENGTHS,
        labels=[0, 2, 1, 2],
        head="classification_head",
        methods=["lora", "full"],
    ),
    Base(
        "bart",
        bart(BartForConditionalGeneration),
        BART,
        "SEQ_2_SEQ_LM",
        TEXT_LENGTHS,
        targets=TARGET_LENGTHS,
        reads_padding=False,
        methods=["lora", "full"],
    ),
    Base(
        "mbart",
        bart(MBartForConditionalGeneration, MBartConfig, scale_embedding=False),
        BART,
        "SEQ_2_SEQ_LM",
        TEXT_LENGTHS,
        targets=TARGET_LENGTHS,
        reads_padding=False,
        methods=["lora", "full"],
    ),
    Base(
        "bart_classifier",
        bart(BartForSequenceClassification, num_labels=3),
        BART,
        "SEQ_CLS",
        TEXT_LENGTHS,
        labels=[0, 2, 1, 2],
        head="classification_head",
        methods=["lora", "full"],
    ),
    Base(
        "mt5",
        t5(MT5ForConditionalGeneration, MT5Config, own_head=True),
        MT5,
        "SEQ_2_SEQ_LM",
        TEXT_LENGTHS,
        targets=TARGET_LENGTHS,
        methods=["ia3"],
    ),
]


def seeded(*names: str) -> torch.Generator:
    """A generator that depends on the names alone, so that adding a case moves no other."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(names).encode()))


def randomise(named_parameters, generator: torch.Generator, method: str | None = None) -> None:
    """Values as if trained: no zero bias, no unit norm, nothing at its initial value."""
    with torch.no_grad():
        for name, value in named_parameters:
            noise = torch.randn(value.shape, generator=generator)
            own = CASES[method].value(name, noise) if method in CASES else None
            is_scale = any(part in name.lower() for part in NORMS) and name.endswith("weight")
            if own is not None:
                value.copy_(own)
            elif is_scale:
                value.copy_(1.0 + 0.2 * noise)
            elif any(part in name for part in EMBEDDINGS):
                value.copy_(0.5 * noise)
            else:
                value.copy_(0.15 * noise)


def peft_config(base: Base, method: str):
    """PEFT's configuration of a method, or None for a method that PEFT lacks."""
    if method not in CASES:
        return None
    # PEFT has no type for masked language models.
    common = {"task_type": None if base.task == "MASKED_LM" else base.task}
    if base.head:
        common["modules_to_save"] = [base.head]
    return CASES[method].make(base, common)


def methods_of(base: Base) -> list[str]:
    """The cases of a base: those that it names, and those of `peft_methods` that name it."""
    return [*base.methods, *(name for name, case in CASES.items() if base.name in case.bases)]
