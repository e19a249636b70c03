"""CPT, with two examples in front and weights that decay."""

from peft import CPTConfig

from .case import Case


def cpt(_base, common):
    return CPTConfig(
        cpt_token_ids=[11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
        cpt_mask=[1] * 10,
        cpt_tokens_type_mask=[1, 2, 2, 3, 4, 5, 6, 7, 8, 8],
        opt_weighted_loss_type="decay",
        opt_loss_decay_factor=0.8,
        opt_projection_epsilon=2.0,
        opt_projection_format_epsilon=0.5,
        **common,
    )


CASES = {"cpt": Case(cpt, bases=("llama", "gpt2"), folds=True)}
