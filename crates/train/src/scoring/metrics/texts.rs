//! Scores of written texts against references, each equal to the program that the field uses.
//!
//! | name | keys | equal to |
//! | --- | --- | --- |
//! | `bleu` | `bleu` | sacreBLEU, tokenizer 13a, exponential smoothing |
//! | `bleu-zh` | `bleu_zh` | the same with the tokenizer for Chinese |
//! | `chrf` | `chrf` | sacreBLEU's chrF2 |
//! | `rouge` | `rouge1`, `rouge2`, `rougeL`, `rougeLsum` | rouge-score, mean F1 |
//! | `rouge-stemmed` | the same with `_stemmed` | rouge-score with Porter's stemmer |
//! | `nist` | `nist` | the E2E challenge's mteval |
//! | `meteor` | `meteor` | METEOR 1.5 as the E2E challenge's scripts call it |
//! | `e2e` | `e2e_bleu`, `e2e_rouge_l`, `nist`, `cider` | the E2E challenge's scripts |
//! | `exact-match` | `exact_match` | texts without the spaces around them are the same |
//! | `final-answer` | `final_answer` | GSM8K's: the numbers behind `####` are the same |
//! | `math-answer` | `math_answer` | HF PEFT's `method_comparison`: the answers behind `The answer is` or `####` are the same |
//!
//! Every key but `nist` and `cider` is a share of 1 or, for `bleu` and `chrf`, of 100, as the
//! programs print it. METEOR needs [`MeteorTables`], synonyms of WordNet and paraphrases, which
//! come with its own program and are not part of this one.
//!
//! ```
//! use epiphyte_train::scoring::metrics::texts::{ScoredText, TextMetric};
//!
//! let metric: TextMetric = "exact-match".parse()?;
//! let references = ["a lamp".to_owned()];
//! let texts = [ScoredText { text: " a lamp\n", references: &references }];
//! assert_eq!(metric.scores(&texts, None)?.get("exact_match"), Some(1.0));
//! # Ok::<(), epiphyte_train::error::MetricError>(())
//! ```

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::meteor::{self, MeteorTables};
use super::{Metrics, bleu, chrf, e2e, exact_match, nist, rouge};
use crate::error::MetricError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A written text and the texts that would be right, one or several.
#[derive(Clone, Copy, Debug)]
pub struct ScoredText<'a> {
    /// What was written.
    pub text: &'a str,
    /// What would be right.
    pub references: &'a [String],
}

/// Scores as named values.
type Named = Vec<(&'static str, f64)>;

/// How texts are scored.
#[derive(Clone, Copy)]
enum Scores {
    /// By themselves.
    Of(fn(&[ScoredText<'_>]) -> Named),
    /// With METEOR's tables.
    WithTables(fn(&[ScoredText<'_>], &MeteorTables) -> Result<Named, MetricError>),
}

/// A score, or a family of scores, of written texts.
#[derive(Clone, Copy)]
pub struct TextMetric {
    name: &'static str,
    summary: &'static str,
    keys: &'static [&'static str],
    scores: Scores,
}

/// Every metric.
const METRICS: &[TextMetric] = &[
    TextMetric {
        name: "bleu",
        summary: "BLEU of sacreBLEU",
        keys: &["bleu"],
        scores: Scores::Of(bleu::western),
    },
    TextMetric {
        name: "bleu-zh",
        summary: "BLEU of sacreBLEU for Chinese",
        keys: &["bleu_zh"],
        scores: Scores::Of(bleu::chinese),
    },
    TextMetric {
        name: "chrf",
        summary: "chrF2 of sacreBLEU",
        keys: &["chrf"],
        scores: Scores::Of(chrf::scores),
    },
    TextMetric {
        name: "rouge",
        summary: "ROUGE-1, -2, -L and -Lsum of rouge-score",
        keys: &["rouge1", "rouge2", "rougeL", "rougeLsum"],
        scores: Scores::Of(rouge::plain),
    },
    TextMetric {
        name: "rouge-stemmed",
        summary: "the same over Porter's stems",
        keys: &[
            "rouge1_stemmed",
            "rouge2_stemmed",
            "rougeL_stemmed",
            "rougeLsum_stemmed",
        ],
        scores: Scores::Of(rouge::stemmed),
    },
    TextMetric {
        name: "nist",
        summary: "NIST of the E2E challenge",
        keys: &["nist"],
        scores: Scores::Of(nist::scores),
    },
    TextMetric {
        name: "meteor",
        summary: "METEOR 1.5 of the E2E challenge, with --meteor-data",
        keys: &["meteor"],
        scores: Scores::WithTables(meteor::scores),
    },
    TextMetric {
        name: "e2e",
        summary: "BLEU, NIST, ROUGE-L and CIDEr of the E2E challenge",
        keys: &["e2e_bleu", "nist", "e2e_rouge_l", "cider"],
        scores: Scores::Of(e2e::scores),
    },
    TextMetric {
        name: "exact-match",
        summary: "share of texts that equal a reference",
        keys: &["exact_match"],
        scores: Scores::Of(exact_match::whole_texts),
    },
    TextMetric {
        name: "final-answer",
        summary: "share of texts with the reference's answer behind ####, as for GSM8K",
        keys: &["final_answer"],
        scores: Scores::Of(exact_match::final_answers),
    },
    TextMetric {
        name: "math-answer",
        summary: "share of texts with the reference's answer behind `The answer is` or ####, as HF PEFT reads \
                  MetaMath's and GSM8K's",
        keys: &["math_answer"],
        scores: Scores::Of(exact_match::math_answers),
    },
];

impl TextMetric {
    /// Every metric.
    pub fn all() -> &'static [Self] {
        METRICS
    }

    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it is, in a few words.
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// The names of its scores. More of each is better.
    pub fn keys(&self) -> &'static [&'static str] {
        self.keys
    }

    /// Whether it needs METEOR's tables.
    pub fn needs_meteor_tables(&self) -> bool {
        matches!(self.scores, Scores::WithTables(_))
    }

    /// Checks that a directory of METEOR's tables is named where one of `metrics` needs it, and
    /// only there.
    ///
    /// # Errors
    /// [`MetricError::NoMeteorTables`]; [`MetricError::UnusedMeteorTables`].
    pub fn check_meteor_data(
        metrics: &[Self],
        directory: Option<&Path>,
    ) -> Result<(), MetricError> {
        let needed = metrics.iter().any(Self::needs_meteor_tables);
        match (needed, directory) {
            (true, None) => Err(MetricError::NoMeteorTables),
            (false, Some(_)) => Err(MetricError::UnusedMeteorTables),
            _ => Ok(()),
        }
    }

    /// The scores of texts; only METEOR reads its tables.
    ///
    /// # Errors
    /// [`MetricError::Empty`] if there are no texts; [`MetricError::NoReference`] if one has no
    /// reference; [`MetricError::NoMeteorTables`] and [`MetricError::MeteorTable`] if METEOR's
    /// tables are needed and missing or cannot be read.
    pub fn scores(
        &self,
        texts: &[ScoredText<'_>],
        tables: Option<&MeteorTables>,
    ) -> Result<Metrics, MetricError> {
        if texts.is_empty() {
            return Err(MetricError::Empty);
        }
        let alone = texts.iter().position(|text| text.references.is_empty());
        if let Some(example) = alone {
            return Err(MetricError::NoReference { example });
        }
        let named = match self.scores {
            Scores::Of(scores) => scores(texts),
            Scores::WithTables(scores) => {
                scores(texts, tables.ok_or(MetricError::NoMeteorTables)?)?
            }
        };
        Ok(Metrics::from_iter(named))
    }
}

impl fmt::Debug for TextMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TextMetric").field(&self.name).finish()
    }
}

impl FromStr for TextMetric {
    type Err = MetricError;

    fn from_str(name: &str) -> Result<Self, MetricError> {
        let found = METRICS.iter().find(|metric| metric.name == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = METRICS.iter().map(Self::name).collect();
            MetricError::UnknownTextMetric {
                name: name.to_owned(),
                available: names.join(", "),
            }
        })
    }
}

impl PartialEq for TextMetric {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for TextMetric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for TextMetric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::early_stopping::Selection;

    #[derive(Deserialize)]
    struct Golden {
        sets: Vec<Set>,
    }

    /// Texts with their references, and the scores of all of them.
    #[derive(Deserialize)]
    struct Set {
        name: String,
        texts: Vec<(String, Vec<String>)>,
        scores: std::collections::BTreeMap<String, f64>,
    }

    /// The metrics but METEOR, whose file has its own test.
    fn without_tables() -> impl Iterator<Item = &'static TextMetric> {
        let all = TextMetric::all().iter();
        all.filter(|metric| !metric.needs_meteor_tables())
    }

    #[test]
    fn scores_are_those_of_the_programs_that_the_field_uses() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../../tests/golden_texts.json")).unwrap();
        let mut compared = std::collections::BTreeSet::new();
        for set in &golden.sets {
            let texts: Vec<ScoredText<'_>> = set
                .texts
                .iter()
                .map(|(text, references)| ScoredText { text, references })
                .collect();
            for metric in without_tables() {
                let found = metric.scores(&texts, None).unwrap();
                for (key, value) in found.iter() {
                    let Some(expected) = set.scores.get(key) else {
                        continue;
                    };
                    compared.insert(key.to_owned());
                    assert!(
                        (value - expected).abs() <= 1e-9 * expected.abs().max(1.0),
                        "{}, {key}: {value} instead of {expected}",
                        set.name
                    );
                }
            }
        }
        let one = [ScoredText {
            text: "a",
            references: &["a".to_owned()],
        }];
        for metric in without_tables() {
            for (key, _) in metric.scores(&one, None).unwrap().iter() {
                assert!(compared.contains(key), "`{key}` was compared with nothing");
            }
        }
    }

    #[test]
    fn scores_have_the_names_that_are_promised_and_more_of_each_is_better() {
        let one = [ScoredText {
            text: "a",
            references: &["a".to_owned()],
        }];
        for metric in TextMetric::all() {
            // METEOR's own test has tables and its key.
            if !metric.needs_meteor_tables() {
                let measured = metric.scores(&one, None).unwrap();
                let mut keys = metric.keys().to_vec();
                keys.sort_unstable();
                assert!(measured.iter().map(|(key, _)| key).eq(keys), "{metric:?}");
            }
            let of_keys = metric.keys().iter();
            let is_greater = |key: &&str| Selection::by(key).greater_is_better;
            assert!(of_keys.copied().all(|key| is_greater(&key)), "{metric:?}");
            let json = serde_json::to_value(metric).unwrap();
            assert_eq!(&serde_json::from_value::<TextMetric>(json).unwrap(), metric);
        }
    }

    #[test]
    fn texts_without_references_are_errors() {
        let metric: TextMetric = "bleu".parse().unwrap();
        assert_eq!(metric.scores(&[], None), Err(MetricError::Empty));
        let texts = [ScoredText {
            text: "a",
            references: &[],
        }];
        assert_eq!(
            metric.scores(&texts, None),
            Err(MetricError::NoReference { example: 0 })
        );
        let texts = [ScoredText {
            text: "a",
            references: &["a".to_owned()],
        }];
        let metric: TextMetric = "meteor".parse().unwrap();
        assert_eq!(
            metric.scores(&texts, None),
            Err(MetricError::NoMeteorTables)
        );
        let error = "meteors".parse::<TextMetric>().unwrap_err().to_string();
        assert!(error.contains("bleu, bleu-zh, chrf"), "{error}");
    }
}
