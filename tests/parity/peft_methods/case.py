"""What a case of a method is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A method of PEFT with settings, and the bases that it is tried on."""

    # PEFT's configuration, from the base of `tiny.py` and the keyword arguments that all configurations have.
    make: Callable
    # Names of bases in `tiny.py`, beside those that name the case themselves.
    bases: tuple[str, ...] = ()
    # Ends of the keys that PEFT stores and does not train.
    frozen: tuple[str, ...] = ()
    # Whether PEFT stores what a network computes, and not the network.
    folds: bool = False
    # What a forward pass of PEFT's is given in addition, from the number of rows.
    inputs: Callable[[int], dict] = lambda _rows: {}
    # Names of tensors of the whole model, which PyTorch lists below the first layer that uses them.
    shared: tuple[str, ...] = ()
    # Whether each row is run alone, because PEFT's result depends on the company of a row.
    alone: bool = False
    # What the file holds besides what PEFT stores, from the adapted model.
    extra: Callable | None = None
    # What the configuration holds besides what PEFT writes, from the adapted model.
    settings: Callable = lambda _model: {}
    # What a model needs before PEFT takes it.
    prepare: Callable = lambda _model: None
    # A value as if trained, from the parameter's name and normal noise of its shape, where 0.15 times the noise will
    # not do; None for the parameters of which it will.
    value: Callable[[str, torch.Tensor], torch.Tensor | None] = lambda _name, _noise: None
