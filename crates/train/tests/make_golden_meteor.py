"""Writes golden_meteor.json: METEOR 1.5 of made-up texts, by the jar that the E2E challenge runs.

    python make_golden_meteor.py

Needs Java, and the package pycocoevalcap 1.2, which has the jar and its tables. As these are not ours to
pass on, the texts are scored twice: with them, and with the small tables below, of which `meteor/` gets a
jar and a table of paraphrases in the same form.
"""

import gzip
import io
import json
import random
import subprocess
import zipfile
from pathlib import Path

import pycocoevalcap

from make_golden_texts import RESTAURANTS, stanford

HERE = Path(__file__).parent
METEOR = Path(pycocoevalcap.__path__[0]) / "meteor"
SMALL = HERE / "meteor"

FUNCTION_WORDS = "the a an of in and is it 's its near to not n't , . than \" ( ) with for on at you".split()
PREFIXES = ["# Words whose point is no end.", "Mr", "mr", "", "v", "No #NUMERIC_ONLY#", "no #NUMERIC_ONLY#"]
# A word, and the numbers of its sets of synonyms.
SYNSETS = {
    "cheap": [101], "inexpensive": [101], "low-priced": [101], "low": [102, 101], "restaurant": [201], "eatery": [201, 202],
    "place": [202, 203], "pub": [204], "bar": [204, 205], "child": [301], "kid": [301, 302], "man": [303], "fellow": [303],
    "rate": [401], "rank": [401, 402], "mouse": [501], "rodent": [501], "serve": [601], "dish": [601, 602], "city": [701],
    "town": [701], "box": [801], "case": [801, 802], "watch": [803, 804], "story": [901], "tale": [901], "big": [902], "large": [902],
    "glass": [903], "cup": [903], "hope": [904], "wish": [904], "river": [905], "water": [905],
}
# A word, and its irregular forms.
EXCEPTIONS = {"mouse": ["mice"], "child": ["children", "childer"], "kid": ["children"], "rank": ["rated"]}
PARAPHRASES = [
    ("near", "close to"), ("close to", "near"), ("in the city centre", "in the middle of town"), ("is located", "can be found"),
    ("can be found", "is"), ("less than", "under"), ("moderately priced", "average price"), ("kid friendly", "children are welcome"),
    ("children are welcome", "family friendly"), ("family friendly", "for the whole family"), ("5 out of 5", "5 stars"),
    ("out of 5", "stars"), ("customers", "its customers"), ("coffee shop", "cafe"), ("a cheap", "an inexpensive"),
    ("japanese food", "food from japan"), ("food", "japanese food"), ("by the river", "on the riverside"), ("riverside", "by the river"),
    ("the", "a"), ("costs", "has a price of"), ("a b", "b a"), ("a b c", "c b a"), ("b c", "d"),
]

TEXTS = [
    ("the cat sat on the mat", ["the cat sat on the mat"]),
    ("the cat sat on the mat", ["on the mat sat the cat", "a cat sat on a mat"]),
    ("The Punter is a cheap restaurant near the river.", ["The Punter is an inexpensive eatery close to the river.", "Close to the water there is The Punter, a low priced place."]),
    ("Children are welcome at this pub, which is located by the river.", ["This bar can be found on the riverside; it is kid friendly.", "A family friendly pub, by the river.", "Kids are welcome."]),
    ("The mice ate in boxes and watches.", ["The mouse was eating in a box, and a rodent watched a case."]),
    ("Men serve dishes, served and serving the largest cities.", ["A man serves a dish for a large city.", "The fellow is dishing; towns are big."]),
    ("It is rated 5 out of 5 by customers", ["Its customers rank it 5 stars.", "It has 5 stars out of 5", "customers rating: 5 out of 5 stars"]),
    ("Mr. Smith v. No. 5 vs. the U.S. and e.g. no. 10 etc.", ["mr. smith v. number 5, versus the US, eg no 10, etc", "The U.S.A. v. Mr. J. Smith."]),
    ("He isn't 20-25 years-old ... it's 1990's; can't we've o'clock", ["He is not 20 - 25 years old... it is the 1990s; cannot we have it"]),
    ("food food food the the the", ["the food", "japanese food and the japanese food", "food from japan, food, food"]),
    ("a b c a b c d a b", ["c b a d b a a b c", "d d d b c", "b a b a c"]),
    ("It`s a “test”, isn’t it? ''Yes'', rock 'n' roll – the U.S.-based \u00a0 Inc. said... a,,b; 5,6,c,7 -- e-mail--x-y-z", ["its a test , is n't it ? \" yes \" , rock ' n' roll - the US based inc. said .. a , b ; 5,6 , c , 7 e mail", "Isn't it a test?? ''''Yes'.... Roll-n-roll-n-roll of the U.K. at 9.5. 3's a. b.c. D.E.F. x"]),
    ("Žižek's Łódź œuvre naïve. Москва-2012 日本語のテキスト, 'tis l'été 90's \u2009 o\u0301", ["žižek 's łódź oeuvre, naïve МОСКВА 2012! 日本 語 'Tis L'ÉTÉ 90s", "No. 5 no. x No. y Mr. z v. w V. 5"]),
    ("a a a a b b b b c c c c", ["c a b a c a b b c a c b", "b a c b a c b a c b a c b a c b a c"]),
    ("in the middle of town", ["in the city centre"]),
    ("", ["nothing was written"]),
    ("something was written", [""]),
    ("?", ["!"]),
    ("no word is the same", ["every thing differs greatly"]),
    ("the of and", ["the of and in", "of the"]),
    ("hoped hopes hoping hope wishes wishing wished", ["wish wish hope hope hoped hopeful", "hopefully wishful"]),
    ("glasses glass class cups", ["cup cups glass", "a glass of glasses"]),
    ("Café Adriatic costs less than £20, 1,000 times, 1.5 a,b", ["The cafe has a price of under £20 and 1,000.00", "café adriatic: £20; under 1.5 a , b"]),
]


def shuffled(count, seed):
    """Texts of few words, so that most have many alignments, with 1 to 5 references."""
    draw = random.Random(seed)
    phrases = [side for pair in PARAPHRASES for side in pair] + list(SYNSETS) + FUNCTION_WORDS + [form + "s" for form in SYNSETS]
    made = []
    for _ in range(count):
        few = draw.sample(phrases, draw.randrange(4, 14))
        text = " ".join(draw.choice(few) for _ in range(draw.randrange(2, 26)))
        references = []
        for _ in range(draw.randrange(1, 6)):
            words = [word if draw.random() < 0.8 else draw.choice(few) for word in text.split() if draw.random() < 0.9]
            if draw.random() < 0.5:
                at = draw.randrange(len(words) + 1)
                words = words[at:] + words[:at]
            references.append(" ".join(words) or "none")
        made.append((text, references))
    return made


def write_small_tables():
    lines = {
        "function/english.words": FUNCTION_WORDS,
        "nonbreaking/english.prefixes": PREFIXES,
        "synonym/english.synsets": [line for word, sets in SYNSETS.items() for line in (word, " ".join(f"{it:08}" for it in sets))],
        "synonym/english.exceptions": [line for word, forms in EXCEPTIONS.items() for line in (word, " ".join(forms))],
    }
    # What the program looks up, and finds first in the jar that comes first.
    directories = sorted({name.split("/")[0] + "/" for name in lines})
    with zipfile.ZipFile(SMALL / "meteor-1.5.jar", "w", zipfile.ZIP_DEFLATED) as jar:
        for name in directories:
            jar.writestr(zipfile.ZipInfo(name), "")
        for name, content in lines.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            jar.writestr(entry, "\n".join(content) + "\n")
    table = "".join(f"0.5\n{phrase}\n{paraphrase}\n" for phrase, paraphrase in PARAPHRASES)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write(table.encode())
    (SMALL / "data").mkdir(exist_ok=True)
    (SMALL / "data/paraphrase-en.gz").write_bytes(packed.getvalue())


def meteor(texts, classpath, paraphrases):
    """The scores of each text and of all, as pycocoevalcap's meteor.py asks for them."""
    asked = [" ||| ".join(["SCORE", *references, text]) for text, references in texts]
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-cp", ":".join(map(str, classpath)), "Meteor", "-", "-", "-stdio", "-l", "en", "-norm"]
    command += ["-a", str(paraphrases)]

    def run(asked):
        out = subprocess.run(command, input="\n".join(asked) + "\n", capture_output=True, check=True, encoding="utf-8")
        return out.stdout.splitlines()

    scores = [float(line) for line in run([" ||| ".join(["EVAL", *run(asked)])])]
    assert len(scores) == len(texts) + 1, scores
    return {"texts": scores[:-1], "all": scores[-1]}


def scored(texts, lines):
    """Texts with the scores of `lines`, which are the same texts as the program gets them."""
    jar = METEOR / "meteor-1.5.jar"
    return {
        "texts": texts,
        "small": meteor(lines, [SMALL / "meteor-1.5.jar", jar], SMALL / "data/paraphrase-en.gz"),
        "full": meteor(lines, [jar], METEOR / "data/paraphrase-en.gz"),
    }


def split(texts):
    """The texts as the challenge gives them to the program: words of Stanford's tokenizer."""
    lines = stanford([part for text, references in texts for part in [text, *references]])
    return [(lines.pop(0), [lines.pop(0) for _ in references]) for _, references in texts]


def main():
    SMALL.mkdir(exist_ok=True)
    write_small_tables()
    lines = TEXTS + shuffled(40, 3)
    golden = {"lines": scored(lines, lines), "texts": scored(RESTAURANTS, split(RESTAURANTS))}
    text = json.dumps(golden, ensure_ascii=True)
    (HERE / "golden_meteor.json").write_text(text.replace("]], [", "]],\n[") + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
