//! Counts of n-grams, and spaces as the reference programs, which are in Python, see them.

use std::collections::HashMap;

/// How often each n-gram occurs.
pub(super) type Counts<'a, T> = HashMap<&'a [T], usize>;

/// The n-grams of tokens.
pub(super) fn count<T: Eq + std::hash::Hash>(tokens: &[T], n: usize) -> Counts<'_, T> {
    let mut counts = HashMap::new();
    for ngram in tokens.windows(n) {
        *counts.entry(ngram).or_insert(0) += 1;
    }
    counts
}

/// Each n-gram as often as it occurs in the text where it occurs most.
pub(super) fn largest_counts<T: Eq + std::hash::Hash>(texts: &[Vec<T>], n: usize) -> Counts<'_, T> {
    let mut largest = HashMap::new();
    for text in texts {
        for (ngram, times) in count(text, n) {
            let most = largest.entry(ngram).or_insert(0);
            *most = times.max(*most);
        }
    }
    largest
}

/// How many n-grams two texts have in common.
pub(super) fn common<T: Eq + std::hash::Hash>(
    counts: &Counts<'_, T>,
    others: &Counts<'_, T>,
) -> usize {
    let shared = |(ngram, &times): (&&[T], &usize)| {
        let other = others.get(ngram).copied().unwrap_or(0);
        times.min(other)
    };
    counts.iter().map(shared).sum()
}

/// Whether Python takes a character as a space: Unicode's spaces and four separators of ASCII.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}
