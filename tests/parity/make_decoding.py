"""Make `golden/decoding.json`: tokens that transformers and PEFT generate from the golden models.

For every golden causal language model and every adapter that PEFT saved for it: greedy tokens, and the
best text of two beam searches, from one prompt. Everything is computed in float64, so that no tie is
decided by rounding.

    python make_decoding.py
"""

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

warnings.filterwarnings("ignore")
GOLDEN = Path(__file__).parent / "golden"
PROMPT = [7, 41, 12, 58, 23]
NEW_TOKENS = 24
# Ends of beams; many, so that some come.
ENDS = list(range(4, 100, 12))
# Without it these models repeat one token.
REPETITION_PENALTY = 2.0
BEAMS = [{"num_beams": 3, "length_penalty": 1.0}, {"num_beams": 4, "length_penalty": -0.5}]
CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def generate(model, **settings):
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        repetition_penalty=REPETITION_PENALTY,
        **settings,
    )
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    new = output[0].tolist()
    # PEFT gives the prompt back too, whatever it puts in front.
    return new[len(PROMPT) :]


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
    if not set(config.architectures) & CAUSAL or config.max_position_embeddings < len(PROMPT) + NEW_TOKENS + 8:
        continue
    name = base.parent.name

    def open_base():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
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
