"""BOFT.

PEFT multiplies several rotations only with its CUDA extension, which makes block-diagonal matrices; here PyTorch
makes them.
"""

import peft.tuners.boft.layer as layer
import torch
from peft import BOFTConfig

from .case import Case


class BlockDiagonal:
    """What the extension computes: `[factors, blocks, b, b]` to `[factors, blocks b, blocks b]`."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*torch.unbind(of_factor)) for of_factor in blocks])


layer.get_fbd_cuda = lambda: True
layer.FastBlockDiag = BlockDiagonal


def boft(base, common):
    return BOFTConfig(boft_block_size=4, target_modules=base.names.lora, **common)


def boft_butterfly(base, common):
    return BOFTConfig(
        boft_block_num=4, boft_block_size=0, boft_n_butterfly_factor=3, target_modules=base.names.lora, **common
    )


def scales(name, noise):
    return 1.0 + 0.2 * noise if "boft_s" in name else None


CASES = {
    "boft": Case(boft, bases=("llama",), value=scales),
    "boft_butterfly": Case(boft_butterfly, bases=("bert",), value=scales),
}
