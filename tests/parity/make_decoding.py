"""Make `golden/decoding.json`: tokens that transformers and PEFT generate from the golden models.

For every golden causal language model and encoder-decoder, and every adapter that PEFT saved for it:
greedy tokens, and the best text of two beam searches, from one prompt. Everything is computed in
float64, so that no tie is decided by rounding.

    python make_decoding.py
"""

import json
import math
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

warnings.filterwarnings("ignore")
GOLDEN = Path(__file__).parent / "golden"
PROMPT = [7, 41, 12, 58, 23]
NEW_TOKENS = 24
# Ends of beams; many, so that some come.
ENDS = list(range(4, 100, 12))
# Without it these models repeat one token.
REPETITION_PENALTY = 2.0
BEAMS = [{"num_beams": 3, "length_penalty": 1.0}, {"num_beams": 4, "length_penalty": -0.5}]
# The class that opens a model of each architecture.
CLASSES = {
    **dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), AutoModelForCausalLM),
    **dict.fromkeys(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(), AutoModelForSeq2SeqLM),
}


def generate(model, **settings):
    encodes = model.config.is_encoder_decoder
    config = GenerationConfig(
        # transformers gives T5's cache as many layers as the encoder has, which may be too few.
        use_cache=not encodes,
        max_new_tokens=NEW_TOKENS,
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
    beams = []
    for settings in BEAMS:
        new = generate(model, eos_token_id=ENDS, **settings)
        # What follows the end is padding.
        end = next((at for at, token in enumerate(new) if token in ENDS), len(new))
        beams.append({**settings, "tokens": new[:end]})
    return {"base": base, "adapter": adapter, "greedy": generate(model), "beams": beams}


cases = []
for base in sorted(GOLDEN.glob("*/base")):
    config = AutoConfig.from_pretrained(base)
    # Virtual tokens need positions too.
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    [architecture] = config.architectures
    if architecture not in CLASSES or positions < len(PROMPT) + NEW_TOKENS + 8:
        continue
    name = base.parent.name

    def open_base():
        model = CLASSES[architecture].from_pretrained(base, dtype=torch.float32)
        # Only what is asked for ends a text.
        model.generation_config.eos_token_id = None
        return model

    cases.append(texts(open_base(), name, None))
    for adapter in sorted(base.parent.glob("*/adapter_config.json")):
        model = PeftModel.from_pretrained(open_base(), adapter.parent)
        cases.append(texts(model, name, adapter.parent.name))
lines = ",\n".join(json.dumps(case) for case in cases)
head = json.dumps({"prompt": PROMPT, "ends": ENDS, "repetition_penalty": REPETITION_PENALTY})[:-1]
(GOLDEN / "decoding.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
print(f"{len(cases)} cases")
