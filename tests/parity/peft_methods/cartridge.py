"""Cartridge: a prefix whose first token is frozen."""

from peft import CartridgeConfig

from .case import Case


def cartridge(_base, common):
    return CartridgeConfig(num_virtual_tokens=4, num_frozen_tokens=1, **common)


CASES = {"cartridge": Case(cartridge, bases=("llama", "gpt2"), value=lambda _name, noise: 0.5 * noise)}
