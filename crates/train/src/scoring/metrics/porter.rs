//! Porter's stemmer (Porter 1980), with the changes that NLTK has by default, which rouge-score
//! uses: a few irregular words, `die` from `dies`, `y` after consonants only.

/// The stem of a word in lower case, of ASCII letters and digits.
pub(super) fn stem(word: &str) -> String {
    const IRREGULAR: &[(&str, &str)] = &[
        ("sky", "sky"),
        ("skies", "sky"),
        ("dying", "die"),
        ("lying", "lie"),
        ("tying", "tie"),
        ("news", "news"),
        ("innings", "inning"),
        ("inning", "inning"),
        ("outings", "outing"),
        ("outing", "outing"),
        ("cannings", "canning"),
        ("canning", "canning"),
        ("howe", "howe"),
        ("proceed", "proceed"),
        ("exceed", "exceed"),
        ("succeed", "succeed"),
    ];
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let steps: [fn(&str) -> String; 8] = [
        plurals,
        past_and_progressive,
        final_y,
        double_suffixes,
        suffixes_of_adjectives,
        last_suffixes,
        final_e,
        final_double_l,
    ];
    steps.iter().fold(word.to_owned(), |word, step| step(&word))
}

/// Whether each letter is a consonant; `y` is one unless it follows one.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word.bytes() {
        flags.push(match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last().is_none_or(|&before| !before),
            _ => true,
        });
    }
    flags
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    let flags = consonants(stem);
    flags.windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).contains(&false)
}

fn ends_in_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    match bytes {
        [.., before, last] if before == last => consonants(word).last() == Some(&true),
        _ => false,
    }
}

/// Whether a word ends in consonant, vowel, consonant, the last one not w, x or y; or is a vowel
/// and a consonant.
fn ends_in_short_syllable(word: &str) -> bool {
    match consonants(word).as_slice() {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [false, true] => true,
        _ => false,
    }
}

/// Applies the rule of the first suffix that the word has, if the rest fulfills its condition.
fn replace(word: &str, rules: &[(&str, &str)], condition: impl Fn(&str) -> bool) -> String {
    for (suffix, replacement) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            return match condition(stem) {
                true => format!("{stem}{replacement}"),
                false => word.to_owned(),
            };
        }
    }
    word.to_owned()
}

/// Step 1a.
fn plurals(word: &str) -> String {
    if word.len() == 4 && word.ends_with("ies") {
        return replace(word, &[("ies", "ie")], |_| true);
    }
    let rules = [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")];
    replace(word, &rules, |_| true)
}

/// Step 1b.
fn past_and_progressive(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return match word.len() {
            4 => format!("{stem}ie"),
            _ => format!("{stem}i"),
        };
    }
    if word.ends_with("eed") {
        return replace(word, &[("eed", "ee")], |stem| measure(stem) > 0);
    }
    let stems = ["ed", "ing"]
        .iter()
        .filter_map(|suffix| word.strip_suffix(suffix));
    let Some(stem) = stems.into_iter().find(|stem| has_vowel(stem)) else {
        return word.to_owned();
    };
    for (suffix, replacement) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if let Some(stem) = stem.strip_suffix(suffix) {
            return format!("{stem}{replacement}");
        }
    }
    if ends_in_double_consonant(stem) {
        return match stem.ends_with(['l', 's', 'z']) {
            true => stem.to_owned(),
            false => stem[..stem.len() - 1].to_owned(),
        };
    }
    match measure(stem) == 1 && ends_in_short_syllable(stem) {
        true => format!("{stem}e"),
        false => stem.to_owned(),
    }
}

/// Step 1c.
fn final_y(word: &str) -> String {
    replace(word, &[("y", "i")], |stem| {
        stem.len() > 1 && consonants(stem).last() == Some(&true)
    })
}

/// Step 2.
fn double_suffixes(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return double_suffixes(&format!("{stem}al"));
    }
    const RULES: [(&str, &str); 21] = [
        ("ational", "ate"),
        ("tional", "tion"),
        ("enci", "ence"),
        ("anci", "ance"),
        ("izer", "ize"),
        ("bli", "ble"),
        ("alli", "al"),
        ("entli", "ent"),
        ("eli", "e"),
        ("ousli", "ous"),
        ("ization", "ize"),
        ("ation", "ate"),
        ("ator", "ate"),
        ("alism", "al"),
        ("iveness", "ive"),
        ("fulness", "ful"),
        ("ousness", "ous"),
        ("aliti", "al"),
        ("iviti", "ive"),
        ("biliti", "ble"),
        ("fulli", "ful"),
    ];
    if RULES.iter().any(|(suffix, _)| word.ends_with(suffix)) {
        return replace(word, &RULES, |stem| measure(stem) > 0);
    }
    // The l of logi counts as part of the stem.
    let stem = word
        .strip_suffix("logi")
        .filter(|stem| measure(&format!("{stem}l")) > 0);
    stem.map_or_else(|| word.to_owned(), |stem| format!("{stem}log"))
}

/// Step 3.
fn suffixes_of_adjectives(word: &str) -> String {
    const RULES: [(&str, &str); 7] = [
        ("icate", "ic"),
        ("ative", ""),
        ("alize", "al"),
        ("iciti", "ic"),
        ("ical", "ic"),
        ("ful", ""),
        ("ness", ""),
    ];
    replace(word, &RULES, |stem| measure(stem) > 0)
}

/// Step 4.
fn last_suffixes(word: &str) -> String {
    const SUFFIXES: [&str; 19] = [
        "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion",
        "ou", "ism", "ate", "iti", "ous", "ive", "ize",
    ];
    let Some(suffix) = SUFFIXES.iter().find(|suffix| word.ends_with(**suffix)) else {
        return word.to_owned();
    };
    replace(word, &[(suffix, "")], |stem| {
        measure(stem) > 1 && (*suffix != "ion" || stem.ends_with(['s', 't']))
    })
}

/// Step 5a.
fn final_e(word: &str) -> String {
    replace(word, &[("e", "")], |stem| match measure(stem) {
        0 => false,
        1 => !ends_in_short_syllable(stem),
        _ => true,
    })
}

/// Step 5b.
fn final_double_l(word: &str) -> String {
    match word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        true => word[..word.len() - 1].to_owned(),
        false => word.to_owned(),
    }
}
