"""Write HF PEFT's default of every setting of every method.

    python tests/parity/make_defaults.py

The result is `golden/peft_defaults.json`, one object for each `peft_type`.
"""

import dataclasses
import json
from pathlib import Path

from peft import PEFT_TYPE_TO_CONFIG_MAPPING

CONFIGS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def plain(value):
    """The value if JSON can hold it as it is."""
    return value if isinstance(value, (bool, int, float, str)) else None


def defaults(config) -> dict:
    """The settings with a default that is a plain value."""
    fields = ((field.name, plain(field.default)) for field in dataclasses.fields(config))
    return {name: value for name, value in fields if value is not None}


if __name__ == "__main__":
    golden = Path(__file__).parent / "golden" / "peft_defaults.json"
    values = {name: defaults(config) for name, config in CONFIGS.items()}
    golden.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
