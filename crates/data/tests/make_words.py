"""Make golden/words.json: words and windows of texts as transformers encodes them.

    pip install transformers tokenizers
    python make_words.py

Two small tokenizers, BERT's kind and RoBERTa's, are trained on a few sentences and stored with what
transformers' fast tokenizers make of texts that are split into words, and of a question with the
windows of a text. The tokens of an answer are those that hold its first and its last character.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUTPUT = Path(__file__).parent / "golden/words.json"
TEXTS = [
    "The Panthers defense gave up just 308 points, ranking sixth in the league.",
    "Émile Zola was born in Paris in 1840, and naïve cafés opened nearby.",
    "黑豹队的防守只丢了 308分，在联赛中排名第六。",
    "@paulwalk It's the view from where I'm living for two weeks. Empire State Building = ESB.",
    "Who ranked sixth? Where was Zola born? 防守丢了多少分？",
]
QUESTIONS = [
    (" Where was Zola born?", TEXTS[1], ["Paris", "Émile Zola", "naïve cafés", "1840", "É", "nearby."]),
    ("防守丢了多少分？", TEXTS[2], ["308", "第六", "黑豹队"]),
    ("Who?", TEXTS[0] + " " + TEXTS[1], ["sixth in the league", "The Panthers", "born in Paris"]),
]


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of some pieces."""
    if kind == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    else:
        special = ["<pad>", "<unk>", "<s>", "</s>"]
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=310, special_tokens=special, show_progress=False, initial_alphabet=alphabet
        )
    inner.train_from_iterator(TEXTS, trainer)
    first, last = special[2:]
    ids = {token: inner.token_to_id(token) for token in (first, last)}
    if kind == "bert":
        single, pair = f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1"
        inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))
    else:
        inner.post_processor = processors.RobertaProcessing((last, ids[last]), (first, ids[first]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=special[0], unk_token=special[1])


def words_of(words: PreTrainedTokenizerFast) -> list[dict]:
    """Texts that are split at blanks, whole and cut off; one has words that are not printed."""
    cases = []
    for text in [*TEXTS, "a \u200d b \u00ad Zola", "one"]:
        for max_length in (100, 7):
            row = words(text.split(" "), is_split_into_words=True, truncation=True, max_length=max_length)
            cases.append(
                {"words": text.split(" "), "max_length": max_length, "ids": row["input_ids"], "word_ids": row.word_ids()}
            )
    return cases


def windows_of(pairs: PreTrainedTokenizerFast) -> list[dict]:
    """Questions with windows of texts."""
    cases = []
    for question, context, answers in QUESTIONS:
        question = question.lstrip()
        length = len(pairs.tokenize(question)) + pairs.num_special_tokens_to_add(pair=True)
        for room, stride in ((200, 0), (14, 4), (10, 6)):
            max_length = length + room
            rows = pairs(
                question,
                context,
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_token_type_ids=True,
            )
            windows, spans = [], {answer: [] for answer in answers}
            for number, ids in enumerate(rows["input_ids"]):
                own = [it == 1 for it in rows.sequence_ids(number)]
                offsets = zip(rows["offset_mapping"][number], own)
                windows.append(
                    {
                        "ids": ids,
                        "type_ids": rows["token_type_ids"][number],
                        "offsets": [[a, b] if it else None for (a, b), it in offsets],
                    }
                )
                for answer in answers:
                    start = context.index(answer)
                    ends = [start, start + len(answer) - 1]
                    tokens = [rows.char_to_token(number, end, sequence_index=1) for end in ends]
                    spans[answer].append([0, 0] if None in tokens else tokens)
            cases.append(
                {
                    "question": question,
                    "context": context,
                    "max_length": max_length,
                    "stride": stride,
                    "windows": windows,
                    "answers": [
                        {"text": answer, "start": context.index(answer), "spans": spans[answer]} for answer in answers
                    ],
                }
            )
    return cases


def main() -> None:
    """Write the file."""
    golden = []
    for kind in ("bert", "roberta"):
        pairs = tokenizer(kind)
        inner = json.loads(pairs.backend_tokenizer.to_str())
        words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(pairs.backend_tokenizer.to_str()))
        if kind == "roberta":
            # What `add_prefix_space=True` does, which transformers asks for.
            words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        golden.append({"tokenizer": inner, "words": words_of(words), "windows": windows_of(pairs)})
    OUTPUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
