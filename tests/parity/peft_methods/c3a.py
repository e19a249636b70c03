"""C3A.

PEFT 0.21.2 writes the backward of its convolution by hand, and hands back to the input the gradient of another
function: `sum_p g[p] w[p + q]` for `sum_p g[p] w[q - p]`. Here autograd differentiates PEFT's forward.
"""

import peft.tuners.c3a.layer as layer
from peft import C3AConfig
from peft.tuners.c3a.utils import BlockCircularConvolution

from .case import Case


class NoContext:
    """Stands in for what autograd hands to a function's forward."""

    def save_for_backward(self, *_tensors):
        pass


class Convolution:
    """PEFT's forward, differentiated by autograd."""

    @staticmethod
    def apply(x, w):
        return BlockCircularConvolution.forward(NoContext(), x, w)


layer.BlockCircularConvolution = Convolution


def c3a(base, common):
    return C3AConfig(block_size=8, target_modules=base.names.lora, **common)


def c3a_patterns(base, common):
    first, second, _ = base.names.patterns
    sizes = {second: 4}
    return C3AConfig(block_size=8, block_size_pattern=sizes, init_weights=True, target_modules=[first, second], **common)


def kernels(name, noise):
    return 2.0 * noise if "c3a_kernel" in name else None


CASES = {
    "c3a": Case(c3a, bases=("llama",), value=kernels),
    "c3a_patterns": Case(c3a_patterns, bases=("bert",), value=kernels),
}
