"""OFT."""

from peft import OFTConfig

from .case import Case


def oft(base, common):
    return OFTConfig(oft_block_size=8, target_modules=base.names.lora, **common)


def oft_exact(base, common):
    targets = base.names.lora + base.names.ia3_feedforward
    return OFTConfig(r=2, oft_block_size=0, use_cayley_neumann=False, block_share=True, target_modules=targets, **common)


def oft_constrained(base, common):
    # A block size that is adjusted, and a longer series.
    return OFTConfig(
        oft_block_size=5, coft=True, eps=0.3, num_cayley_neumann_terms=6, target_modules=base.names.lora, **common
    )


CASES = {
    "oft": Case(oft, bases=("bert",)),
    "oft_exact": Case(oft_exact, bases=("llama",)),
    "oft_constrained": Case(oft_constrained, bases=("bert",)),
}
