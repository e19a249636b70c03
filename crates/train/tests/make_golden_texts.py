"""Writes golden_texts.json: scores of written texts by the programs that the field uses.

    python make_golden_texts.py --e2e-metrics DIR --e2e-nlg DIR --peft DIR

The directories are a checkout of tuetschek/e2e-metrics, the E2E data, and a checkout of huggingface/peft. Needs Java (for Stanford's
tokenizer), and the packages sacrebleu 2.6.0, rouge-score 0.1.2, pycocoevalcap 1.2 and future.
"""

import argparse
import ast
import csv
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
from decimal import Decimal, DivisionByZero, InvalidOperation
from pathlib import Path
from typing import Optional

import pycocoevalcap
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

HERE = Path(__file__).parent
JAR = Path(pycocoevalcap.__path__[0]) / "tokenizer/stanford-corenlp-3.4.1.jar"

RESTAURANTS = [
    ("The Eagle is a cheap coffee shop near Burger King.", ["The Eagle is a low-priced coffee shop; it is near Burger King.", "Near Burger King there's The Eagle, a cheap coffee shop."]),
    ("Alimentum isn't family-friendly, prices are £20-25.", ["Alimentum is not family-friendly and costs £20-25.", "You can't bring kids to Alimentum (£20-25)."]),
    ("It's 5 out of 5 -- rated by Mr. Smith's customers at 10.50 a.m. on 3/5.", ["It has 5 out of 5 stars.", "Customers rate it 5 out of 5 at 10.50 a.m."]),
    ("The Rice Boat serves Japanese food in the city centre", ["In the city centre,The Rice Boat serves Japanese food...", "The \"Rice Boat\" serves 'Japanese' food in the city center.", "Japanese food? The Rice Boat, city centre!"]),
    ("Café Adriatic, near the river, has a rating of 3 out of 5 and costs less than £20.", ["Café Adriatic has a 3 out of 5 rating. It's by the river, and its price is less than £20."]),
    ("There is a place", ["Loch Fyne is a restaurant with a high price range, more than $1,000.00 & not kid friendly"]),
    ("Strada Strada Strada Strada", ["Strada is located near Rainbow Vegetarian Café. Strada isn’t cheap; it cannot be."]),
    ("", ["An empty output."]),
    ("A 1-5 rated, non-family-friendly pub and/or bar; 20€ [sic].", ["A pub that's rated 1-5 — and not family friendly: 20€.", "A pub."]),
    ("riverside&amp;co. -\nnext line <skipped> 1,5 a-b 5-a", ["riverside&co. next line 1,5 a-b 5-a"]),
    ("The lighthouse keepers were lighting lamps happily.\nThe relational database of flies died.", ["The lighthouse keeper lights the lamp happily.\nRelations of databases; flies die.\nAgreed conditions."]),
]

SUMMARIES = [
    ("the cat sat on the mat\nthe dog barked loudly at the agreed conditional operations", ["the cat was on the mat\na dog barks loudly\nconditioned operators agree"]),
    ("ponies dies skies lying flies news innings generalizations hopping hoping controlling feed feeding", ["pony die sky lie fly new inning generalize hop hope control fed feeder"]),
    ("the sized troubled conflated universities rolled probate cease caresses analogously apology", ["size trouble conflate university roll probable ceased caress analogous apologies"]),
    ("one two three four five", ["five four three two one", "one two four five"]),
    ("Straße ÉCOLE 123 foo_bar", ["strasse école 123 foo bar"]),
    ("a b c d e f g", ["a b c d e f g"]),
    ("\n\n", ["x"]),
]

CHINESE = [
    ("灯塔的灯在晚上亮着。", ["灯塔的灯晚上亮着。", "晚上,灯塔的灯亮了。"]),
    ("我们在2024年用GPT-4翻译了100%的句子!", ["2024年,我们用GPT-4翻译了全部句子!"]),
    ("北京 是 中国 的 首都", ["北京是中国的首都。"]),
    ("日本語のテキスト … —— “引号”", ["日本語テキスト…“引号”"]),
]

# The one reference of the E2E data that has other words here (`20-25L.` at its end).
OTHER_WORDS = "price of 20-25 L."

ANSWERS = [
    ("She has 3 + 4 = 7 apples.\n#### 7", ["#### 7"]),
    ("So 1000 dollars.\n#### 1,000", ["He earns 1,000.\n#### 1000"]),
    ("#### -3.5", ["#### -3.5"]),
    ("the answer is 5", ["#### 5"]),
    ("#### five #### 5", ["#### 5"]),
    ("#### 6\n", ["#### 7", "#### 6"]),
    (" same text ", ["same text"]),
]

MATH_ANSWERS = [
    ("3 + 4 = 7 apples.\n#### 7\nThe answer is: 7", "#### 7"),
    ("The answer is: 7. Is it?\nThe answer is: 8.", "#### 8"),
    ("So it is 8.\n\n#### 8", "#### 8.0"),
    ("The answer is: 1,000", "#### 1000"),
    ("The answer is: 1,000", "#### 1,000"),
    ("The answer is: $50%!", "The answer is: 50"),
    ("The final answer is 20/35", "The answer is 0.5714285714285714"),
    ("The answer is: \\frac{1}{2}", "The answer is: \\frac{1}{2}"),
    ("The answer is: 1/0", "The answer is: 1/0"),
    ("The answer is: 1/2/3", "#### 1/2/3"),
    ("The answer is: 5\n\nQuestion: another", "#### 5"),
    ("The answer is:5", "#### 5"),
    ("the answer is: 5", "#### 5"),
    ("#### five", "#### 5"),
    ("The final answer is: 6\n#### 7", "#### 6"),
    ("The answer is: -3e2", "#### -300"),
    ("The answer is: 1_000", "#### 1000"),
    ("", "#### 0"),
]


def shuffled(texts, count, seed):
    """Texts with words taken out and exchanged, and references of other texts."""
    draw = random.Random(seed)
    words = [word for text, references in texts for part in [text, *references] for word in part.split()]
    made = []
    for _ in range(count):
        text = [draw.choice(words) for _ in range(draw.randrange(3, 25))]
        references = []
        for _ in range(draw.randrange(1, 4)):
            reference = [word if draw.random() < 0.8 else draw.choice(words) for word in text if draw.random() < 0.9]
            references.append(" ".join(reference) or "none")
        made.append((" ".join(text), references))
    return made


def stanford(lines):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        # Every line end, of which Unicode has several, would be one to Stanford's program.
        file.write("\n".join(" ".join(line.splitlines()) for line in lines) + "\n")
        file.flush()
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8", file.name]
        out = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    tokens = [line.rstrip().split(" ") for line in out.split("\n")[: len(lines)]]
    return [" ".join(word for word in line if word not in PUNCTUATIONS) for line in tokens]


def e2e(texts, pymteval):
    bleu, nist = pymteval.BLEUScore(), pymteval.NISTScore()
    for text, references in texts:
        bleu.append(text, references)
        nist.append(text, references)
    lines = stanford([part for text, references in texts for part in [text, *references]])
    outputs, expected = {}, {}
    for number, (_, references) in enumerate(texts):
        outputs[number] = [lines.pop(0)]
        expected[number] = [lines.pop(0) for _ in references]
    return {
        "e2e_bleu": bleu.score(),
        "nist": nist.score(),
        "e2e_rouge_l": float(Rouge().compute_score(expected, outputs)[0]),
        "cider": float(Cider().compute_score(expected, outputs)[0]),
    }


def rouge(texts, stemmer):
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=stemmer)
    scores = [scorer.score_multi(references, text) for text, references in texts]
    end = "_stemmed" if stemmer else ""
    return {name + end: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def sacrebleu(texts):
    count = max(len(references) for _, references in texts)
    streams = [[references[at] if at < len(references) else None for _, references in texts] for at in range(count)]
    outputs = [text for text, _ in texts]
    return {
        "bleu": BLEU().corpus_score(outputs, streams).score,
        "bleu_zh": BLEU(tokenize="zh").corpus_score(outputs, streams).score,
        "chrf": CHRF().corpus_score(outputs, streams).score,
    }


def gsm8k(text):
    """`extract_answer` of openai/grade-school-math."""
    match = re.compile(r"#### (\-?[0-9\.\,]+)").search(text)
    return match.group(1).strip().replace(",", "") if match else "[invalid]"


def matches(texts):
    final = [gsm8k(text) != "[invalid]" and gsm8k(text) in map(gsm8k, references) for text, references in texts]
    exact = [text.strip() in [reference.strip() for reference in references] for text, references in texts]
    return {"final_answer": sum(final) / len(final), "exact_match": sum(exact) / len(exact)}


def peft_accuracy(checkout):
    """`get_accuracy` of method_comparison, whose module imports what only a GPU has."""
    module = ast.parse((checkout / "method_comparison/MetaMathQA/utils.py").read_text(encoding="utf-8"))
    names = {"parse_answer", "convert_to_decimal", "get_accuracy"}
    module.body = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope = {"Optional": Optional, "Decimal": Decimal, "DivisionByZero": DivisionByZero, "InvalidOperation": InvalidOperation}
    exec(compile(module, "utils.py", "exec"), scope)
    return scope["get_accuracy"]


def math_answers(checkout):
    """A set for each text, so that each counts, and one of all."""
    accuracy = peft_accuracy(checkout)
    sets = [[pair] for pair in MATH_ANSWERS] + [MATH_ANSWERS]
    for number, pairs in enumerate(sets):
        score = accuracy(predictions=[text for text, _ in pairs], responses=[response for _, response in pairs])
        texts = [(text, [response]) for text, response in pairs]
        yield {"name": f"math answers {number}", "texts": texts, "scores": {"math_answer": score}}


def references_of(directory):
    """The words of all different references of the E2E data: how many, and their hash."""
    texts = []
    for file in ["trainset.csv", "devset.csv", "testset_w_refs.csv"]:
        with open(directory / file, encoding="utf-8-sig", newline="") as rows:
            texts += [row["ref"] for row in csv.DictReader(rows)]
    texts = list(dict.fromkeys(texts))
    lines = [words for text, words in zip(texts, stanford(texts)) if OTHER_WORDS not in text]
    joined = "\n".join(" ".join(words.split()) for words in lines)
    return {"texts": len(texts), "sha256": hashlib.sha256(joined.encode()).hexdigest()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--e2e-metrics", required=True)
    parser.add_argument("--e2e-nlg", type=Path, required=True)
    parser.add_argument("--peft", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.e2e_metrics)
    from metrics import pymteval

    sets = {"restaurants": RESTAURANTS, "summaries": SUMMARIES, "chinese": CHINESE, "answers": ANSWERS}
    sets["shuffled restaurants"] = shuffled(RESTAURANTS, 12, 1)
    sets["shuffled summaries"] = shuffled(SUMMARIES, 12, 2)
    sets["one"] = RESTAURANTS[:1]
    golden = []
    for name, texts in sets.items():
        scores = sacrebleu(texts) | rouge(texts, False) | rouge(texts, True) | matches(texts)
        # NIST divides by the number of 5-grams, of which one of these sets has none; Stanford's
        # tokenizer is compared on English only.
        if name not in ("chinese", "answers", "summaries", "shuffled summaries"):
            scores |= e2e(texts, pymteval)
        golden.append({"name": name, "texts": texts, "scores": scores})
    golden += math_answers(arguments.peft)
    lines = [part for text, references in RESTAURANTS + sets["shuffled restaurants"] for part in [text, *references]]
    words = [{"text": line.replace("\n", " "), "words": made.split()} for line, made in zip(lines, stanford(lines))]
    references = references_of(arguments.e2e_nlg)
    text = json.dumps({"sets": golden, "words": words, "references": references}, ensure_ascii=True, indent=None)
    (HERE / "golden_texts.json").write_text(text.replace('}, {"', '},\n{"') + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
