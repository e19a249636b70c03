"""P-Tuning, with both of PEFT's prompt encoders."""

from peft import PromptEncoderConfig

from .case import Case
from .prompts import VIRTUAL_TOKENS


def p_tuning(kind):
    def make(base, common):
        # Of an encoder-decoder's two prompts PEFT uses the encoder's only.
        submodules = {"num_transformer_submodules": 1} if base.task == "SEQ_2_SEQ_LM" else {}
        return PromptEncoderConfig(
            num_virtual_tokens=VIRTUAL_TOKENS,
            encoder_reparameterization_type=kind,
            encoder_hidden_size=6,
            **submodules,
            **common,
        )

    return make


def embeddings(name, noise):
    return 0.5 * noise if "prompt_encoder" in name and "head" not in name else None


CASES = {
    "p_tuning_mlp": Case(p_tuning("MLP"), bases=("bert", "llama"), value=embeddings, folds=True),
    "p_tuning_lstm": Case(p_tuning("LSTM"), bases=("bert", "t5"), value=embeddings, folds=True),
}
