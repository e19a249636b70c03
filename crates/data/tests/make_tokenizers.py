"""Writes golden/tokenizers.json and golden/real_tokenizers.json: texts through `transformers` with
tokenizers of directories that have no tokenizer.json.

    python make_tokenizers.py --shared DIR

The first file holds small vocabularies made here (word pieces, byte pairs, SentencePiece models
trained on the sentences below) with the ids that each class gives; the second the ids that the
published vocabularies in DIR (`../shared/data/tokenizers`) give. Made with transformers 5.23.0,
tokenizers 0.23.3, sentencepiece 0.2.3 and protobuf 7.36.2.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import LlamaConverter

HERE = Path(__file__).parent
transformers.logging.set_verbosity_error()

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "the lighthouse keeper's lamp isn't lit; it's 3.14 o'clock (really) -- \"so\"",
    "  leading, trailing  and   doubled  ",
    "UPPER lower MiXeD",
    "na\u00efve caf\u00e9 Z\u00fcrich \u00c5ngstr\u00f6m",
    "nai\u0308ve with a combining mark, A\u030angstro\u0308m",
    "\u6570\u636e\u5e76\u884c\u8bad\u7ec3 \u4e2d\u6587\u548cEnglish\u6df7\u5408\u3002\uff01\uff0c",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f600 emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "tabs\tand\nnewlines\r\nand\u00a0no-break\u200bzero-width\u3000ideographic",
    "control\x00char\x07acters\x7f",
    "[CLS] text with [SEP] special [MASK] tokens [PAD] inside [UNK]",
    "<s> and </s> and<mask>  <pad> <unk> x<extra_id_0> y <|endoftext|> z <|im_end|><eos>.",
    "en_XX zh_CN [NEW]token",
    "``quoted'' text",
    "\ufb01 ligature \u00bd \u00b2 \u2122 \uff21\uff22",
    "\u00a35 - \u20ac6 \u2013 \u00a9",
    "1,000,000 2024-02-29 50%",
    "a" * 120,
    "word " * 12,
]

PAIRS = [("the lamp", "is lit"), ("", "only the second")]

SENTENCES = """The keeper of the lighthouse lights the lamp in the evening and writes the log.
A ship passes in the fog and the horn sounds three times before the fog lifts in the morning.
The wind blows from the west, the waves are high, and the boat with the post cannot land today.
She asks: is the lamp lit? He says it isn't, and that it's no use to wait for the boat (or the post).
Hello, world! Naive readers read naive texts; caf\u00e9 and Z\u00fcrich have marks, and numbers are 1, 2, 3.
\u6570\u636e\u5e76\u884c\u8bad\u7ec3 \u4e2d\u6587\u548cEnglish\u6df7\u5408 \u706f\u5854\u7684\u706f\u5728\u665a\u4e0a\u4eae\u7740
Words are made of letters, letters make words, and words make sentences that readers read again.
""".splitlines()


def word_pieces(special):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEHLMPUZ0123456789"
    words = "the lamp light ##house keeper is lit and naive cafe zurich hello world text with special".split()
    marks = list(".,!?'\"()-;`%\u3002\u6570\u636e\u4e2d\u6587\u548c\u65e5\u8a9e\u00e9\u0438\u0439i\u00ef\U0001f600")
    pieces = special + list(letters) + [f"##{letter}" for letter in letters] + words + marks
    return {"vocab.txt": "\n".join(dict.fromkeys(pieces)) + "\n"}


def byte_pairs(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(special) + 90,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = ["#version: 0.2"] + [" ".join(pair) for pair in model["merges"]]
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(merges) + "\n"}


def sentence_pieces(file, kind, size, **options):
    # The file of rules has a line for each replacement: code points, a tab, code points.
    rules = ["FB01\t66 69", "3000\t20", "FF21\t41", "FF22\t42", "BD\t31 2044 32", "9\t20", "A\t20", "D\t20", "69 308\tEF"]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rules.tsv"
        path.write_text("\n".join(rules) + "\n")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3),
            model_writer=model,
            vocab_size=size,
            model_type=kind,
            normalization_rule_tsv=str(path),
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
    return {file: model.getvalue()}


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANGLED = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
FALLBACK = {"byte_fallback": True, "split_digits": True}


def special(content, **flags):
    return {"__type": "AddedToken", "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags


def cases():
    """Name, files, tokenizer_config.json, other JSON files."""
    bert = word_pieces(BERT)
    yield "bert", bert, {"tokenizer_class": "BertTokenizer"}, {}
    yield "bert cased", bert, {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, {}
    yield "bert by its model", bert, {}, {"config.json": {"model_type": "bert"}}
    yield "distilbert", bert, {"tokenizer_class": "DistilBertTokenizer", "strip_accents": False, "tokenize_chinese_chars": False}, {}
    yield "electra", bert, {"do_lower_case": True, "strip_accents": True}, {"config.json": {"model_type": "electra"}}
    yield "bert with added tokens", bert, {"tokenizer_class": "BertTokenizer"}, {"added_tokens.json": {"[NEW]": len(bert["vocab.txt"].splitlines())}, "special_tokens_map.json": {"mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}}}
    yield "mpnet", word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]), {"tokenizer_class": "MPNetTokenizer"}, {}
    gpt2 = byte_pairs(["<|endoftext|>"])
    yield "gpt2", gpt2, {"tokenizer_class": "GPT2Tokenizer"}, {}
    yield "gpt2 with spaces in front", gpt2, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "pad_token": "<|endoftext|>"}, {}
    roberta = byte_pairs(ANGLED)
    yield "opt", roberta, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": special("</s>"), "eos_token": special("</s>"), "unk_token": special("</s>"), "pad_token": special("<pad>")}, {"config.json": {"model_type": "opt"}}
    yield "roberta", roberta, {"tokenizer_class": "RobertaTokenizer"}, {}
    yield "roberta with a mask that takes spaces", roberta, {"tokenizer_class": "RobertaTokenizer", "mask_token": special("<mask>", lstrip=True), "trim_offsets": False}, {}
    yield "bart", roberta, {}, {"config.json": {"model_type": "bart"}}
    count = len(json.loads(gpt2["vocab.json"]))
    added = {str(count): {"content": "<|im_start|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}}
    added[str(count + 1)] = added[str(count)] | {"content": "<|im_end|>"}
    added[str(count + 2)] = added[str(count)] | {"content": "[NEW]", "special": False}
    yield "qwen2", gpt2, {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}, {}
    yield "gpt_neox", gpt2 , {"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True, "add_eos_token": True}, {}
    albert = sentence_pieces("spiece.model", "unigram", 180, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], user_defined_symbols=["(", ")", "-"])
    yield "albert", albert, {"tokenizer_class": "AlbertTokenizer"}, {}
    yield "albert cased", albert, {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False, "keep_accents": True}, {}
    t5 = sentence_pieces("spiece.model", "unigram", 180, **T5)
    yield "t5", t5, {"tokenizer_class": "T5Tokenizer"}, {}
    yield "mt5 without sentinels", t5, {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}, {"config.json": {"model_type": "mt5"}}
    xlm = sentence_pieces("sentencepiece.bpe.model", "unigram", 180)
    yield "xlm-roberta", xlm, {"tokenizer_class": "XLMRobertaTokenizer"}, {}
    yield "camembert", xlm, {"tokenizer_class": "CamembertTokenizer"}, {}
    yield "mbart", xlm, {"tokenizer_class": "MBartTokenizer", "src_lang": "de_DE"}, {}
    yield "mbart-50", xlm, {"tokenizer_class": "MBart50Tokenizer"}, {}
    deberta = sentence_pieces("spm.model", "unigram", 180, pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]")
    yield "deberta-v2", deberta, {"tokenizer_class": "DebertaV2Tokenizer"}, {"added_tokens.json": {"[MASK]": sentencepiece.SentencePieceProcessor(model_proto=deberta["spm.model"]).get_piece_size()}}
    yield "deberta-v2 with words split", deberta, {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": True, "split_by_punct": True, "add_prefix_space": False}, {}
    llama = sentence_pieces("tokenizer.model", "bpe", 420, **FALLBACK)
    yield "llama", llama, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, {}
    yield "llama with the newer rule for spaces", llama, {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_eos_token": True}, {}
    yield "llama without spaces in front", llama, {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, {}
    gemma = sentence_pieces("tokenizer.model", "bpe", 430, pad_id=0, eos_id=1, bos_id=2, unk_id=3, eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=["<mask>", "\u2581\u2581", "<start_of_turn>"], **FALLBACK)
    yield "gemma", gemma, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}, {}


def encode(tokenizer, texts, pairs):
    rows = []
    for text, pair in [(text, None) for text in texts] + pairs:
        out = tokenizer([text], None if pair is None else [pair], padding=False, return_token_type_ids=True)
        ids = out["input_ids"][0]
        row = {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)}
        if pair is not None:
            row |= {"pair": pair, "type_ids": out["token_type_ids"][0]}
        rows.append(row)
    return rows


def write_directory(directory, files, config, others):
    for name, content in files.items():
        path = directory / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in others.items():
        (directory / name).write_text(json.dumps(content))


REAL = {
    "bert-base-uncased": ({"vocab.txt": "bert-base-uncased/vocab.txt"}, {"tokenizer_class": "BertTokenizer"}),
    "bert-base-cased": ({"vocab.txt": "bert-base-cased/vocab.txt"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "bert-base-chinese": ({"vocab.txt": "bert-base-chinese/vocab.txt"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "bert-base-multilingual-cased": ({"vocab.txt": "bert-base-multilingual-cased/vocab.txt"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "gpt2": ({"vocab.json": "gpt2/encoder.json", "merges.txt": "gpt2/vocab.bpe"}, {"tokenizer_class": "GPT2Tokenizer"}),
    "roberta": ({"vocab.json": "roberta/vocab.json", "merges.txt": "roberta/merges.txt"}, {"tokenizer_class": "RobertaTokenizer"}),
    "albert": ({"spiece.model": "albert/spiece.model"}, {"tokenizer_class": "AlbertTokenizer"}),
    "t5": ({"spiece.model": "t5/spiece.model"}, {"tokenizer_class": "T5Tokenizer"}),
    "xlm-roberta": ({"sentencepiece.bpe.model": "sentencepiece_small/test_sentencepiece.model"}, {"tokenizer_class": "XLMRobertaTokenizer"}),
    "llama": ({"tokenizer.model": "sentencepiece_small/test_sentencepiece_bpe.model"}, {"tokenizer_class": "LlamaTokenizer"}),
}


def tokenizer_of(directory, config):
    # A directory without a configuration of the model has an empty one.
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text("{}")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if config.get("tokenizer_class") == "LlamaTokenizer" and config.get("legacy", True):
        # The class of transformers 5 gives leading spaces other ids than SentencePiece; the
        # converter beside it has the steps of the models' own tokenizer.json.
        original = SimpleNamespace(legacy=True, add_prefix_space=config.get("add_prefix_space", True))
        steps = LlamaConverter.normalizer(SimpleNamespace(original_tokenizer=original), None)
        tokenizer.backend_tokenizer.normalizer = steps
        tokenizer.backend_tokenizer.pre_tokenizer = None
    if config.get("tokenizer_class") == "LlamaTokenizer":
        # The class forgets the unknown token, which only models without pieces for bytes need.
        tokenizer.backend_tokenizer.model.unk_token = "<unk>"
    return tokenizer


def write(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace('},{"text', '},\n{"text')
    (HERE / "golden" / name).write_text(text + "\n", encoding="ascii")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    shared = parser.parse_args().shared
    sets, golden = [], []
    for name, files, config, others in cases():
        with tempfile.TemporaryDirectory() as directory:
            write_directory(Path(directory), files, config, others)
            tokenizer = tokenizer_of(Path(directory), config)
        files = {file: {"hex": content.hex()} if isinstance(content, bytes) else {"text": content} for file, content in files.items()}
        if files not in sets:
            sets.append(files)
        others = {"tokenizer_config.json": config} | others
        golden.append({"name": name, "files": sets.index(files), "settings": others, "class": type(tokenizer).__name__, "size": len(tokenizer), "rows": encode(tokenizer, TEXTS, PAIRS)})
    write("tokenizers.json", {"files": sets, "cases": golden})
    real = []
    for name, (files, config) in REAL.items():
        with tempfile.TemporaryDirectory() as directory:
            write_directory(Path(directory), {file: (shared / source).read_bytes() for file, source in files.items()}, config, {})
            tokenizer = tokenizer_of(Path(directory), config)
        real.append({"name": name, "files": files, "settings": {"tokenizer_config.json": config}, "size": len(tokenizer), "rows": encode(tokenizer, TEXTS, PAIRS)})
    write("real_tokenizers.json", real)


if __name__ == "__main__":
    main()
