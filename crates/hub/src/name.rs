//! Names of models on the hub, and of the files that are taken from there.

use std::fmt;

/// The owner of the models that Python's `sentence-transformers` finds without one.
const SENTENCE_TRANSFORMERS: &str = "sentence-transformers";

/// A model's name: an owner, empty for the hub's oldest models, and a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    pub(crate) owner: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> Name<'a> {
    /// Parses `bert-base-uncased` or `google-bert/bert-base-uncased`; none for anything else, such
    /// as a path.
    pub(crate) fn parse(model: &'a str) -> Option<Self> {
        let (owner, name) = match model.split_once('/') {
            Some((owner, name)) if is_plain(owner) => (owner, name),
            Some(_) => return None,
            None => ("", model),
        };
        is_plain(name).then_some(Self { owner, name })
    }

    /// The models that the name may mean, best first: `all-MiniLM-L6-v2`, which is in every text
    /// about sentence embeddings, is `sentence-transformers/all-MiniLM-L6-v2` on the hub.
    pub(crate) fn meanings(self) -> Vec<Self> {
        let of_sentence_transformers = Self {
            owner: SENTENCE_TRANSFORMERS,
            name: self.name,
        };
        match self.owner {
            "" => vec![self, of_sentence_transformers],
            _ => vec![self],
        }
    }

    /// The model's directory in the cache.
    pub(crate) fn folder(self) -> String {
        format!("models--{}", self.to_string().replace('/', "--"))
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, name } = self;
        if owner.is_empty() {
            f.write_str(name)
        } else {
            write!(f, "{owner}/{name}")
        }
    }
}

/// Whether a name is safe to use in a path and in a URL: ASCII letters, digits, `-`, `_` and `.`,
/// the first a letter or a digit. So it has no separator and is neither hidden nor `..`.
pub(crate) fn is_plain(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_not_names() {
        let name = |owner, name| Some(Name { owner, name });
        assert_eq!(
            Name::parse("google-bert/bert-base-uncased"),
            name("google-bert", "bert-base-uncased")
        );
        assert_eq!(Name::parse("gpt2"), name("", "gpt2"));
        for path in [
            "./gpt2",
            "../a/b",
            "/bert",
            "/models/bert",
            "a/b/c",
            "a/..",
            "models/",
            "C:\\bert",
            "",
        ] {
            assert_eq!(Name::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_name_without_owner_may_be_one_of_sentence_transformers() {
        let meanings = |name| {
            let meanings = Name::parse(name).unwrap().meanings();
            meanings.iter().map(Name::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            meanings("all-MiniLM-L6-v2"),
            ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"]
        );
        assert_eq!(meanings("org/name"), ["org/name"]);
    }
}
