"""Progress as a person sees it: a bar on a terminal, lines where there is none.

    python tests/parity/terminal.py --epiphyte target/debug/epiphyte

Runs a short training on a pseudo-terminal, and the same with standard error in a pipe.
"""

import argparse
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path


def on_terminal(command: list[str], cwd: Path) -> str:
    """What a command draws on a terminal that is its standard error and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other end is closed.
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    text = drawn.decode(errors="replace")
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} failed:\n{text}")
    return text


def in_pipe(command: list[str], cwd: Path) -> str:
    """What a command writes to standard error where that is a pipe."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stderr


def check(text: str, words: list[str], absent: list[str], what: str) -> None:
    missing = [word for word in words if word not in text]
    there = [word for word in absent if word in text]
    if missing or there:
        sys.exit(f"{what}: without {missing}, with {there}, in:\n{text}")
    print(f"{what}: {', '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epiphyte", type=Path, required=True)
    epiphyte = str(parser.parse_args().epiphyte.resolve())
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        subprocess.run([epiphyte, "quickstart", "--steps", "1", "--quiet", "--output", "q"], cwd=here,
                       check=True, stdout=subprocess.DEVNULL)
        train = [epiphyte, "train", "--config", "q/lora.toml", "--max-steps", "12", "--eval-steps", "6",
                 "--eval-data", "q/train.jsonl", "--output"]
        bar = ["█", "12/12", "loss ", "tokens/s", " left", "evaluating ", "step 6: ", "step 12: "]
        check(on_terminal([*train, "drawn"], here), bar, ["loss NaN"], "training on a terminal")
        lines = ["step 12 of 12: ", "loss ", "tokens/s", " left", "step 6: "]
        check(in_pipe([*train, "piped"], here), lines, ["\r", "\x1b", "loss NaN"], "training in a pipe")
        check(in_pipe([*train, "quiet", "--quiet"], here), [], ["tokens/s", "step"], "training with --quiet")
        evaluate = [epiphyte, "eval", "--model", "q/base", "--adapter", "drawn", "--data", "q/train.jsonl"]
        check(on_terminal(evaluate, here), ["█", "tokens/s", " left"], [], "evaluating on a terminal")


if __name__ == "__main__":
    main()
