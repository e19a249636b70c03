"""Writes golden/gguf: small vocabularies in GGUF files, written by PyPI's `gguf`, and texts with their ids.

    python make_gguf_vocabularies.py

Ids are those of the programs that the vocabularies are of: sentencepiece for SentencePiece's byte pairs, and for byte
pairs over bytes transformers' tokenizers with the families' own rules. Made with gguf 0.19.0, transformers 5.23.0,
tokenizers 0.23.3 and sentencepiece 0.2.
"""

import io
import json
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from make_tokenizers import SENTENCES, TEXTS

HERE = Path(__file__).parent / "golden" / "gguf"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
KIND = gguf.TokenType


def byte_level(use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level(False)])


LLAMA3 = TikTokenConverter(vocab_file=None).pattern
RULES = {
    "gpt-2": byte_level(),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(PRETOKENIZE_REGEX),
}


def writer(name, kind, pre):
    HERE.mkdir(parents=True, exist_ok=True)
    file = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
    file.add_tokenizer_model(kind)
    file.add_tokenizer_pre(pre)
    return file


def finish(file):
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def byte_pairs(rule):
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = RULES[rule]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("[NEW]", normalized=False)])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    vocabulary = tokenizer.get_vocab()
    file = writer(rule, "gpt2", rule)
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [KIND.CONTROL if it in SPECIAL else KIND.USER_DEFINED if it == "[NEW]" else KIND.NORMAL for it in tokens]
    # The model's table has more rows than the tokenizer has tokens.
    file.add_token_list(tokens + ["[PAD1]", "[PAD2]"])
    file.add_token_types(kinds + [KIND.UNUSED] * 2)
    file.add_token_merges([" ".join(pair) for pair in merges])
    file.add_bos_token_id(vocabulary["<|endoftext|>"])
    file.add_eos_token_id(vocabulary["<|im_end|>"])
    file.add_pad_token_id(vocabulary["<|endoftext|>"])
    if rule == "qwen2":
        file.add_add_bos_token(False)
        file.add_chat_template(TEMPLATE)
    finish(file)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    begin = [vocabulary["<|endoftext|>"]] if rule == "llama-bpe" else []
    rows = []
    for text in TEXTS:
        ids = begin + fast(text)["input_ids"]
        rows.append({"text": text, "ids": ids, "decoded": fast.decode(ids, skip_special_tokens=True)})
    return {"size": len(vocabulary), "rows": rows}


def sentence_pieces(name, prefix):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        user_defined_symbols=[] if prefix else ["[NEW]"], minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    file = writer(name, "llama", "default")
    numbers = range(pieces.get_piece_size())
    file.add_token_list([pieces.id_to_piece(number) for number in numbers])
    file.add_token_scores([pieces.get_score(number) for number in numbers])
    kind = lambda it: (
        KIND.UNKNOWN if pieces.is_unknown(it) else KIND.CONTROL if pieces.is_control(it) else KIND.BYTE if pieces.is_byte(it)
        else KIND.USER_DEFINED if pieces.id_to_piece(it) == "[NEW]" else KIND.NORMAL
    )  # fmt: skip
    file.add_token_types([kind(number) for number in numbers])
    file.add_bos_token_id(pieces.bos_id())
    file.add_eos_token_id(pieces.eos_id())
    file.add_unk_token_id(pieces.unk_id())
    if not prefix:
        file.add_add_space_prefix(False)
        file.add_add_eos_token(True)
    finish(file)
    rows = []
    # sentencepiece reads no special tokens in texts.
    for text in (text for text in TEXTS if not any(it in text for it in ("<s>", "</s>", "<unk>"))):
        ids = pieces.encode(text)
        around = [pieces.bos_id(), *ids] + ([] if prefix else [pieces.eos_id()])
        rows.append({"text": text, "ids": around, "decoded": pieces.decode(ids)})
    return {"size": len(numbers), "rows": rows}


def main():
    golden = {rule: byte_pairs(rule) for rule in RULES}
    golden["sentence-pieces"] = sentence_pieces("sentence-pieces", True)
    golden["sentence-pieces-bare"] = sentence_pieces("sentence-pieces-bare", False)
    (HERE / "texts.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
