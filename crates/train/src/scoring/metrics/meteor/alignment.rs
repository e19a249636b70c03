//! The best alignment of a text with a reference: every word is aligned at most once, as much as
//! possible is aligned, in as few chunks as possible, and words are aligned with near ones. A beam
//! search over the words of the reference, from left to right (Denkowski and Lavie 2011, section
//! 2.1).
//!
//! The search is the program's, with what it leaves to chance: where alignments are equally good,
//! the order in which matches were found decides.

use super::matches::{Kind, Match};

/// How many partial alignments go on from one word to the next.
const BEAM: usize = 40;

/// Matches none of which has a word of another.
#[derive(Debug)]
pub(super) struct Alignment {
    /// By the reference's words.
    pub(super) matches: Vec<Match>,
    /// Runs of matches that follow each other in both.
    pub(super) chunks: usize,
}

impl Alignment {
    /// The best alignment of a text and a reference of these lengths, by the matches that begin
    /// at each word of the reference.
    pub(super) fn of(text_length: usize, reference_length: usize, found: &[Vec<Match>]) -> Self {
        let mut fixed = vec![None; reference_length];
        let mut paths = vec![Path::new(text_length, reference_length)];
        for only in without_rivals(text_length, reference_length, found) {
            fixed[only.reference] = Some(only);
            paths[0].use_words(&only);
        }
        for (at, matches) in found.iter().enumerate() {
            paths.sort_by_key(Path::rank);
            paths.truncate(BEAM);
            let mut next = Vec::new();
            for mut path in paths {
                if at < path.next {
                    next.push(path);
                    continue;
                }
                if let Some(only) = fixed[at] {
                    path.distance += distance(&only);
                    path.take(only);
                    next.push(path);
                    continue;
                }
                for one in matches {
                    if !path.is_free(one) {
                        continue;
                    }
                    let mut longer = path.clone();
                    longer.use_words(one);
                    longer.take(*one);
                    // The program adds a match's distance to the path without it, and so to those
                    // with matches that come after it.
                    path.distance += distance(one);
                    next.push(longer);
                }
                path.skip();
                next.push(path);
            }
            paths = next;
        }
        paths.sort_by_key(Path::rank);
        paths.truncate(BEAM);
        for path in &mut paths {
            path.end_chunk();
        }
        // The first of equally good ones.
        let best = paths.into_iter().min_by_key(Path::rank);
        best.map_or(
            Self {
                matches: Vec::new(),
                chunks: 0,
            },
            |path| Self {
                matches: path.matches,
                chunks: path.chunks,
            },
        )
    }
}

/// The matches whose words are in no other match, so that they belong to the best alignment.
fn without_rivals(
    text_length: usize,
    reference_length: usize,
    found: &[Vec<Match>],
) -> impl Iterator<Item = Match> {
    let mut of_text = vec![0; text_length];
    let mut of_reference = vec![0; reference_length];
    for one in found.iter().flatten() {
        of_text[one.text_words()].iter_mut().for_each(|it| *it += 1);
        let words = &mut of_reference[one.reference_words()];
        words.iter_mut().for_each(|it| *it += 1);
    }
    let all = found.iter().flatten().copied();
    all.filter(move |one| {
        let mut counts = of_text[one.text_words()].iter();
        counts.all(|&it| it == 1)
            && of_reference[one.reference_words()]
                .iter()
                .all(|&it| it == 1)
    })
}

/// How far the words are from each other.
fn distance(one: &Match) -> usize {
    one.text.abs_diff(one.reference)
}

/// An alignment of the reference's first words.
#[derive(Clone)]
struct Path {
    matches: Vec<Match>,
    /// Words that are aligned in text and reference; those that are not the same count half, and
    /// halves of a match are dropped.
    aligned: usize,
    /// Chunks that are ended.
    chunks: usize,
    distance: usize,
    /// The word of the reference that comes next.
    next: usize,
    /// The text's word behind the last match, if the reference's word before `next` is aligned.
    chunk_end: Option<usize>,
    text_used: Vec<bool>,
    reference_used: Vec<bool>,
}

impl Path {
    fn new(text_length: usize, reference_length: usize) -> Self {
        Self {
            matches: Vec::new(),
            aligned: 0,
            chunks: 0,
            distance: 0,
            next: 0,
            chunk_end: None,
            text_used: vec![false; text_length],
            reference_used: vec![false; reference_length],
        }
    }

    /// Smaller for better paths.
    fn rank(&self) -> (std::cmp::Reverse<usize>, usize, usize) {
        (std::cmp::Reverse(self.aligned), self.chunks, self.distance)
    }

    fn is_free(&self, one: &Match) -> bool {
        let used = &self.reference_used[one.reference_words()];
        !used.contains(&true) && !self.text_used[one.text_words()].contains(&true)
    }

    fn use_words(&mut self, one: &Match) {
        self.text_used[one.text_words()].fill(true);
        self.reference_used[one.reference_words()].fill(true);
    }

    /// Aligns a match that begins at the next word.
    fn take(&mut self, one: Match) {
        let counted = |words: usize| {
            if one.kind == Kind::Exact {
                words
            } else {
                words / 2
            }
        };
        self.aligned += counted(one.text_length) + counted(one.reference_length);
        if self.chunk_end.is_some_and(|end| end != one.text) {
            self.chunks += 1;
        }
        self.next = one.reference + one.reference_length;
        self.chunk_end = Some(one.text + one.text_length);
        self.matches.push(one);
    }

    /// Leaves the next word without a match.
    fn skip(&mut self) {
        self.end_chunk();
        self.next += 1;
    }

    fn end_chunk(&mut self) {
        self.chunks += usize::from(self.chunk_end.take().is_some());
    }
}
