"""(IA)^3."""

from peft import IA3Config

from .case import Case


def ia3(base, common):
    ff = base.names.ia3_feedforward
    return IA3Config(target_modules=base.names.ia3 + ff, feedforward_modules=ff, **common)


def ia3_paper(_base, common):
    ff = r".*layer\.\d+\.output\.dense"
    return IA3Config(target_modules=rf".*\.(key|value)|{ff}", feedforward_modules=ff, **common)


def vectors(name, noise):
    return 1.0 + 0.2 * noise if "ia3_l" in name else None


CASES = {"ia3": Case(ia3, value=vectors), "ia3_paper": Case(ia3_paper, value=vectors)}
