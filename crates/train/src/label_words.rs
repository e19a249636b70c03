//! Words for the classes of a cloze template, found with a language model.
//!
//! Gao, Fisch, Chen, "Making Pre-trained Language Models Better Few-shot Learners" (LM-BFF), ACL
//! 2021, arXiv 2012.15723, section 5.1, equations 5 and 6:
//!
//! 1. For each class, the k words with the largest sum of log probabilities in the template's
//!    place, over the class's training examples.
//! 2. Of all ways to choose one of these for each class, those with the best accuracy over all
//!    training examples, where a class is predicted if its word is the most probable.
//!
//! The paper then trains with each of the best and keeps the one that is best on development data;
//! that is `epiphyte train` with each verbalizer. Sets of one accuracy are sorted by their sum of
//! log probabilities. With many classes, k is so small that all sets can be tried.

use epiphyte_data::{Batches, Cloze, Target, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;

use crate::TrainError;
use crate::observer::Observer;
use crate::run::LoadedAdapter;
use crate::scoring::evaluate::{each_row_of_logits, largest_and_sum};

/// The most classes that words are searched for; each has a number for each token.
const MOST_CLASSES: usize = 128;
/// The most sets of words that are tried.
const MOST_SETS: usize = 1_000_000;

/// How words are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelWordSearch {
    /// Words that are tried for each class: 100 in the paper.
    pub candidates: usize,
    /// Sets that are returned.
    pub sets: usize,
}

/// A word for each class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelWords {
    /// The words, in the order of the task's classes.
    pub words: Vec<String>,
    /// The share of the examples whose class has the most probable word.
    pub accuracy: f64,
    /// The mean, over the examples, of the log probability of the word of the example's class.
    pub log_probability: f64,
}

/// A word that may stand for a class.
struct Candidate {
    id: u32,
    word: String,
    /// The sum of its log probabilities over the examples of the class.
    log_probability: f64,
}

/// Searches words for the classes of a cloze task without a verbalizer; best first.
///
/// # Errors
/// [`TrainError::Config`] if the task has no template or classes, or has words already, or no word
/// of the vocabulary can stand in the template's place; if an example does not fit the model, or a
/// logit is not finite.
pub fn find_label_words(
    loaded: &LoadedAdapter,
    batches: &Batches,
    search: LabelWordSearch,
    observer: &mut dyn Observer,
) -> Result<Vec<LabelWords>, TrainError> {
    let task = &loaded.task_model;
    if !task.spec.verbalizer.is_empty() {
        return Err(TrainError::Config(
            "words are searched for a task without a verbalizer: leave it out".to_owned(),
        ));
    }
    let template = task.spec.columns.cloze_template();
    let template = template.map_err(|error| TrainError::of_columns(task.spec.task, error))?;
    let classes = classes_of(batches)?;
    let count = task.spec.labels.len();
    let evaluation = loaded.evaluation(batches);

    let vocabulary = task.loaded.model.base().dimensions.vocabulary;
    if count > MOST_CLASSES {
        return Err(TrainError::Config(format!(
            "words are searched for {count} labels, and for at most {MOST_CLASSES} there are words: \
             is `{}` a column of classes?",
            task.spec.columns.label()
        )));
    }
    let mut sums = vec![vec![0.0; vocabulary]; count];
    each_row_of_logits(&evaluation, observer, &mut |example, logits| {
        let (largest, whole) = largest_and_sum(logits);
        let whole = whole.ln();
        for (sum, &logit) in sums[classes[example]].iter_mut().zip(logits) {
            *sum += f64::from(logit - largest) - whole;
        }
    })?;
    let each = search.candidates.clamp(1, most_candidates(count));
    let candidates = sums
        .iter()
        .map(|sums| candidates(sums, each, &template, &task.tokenizer));
    let candidates = candidates.collect::<Result<Vec<_>, _>>()?;
    drop(sums);

    // The candidates' logits of each example, `[examples, classes, candidates]`.
    let mut logits = vec![Vec::new(); batches.examples().len()];
    each_row_of_logits(&evaluation, observer, &mut |example, row| {
        let words = candidates.iter().flatten();
        logits[example] = words.map(|word| row[word.id as usize]).collect();
    })?;
    Ok(best_sets(&candidates, &logits, &classes, search.sets))
}

/// The class of each example.
fn classes_of(batches: &Batches) -> Result<Vec<usize>, TrainError> {
    let examples = batches.examples();
    let class = |at| match examples.get(at).map(|example| example.target) {
        Some(Target::Class(class)) => Ok(class),
        _ => Err(TrainError::Config(
            "words are searched for classes: the examples have none".to_owned(),
        )),
    };
    (0..examples.len()).map(class).collect()
}

/// The most candidates of each class with which all sets can be tried.
fn most_candidates(classes: usize) -> usize {
    let fits = |&each: &usize| {
        let sets = (each as u64).checked_pow(classes as u32);
        sets.is_some_and(|sets| sets <= MOST_SETS as u64)
    };
    (1..=MOST_SETS).take_while(fits).last().unwrap_or(1)
}

/// The words with the largest sums that one token of the vocabulary spells in the template's place.
fn candidates(
    sums: &[f64],
    count: usize,
    template: &Cloze,
    tokenizer: &Tokenizer,
) -> Result<Vec<Candidate>, TrainError> {
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by(|&one, &other| sums[other].total_cmp(&sums[one]));
    let mut found = Vec::new();
    for token in order {
        let id = token as u32;
        if let Some(word) = word_of(id, template.follows_space(), tokenizer) {
            found.push(Candidate {
                id,
                word,
                log_probability: sums[token],
            });
        }
        if found.len() == count {
            break;
        }
    }
    match found.is_empty() {
        true => Err(TrainError::Config(
            "no token of the vocabulary is a word of letters in the template's place".to_owned(),
        )),
        false => Ok(found),
    }
}

/// The word of letters that one token spells, after a space or not, if it spells one.
pub(crate) fn word_of(id: u32, follows_space: bool, tokenizer: &Tokenizer) -> Option<String> {
    tokenizer.token(id)?;
    let word = tokenizer.decode(&[id], true).ok()?.trim().to_owned();
    let is_word = !word.is_empty() && word.chars().all(char::is_alphabetic);
    let token = tokenizer.word(&word, follows_space).ok();
    (is_word && token == Some(id)).then_some(word)
}

/// The sets with the best accuracy, and of equal ones those with the largest probability. Words of
/// two classes differ.
fn best_sets(
    candidates: &[Vec<Candidate>],
    logits: &[Vec<f32>],
    classes: &[usize],
    count: usize,
) -> Vec<LabelWords> {
    // Where the candidates of each class begin in a row of logits.
    let starts: Vec<usize> = candidates
        .iter()
        .scan(0, |start, words| {
            let own = *start;
            *start += words.len();
            Some(own)
        })
        .collect();
    let sets: usize = candidates.iter().map(Vec::len).product();
    let chosen = |set: usize| {
        let mut rest = set;
        let of_class = candidates.iter().map(move |words| {
            let word = rest % words.len();
            rest /= words.len();
            word
        });
        of_class.collect::<Vec<usize>>()
    };
    let score = |set: usize| {
        let chosen = chosen(set);
        let words = chosen.iter().zip(candidates);
        let words: Vec<&Candidate> = words.map(|(&word, of_class)| &of_class[word]).collect();
        let repeats = (1..words.len()).any(|at| words[..at].iter().any(|it| it.id == words[at].id));
        if repeats {
            return None;
        }
        let is_right = |&(row, &class): &(&Vec<f32>, &usize)| {
            let logit = |class: usize| row[starts[class] + chosen[class]];
            (0..chosen.len()).all(|other| other == class || logit(other) < logit(class))
        };
        let right = logits.iter().zip(classes).filter(is_right).count();
        let log_probability: f64 = words.iter().map(|word| word.log_probability).sum();
        Some((right, log_probability, set))
    };
    let mut scored: Vec<(usize, f64, usize)> =
        (0..sets).into_par_iter().filter_map(score).collect();
    scored.sort_by(|one, other| {
        let by_probability = other.1.total_cmp(&one.1);
        other
            .0
            .cmp(&one.0)
            .then(by_probability)
            .then(one.2.cmp(&other.2))
    });
    let examples = logits.len().max(1) as f64;
    let set = |&(right, log_probability, set): &(usize, f64, usize)| LabelWords {
        words: chosen(set)
            .into_iter()
            .zip(candidates)
            .map(|(word, of_class)| of_class[word].word.clone())
            .collect(),
        accuracy: right as f64 / examples,
        log_probability: log_probability / examples,
    };
    scored.iter().take(count).map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: u32, log_probability: f64) -> Candidate {
        Candidate {
            id,
            word: format!("w{id}"),
            log_probability,
        }
    }

    #[test]
    fn sets_are_ranked_by_accuracy_then_by_probability() {
        let candidates = [
            vec![candidate(0, -1.0), candidate(1, -2.0)],
            vec![candidate(1, -1.5), candidate(2, -3.0)],
        ];
        // Logits of w0, w1 for the first class and of w1, w2 for the second.
        let logits = [
            vec![3.0, 0.0, 0.0, 1.0],
            vec![0.0, 2.0, 2.0, 1.0],
            vec![1.0, 0.0, 0.0, 4.0],
        ];
        let found = best_sets(&candidates, &logits, &[0, 1, 1], 3);
        let words: Vec<String> = found.iter().map(|set| set.words.join(" ")).collect();
        // w0 against w2 is right in all three; w1 may not stand for both.
        assert_eq!(words, ["w0 w2", "w0 w1", "w1 w2"]);
        assert_eq!(found[0].accuracy, 1.0);
        assert!((found[0].log_probability + 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(
            [found[1].accuracy, found[2].accuracy],
            [2.0 / 3.0, 1.0 / 3.0]
        );
    }

    #[test]
    fn all_sets_can_be_tried() {
        assert_eq!(
            [2, 3, 6, 20, 1000].map(most_candidates),
            [1000, 100, 10, 1, 1]
        );
    }
}
