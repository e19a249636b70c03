"""Prints, as one JSON object, what other parsers read in a model card.

    pip install pyyaml markdown-it-py
    python crates/train/tests/read_card.py README.md

A unit test of model_card.rs calls it when EPIPHYTE_PYTHON names a Python that has the packages.
"""

import json
import pathlib
import shlex
import sys

import yaml
from markdown_it import MarkdownIt

_, front_matter, markdown = pathlib.Path(sys.argv[1]).read_bytes().decode().split("---\n", 2)
tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
lines, row = [], []
for token in tokens:
    if token.type == "inline":
        # The text without its markup, kept apart by cell.
        row.append("".join(child.content for child in token.children))
    elif token.type in ("tr_close", "heading_close", "paragraph_close"):
        lines.append(row)
        row = []
second_cells = {row[0]: row[1] for row in lines if len(row) > 1}
title = lines[0][0]
print(
    json.dumps(
        {
            "front_matter": yaml.safe_load(front_matter),
            "cells": {
                "base": title.removeprefix("lora adapter for "),
                **{name: second_cells[name] for name in ("training", "evaluation", "text_columns")},
            },
            "command": shlex.split([token.content for token in tokens if token.type == "fence"][-1]),
        }
    )
)
