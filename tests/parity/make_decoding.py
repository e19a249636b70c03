"""Make `golden/decoding.json`: tokens that transformers and PEFT generate from the golden models.

For every golden causal language model and encoder-decoder, and the adapters of the usual methods over it:
greedy tokens, without and with a cache, and the best text of two beam searches, from one prompt. The
models get more positions first, as `longer` says. Everything is computed in float64, so that no tie is
decided by rounding.

    python make_decoding.py
"""

import json
import math
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tiny import BASES

warnings.filterwarnings("ignore")
GOLDEN = Path(__file__).parent / "golden"
PROMPT = [7, 41, 12, 58, 23]
# Of greedy texts, and of beams.
NEW_TOKENS, BEAM_TOKENS = 64, 24
# As many as the longest text has, with virtual tokens.
POSITIONS = 96
# Ends of beams; many, so that some come.
ENDS = list(range(4, 100, 12))
# Without it these models repeat one token.
REPETITION_PENALTY = 2.0
BEAMS = [{"num_beams": 3, "length_penalty": 1.0}, {"num_beams": 4, "length_penalty": -0.5}]
# Those that `tiny.py` lists with a base: the methods of `peft_methods` are not among them.
METHODS = {base.name: base.methods for base in BASES}
# The class that opens a model of each architecture.
CLASSES = {
    **dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), AutoModelForCausalLM),
    **dict.fromkeys(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(), AutoModelForSeq2SeqLM),
}


def longer(base, directory):
    """The same model with more positions; a table of learned ones repeats its rows."""
    config = json.loads((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    key = next((it for it in ("max_position_embeddings", "n_positions") if it in config), None)
    if key:
        more, config[key] = POSITIONS - config[key], POSITIONS
        for name in tensors:
            if name.endswith(("embed_positions.weight", "wpe.weight")):
                rows = len(tensors[name]) + more
                tensors[name] = tensors[name].repeat(math.ceil(rows / len(tensors[name])), 1)[:rows]
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def generate(model, tokens, use_cache, **settings):
    encodes = model.config.is_encoder_decoder
    config = GenerationConfig(
        use_cache=use_cache,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        repetition_penalty=REPETITION_PENALTY,
        **settings,
    )
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    # PEFT gives the prompt back too, whatever it puts in front; a decoder behind an encoder begins with
    # its start token.
    begin = 1 if encodes else len(PROMPT)
    return output[0].tolist()[begin:]


def texts(model, base, adapter):
    model.eval().double()
    # PEFT hands prefixes over as a cache. transformers gives T5's cache as many layers as the encoder
    # has, which may be too few.
    is_prefix = adapter is not None and model.active_peft_config.peft_type == "PREFIX_TUNING"
    with_cache = is_prefix or not model.config.is_encoder_decoder
    texts = [generate(model, NEW_TOKENS, uses) for uses in {is_prefix, with_cache}]
    greedy = texts[0]
    assert all(text == greedy for text in texts), (base, adapter)
    beams = []
    for settings in BEAMS:
        new = generate(model, BEAM_TOKENS, with_cache, eos_token_id=ENDS, **settings)
        # What follows the end is padding.
        end = next((at for at, token in enumerate(new) if token in ENDS), len(new))
        beams.append({**settings, "tokens": new[:end]})
    return {"base": base, "adapter": adapter, "greedy": greedy, "beams": beams}


cases = []
for base in sorted(GOLDEN.glob("*/base")):
    config = AutoConfig.from_pretrained(base)
    [architecture] = config.architectures
    name = base.parent.name
    # A scaling that depends on the length means the lengths that it was made with; what is quantized is
    # rounded otherwise.
    if architecture not in CLASSES or name == "llama_rope_dynamic" or hasattr(config, "quantization_config"):
        continue
    directory = tempfile.TemporaryDirectory()
    longer(base, Path(directory.name))

    def open_base():
        model = CLASSES[architecture].from_pretrained(directory.name, dtype=torch.float32)
        # Only what is asked for ends a text.
        model.generation_config.eos_token_id = None
        return model

    cases.append(texts(open_base(), name, None))
    for method in sorted(METHODS[name]):
        adapter = base.parent / method
        if (adapter / "adapter_config.json").exists():
            cases.append(texts(PeftModel.from_pretrained(open_base(), adapter), name, method))
lines = ",\n".join(json.dumps(case) for case in cases)
head = json.dumps({"prompt": PROMPT, "positions": POSITIONS, "ends": ENDS, "repetition_penalty": REPETITION_PENALTY})[:-1]
(GOLDEN / "decoding.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
print(f"{len(cases)} cases")
