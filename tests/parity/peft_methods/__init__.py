"""The methods of HF PEFT that golden files are made with: one file a method, found by its place in this folder.

A file has `CASES`: for each case its name and a `Case`.
"""

import importlib
import pkgutil

from .case import Case


def cases() -> dict[str, Case]:
    """Every case of every file, by name."""
    found: dict[str, Case] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for name, case in getattr(importlib.import_module(f"{__name__}.{file}"), "CASES", {}).items():
            if name in found:
                raise AssertionError(f"{file}.py: the case {name} exists already")
            found[name] = case
    return found
