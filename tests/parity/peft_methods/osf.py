"""OSF."""

from peft import OSFConfig

from .case import Case


def osf(base, common):
    first, _, _ = base.names.patterns
    return OSFConfig(effective_rank=0.8, rank_pattern={f"1.*{first}": 14}, target_modules=base.names.lora, **common)


CASES = {"osf": Case(osf, bases=("bert", "llama"))}
