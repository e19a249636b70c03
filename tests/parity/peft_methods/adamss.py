"""AdaMSS."""

from peft import AdamssConfig

from .case import Case


def adamss(base, common):
    return AdamssConfig(r=8, num_subspaces=3, subspace_rank=2, random_seed=3, target_modules=base.names.lora, **common)


def adamss_dynamic(base, common):
    """Ranks that singular values decide. With all directions of a layer its rows are as far apart as any."""
    return AdamssConfig(
        r=12,
        num_subspaces=2,
        subspace_rank=4,
        use_dynamic_rank=True,
        svd_threshold=0.4,
        target_modules=base.names.ia3_feedforward,
        **common,
    )


CASES = {
    "adamss": Case(adamss, bases=("bert",), frozen=("adamss_newB",)),
    "adamss_dynamic": Case(adamss_dynamic, bases=("llama",), frozen=("adamss_newB",)),
}
