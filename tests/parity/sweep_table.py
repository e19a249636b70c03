"""Write what `sweep.py` found as documentation: the table of types and families, and what is refused and why.

    python sweep.py --xtask ../../target/debug/xtask --results golden/peft_sweep.json
    python sweep_table.py golden/peft_sweep.json ../../docs/peft-adapters.md
    python sweep_table.py golden/peft_sweep.json ../../docs/peft-adapters.md --check
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

HEAD = """# HF PEFT's adapters

What of HF PEFT {peft}'s adapters this project reads and writes. For every type and every key of its
configuration that changes the result, PEFT itself makes an adapter with random values on tiny
{bases},
saves it and loads it again. The file is read here and must give the same logits (within 2e-4); what
is written here again must give PEFT the same logits too. A type that is not in the table was not
run. The tables are made by

```sh
cargo build --workspace
cd tests/parity
python sweep.py --xtask ../../target/debug/xtask --results golden/peft_sweep.json
python sweep_table.py golden/peft_sweep.json ../../docs/peft-adapters.md
```

Of {counted} adapters {equal} are equal ({share:.1%}), {refused} are refused with a reason, {differs}
differ. {skipped} more PEFT itself cannot make, or does not load as it saved them.

## Types and families

Adapters that are equal, of those that PEFT can save and load again; – where it has none.

"""


def sentence(reason: str) -> str:
    """A reason without what differs from case to case: the file, names of modules, values."""
    reason = re.sub(r"^`ADAPTER[^`]*`:? ?", "", reason)
    reason = re.sub(r"missing tensors: .*", "tensors are missing", reason)
    reason = re.sub(r"the file has no `[^`]*`: ", "", reason)
    reason = re.sub(r" = \[[^ ]*\] ", " ", reason)
    reason = re.sub(r"`target_modules` is `[^`]*`, but `[^`]*` is", "a target is", reason)
    return reason.replace("|", "\\|")


def document(found: dict) -> str:
    """The whole page."""
    types, bases = found["results"], found["bases"]
    total = defaultdict(int)
    lines = ["| type | " + " | ".join(bases) + " |", "| --- |" + " --- |" * len(bases)]
    reasons, others = defaultdict(set), defaultdict(set)
    for kind, by_base in types.items():
        cells = []
        for base in bases:
            outcomes = by_base.get(base, {"equal": 0})
            own = {name: len(outcomes.get(name, ())) for name in ("refused", "differs", "skipped")}
            for name, count in own.items():
                total[name] += count
            total["equal"] += outcomes["equal"]
            of = outcomes["equal"] + own["refused"] + own["differs"]
            cells.append(f"{outcomes['equal']} of {of}" if of else "–")
            for variant, reason in outcomes.get("refused", {}).items():
                reasons[kind, sentence(reason)].add(variant or "usual settings")
            for variant in outcomes.get("written with other tensors", ()):
                others[kind].add(variant or "usual settings")
        lines.append(f"| `{kind}` | " + " | ".join(cells) + " |")
    counted = total["equal"] + total["refused"] + total["differs"]
    names = [f"`{base}`" for base in bases]
    head = HEAD.format(
        peft=found["peft"], bases=", ".join(names[:-1]) + f" and {names[-1]} models", counted=counted,
        share=total["equal"] / max(counted, 1), **{name: total[name] for name in ("equal", "refused", "differs", "skipped")},
    )
    lines += ["", "## What is refused", "", "| type | settings | reason |", "| --- | --- | --- |"]
    for (kind, reason), variants in sorted(reasons.items()):
        some = sorted(variants)
        settings = ", ".join(f"`{it}`" for it in some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
        lines.append(f"| `{kind}` | {settings} | {reason} |")
    lines += ["", "## What is written otherwise", ""]
    lines += [
        "These are equal in both directions, but what is written again has other tensors than PEFT's own",
        "file: copies of the head's biases that PEFT leaks into it, and what only training reads.",
        "",
        "| type | settings |",
        "| --- | --- |",
    ]
    lines += [f"| `{kind}` | {', '.join(f'`{it}`' for it in sorted(variants))} |" for kind, variants in sorted(others.items())]
    return head + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what `sweep.py --results` wrote")
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page differs")
    arguments = parser.parse_args()
    text = document(json.loads(arguments.results.read_text()))
    if arguments.check:
        is_same = arguments.page.read_text() == text
        print("the page is that of the results" if is_same else f"{arguments.page} is not that of {arguments.results}: write it anew")
        return int(not is_same)
    arguments.page.parent.mkdir(exist_ok=True)
    arguments.page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
