"""Write MRPC's training pairs as JSONL of token ids, cut to 128: `mrpc_tokens.py TOKENIZER_DIR train.tsv OUTPUT`."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main() -> None:
    """Columns of the file: quality, two ids, two sentences; quotes mean nothing."""
    directory, source, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    lines = Path(source).read_text(encoding="utf-8-sig").split("\n")[1:]
    with open(output, "w", encoding="utf-8") as file:
        for cells in (line.rstrip("\r").split("\t") for line in lines if line):
            encoding = tokenizer(cells[3], cells[4], truncation=True, max_length=128)
            row = {key: encoding[key] for key in ("input_ids", "token_type_ids")} | {"label": int(cells[0])}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
