//! The words of MS-COCO's caption scores, which the E2E challenge uses: those of Stanford's
//! PTBTokenizer 3.4.1, in lower case and without most punctuation.
//!
//! The rules are those that occur in descriptions of restaurants: words with hyphens and slashes,
//! numbers, contractions, initials. Of the 49,789 different references of the E2E data, one gets
//! other words than from Stanford's program; texts of other kinds may have more that do, above all
//! with abbreviations.

use std::sync::LazyLock;

use regex::Regex;

/// What may stand at a place of a text. The longest match counts, of equals the first; if a rule
/// has a group, the token is the group, and what follows it only makes the match longer.
static RULES: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    const LETTER: &str = r"[A-Za-z\u{aa}-\u{2af}\u{370}-\u{1fff}]";
    const OTHER: &str = r"(?:[^A-Za-z0-9]|\z)";
    let word = format!(r"{LETTER}(?:{LETTER}|\d)*");
    let rules = [
        // Contractions: can|not, do|n't, it|'s.
        format!("(?i:(can)not){OTHER}"),
        format!("({LETTER}+?)(?i:n['\u{2019}]t){OTHER}"),
        format!("(?i:(n['\u{2019}]t)){OTHER}"),
        format!("(?i:(['\u{2019}](?:s|m|d|re|ve|ll|n))){OTHER}"),
        // A point before a comma belongs to the word.
        format!(r"({word}\.)[,;:]"),
        format!(r"{word}(?:[.!?]{word})*"),
        "(?i:o['\u{2019}]clock)".to_owned(),
        "(?:[dDoOlL]['\u{2019}][A-Za-z0-9])?[A-Za-z0-9]+\
         (?:-(?:[dDoOlL]['\u{2019}][A-Za-z0-9])?[A-Za-z0-9]+)*"
            .to_owned(),
        format!(r"(?:{LETTER}|\d)+(?:-(?:{LETTER}|\d)+)*"),
        "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}".to_owned(),
        "[A-Za-z]+,[A-Za-z]+(?:-[A-Za-z]+)+".to_owned(),
        r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)".to_owned(),
        // Abbreviations and initials.
        r"(?i:(?:st|mr|mrs|ms|dr|vs|etc|e\.g|i\.e|a\.m|p\.m|ave|blvd|rd|inc|ltd|co|corp|jr|sr|prof)\.)"
            .to_owned(),
        r"(?:[A-Za-z]\.)+|[A-Za-z](?:\.[A-Za-z])+\.".to_owned(),
        r"\.\.\.+|--+".to_owned(),
        // Tags and characters of markup.
        "</?[A-Za-z][^<>]*>|&(?:amp|lt|gt|quot);".to_owned(),
    ];
    let anchored = rules.iter().map(|rule| format!(r"\A(?:{rule})"));
    let compiled = anchored.map(|rule| Regex::new(&rule).expect("the rule is valid"));
    compiled.collect()
});

/// The words of a text.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (mut length, mut end) = (first.len_utf8(), first.len_utf8());
        for rule in RULES.iter() {
            let Some(found) = rule.captures(rest) else {
                continue;
            };
            if found[0].len() > length {
                length = found[0].len();
                end = found.get(1).map_or(length, |group| group.end());
            }
        }
        let token = &rest[..end];
        if !is_punctuation(token) {
            words.push(spelled(token));
        }
        rest = rest[end..].trim_start();
    }
    words
}

/// Whether the scores leave a token out.
fn is_punctuation(token: &str) -> bool {
    const ONE_OF: [&str; 12] = [
        "'", "`", "\"", ".", "?", "!", ",", ":", ";", "-", "\u{2013}", "\u{2014}",
    ];
    let quotes = ['\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}'];
    let repeated = |mark: char, least: usize| {
        token.len() >= least && token.chars().all(|character| character == mark)
    };
    ONE_OF.contains(&token)
        || token == "&quot;"
        || repeated('.', 3)
        || repeated('-', 2)
        || token.chars().all(|character| quotes.contains(&character))
}

/// A token as the Penn Treebank spells it.
fn spelled(token: &str) -> String {
    match token {
        "(" => "-lrb-".to_owned(),
        ")" => "-rrb-".to_owned(),
        "[" => "-lsb-".to_owned(),
        "]" => "-rsb-".to_owned(),
        "{" => "-lcb-".to_owned(),
        "}" => "-rcb-".to_owned(),
        "&amp;" => "&".to_owned(),
        "&lt;" => "<".to_owned(),
        "&gt;" => ">".to_owned(),
        "\u{a3}" => "#".to_owned(),
        "\u{20ac}" => "$".to_owned(),
        token => token.to_lowercase().replace('\u{2019}', "'"),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::words;

    #[derive(Deserialize)]
    struct Row {
        text: String,
        words: Vec<String>,
    }

    #[test]
    fn words_are_those_of_stanfords_tokenizer() {
        #[derive(Deserialize)]
        struct Golden {
            words: Vec<Row>,
        }
        let golden = include_str!("../../../tests/golden_texts.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        assert!(golden.words.len() > 50);
        for row in golden.words {
            assert_eq!(words(&row.text), row.words, "{}", row.text);
        }
    }

    /// All references of the E2E data but one.
    #[test]
    #[ignore = "needs ../shared/data"]
    fn references_of_e2e_have_the_words_of_stanfords_tokenizer() {
        #[derive(Deserialize)]
        struct Golden {
            references: References,
        }
        #[derive(Deserialize)]
        struct References {
            texts: usize,
            sha256: String,
        }
        let golden = include_str!("../../../tests/golden_texts.json");
        let Golden { references } = serde_json::from_str(golden).unwrap();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/e2e_nlg/");
        let (mut seen, mut texts) = (std::collections::HashSet::new(), Vec::new());
        for file in ["trainset.csv", "devset.csv", "testset_w_refs.csv"] {
            let options = epiphyte_data::ReadOptions::default();
            let table = epiphyte_data::Table::read(format!("{root}{file}"), &options).unwrap();
            let column = table.texts("ref").unwrap();
            let new = column
                .into_iter()
                .filter(|text| seen.insert((*text).to_owned()));
            texts.extend(new.map(str::to_owned));
        }
        assert_eq!(texts.len(), references.texts);
        let texts = texts.iter().filter(|text| !text.contains(OTHER_WORDS));
        let lines: Vec<String> = texts.map(|text| words(text).join(" ")).collect();
        let hash = epiphyte_io::sha256(lines.join("\n").as_bytes());
        assert_eq!(hash, references.sha256);
    }

    /// Part of the reference that has other words.
    const OTHER_WORDS: &str = "price of 20-25 L.";
}
