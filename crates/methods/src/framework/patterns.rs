//! Patterns for module paths: Python's regular expressions, as HF PEFT's files have them.
//!
//! Look-around and backreferences are part of them, and an adapter's file is a stranger's: so a
//! search that goes back too often is an error, and never takes long.

use fancy_regex::{Regex, RegexBuilder};
use thiserror::Error;

/// How often a search may go back, for one path.
const BACKTRACK_LIMIT: usize = 100_000;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// A pattern that is no regular expression, or that takes too long.
#[derive(Debug, Error)]
#[error("`{pattern}` {problem}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Pattern {
    /// A pattern that must match a whole path (Python's `re.fullmatch`).
    ///
    /// # Errors
    /// [`PatternError`] if it is not a regular expression.
    pub fn whole(pattern: &str) -> Result<Self, PatternError> {
        Self::new(pattern, &format!("^(?:{pattern})$"))
    }

    /// A pattern that must match a path, or its end behind a dot.
    ///
    /// # Errors
    /// [`PatternError`] if it is not a regular expression.
    pub fn ending(pattern: &str) -> Result<Self, PatternError> {
        Self::new(pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))
    }

    /// Whether a path matches.
    ///
    /// # Errors
    /// [`PatternError`] if the search goes back too often.
    pub fn matches(&self, path: &str) -> Result<bool, PatternError> {
        self.0.is_match(path).map_err(|_| PatternError {
            pattern: self.0.as_str().to_owned(),
            problem: format!(
                "takes too many steps on `{path}`: write it without nested repetitions"
            ),
        })
    }

    fn new(given: &str, anchored: &str) -> Result<Self, PatternError> {
        let regex = RegexBuilder::new(anchored)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build();
        regex.map(Self).map_err(|error| PatternError {
            pattern: given.to_owned(),
            problem: format!("is not a regular expression: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn look_around_and_backreferences_work_as_in_python() {
        let text_only = Pattern::whole("^(?!.*visual).*q_proj$").unwrap();
        assert!(
            text_only
                .matches("model.layers.0.self_attn.q_proj")
                .unwrap()
        );
        assert!(!text_only.matches("visual.blocks.0.attn.q_proj").unwrap());
        let behind = Pattern::whole(r".*(?<=layers\.1)\.mlp\.(up|down)_proj").unwrap();
        assert!(behind.matches("model.layers.1.mlp.up_proj").unwrap());
        assert!(!behind.matches("model.layers.11.mlp.gate_proj").unwrap());
        let twice = Pattern::ending(r"(\w+)\.\1").unwrap();
        assert!(twice.matches("block.dense.dense").unwrap());
        assert!(!twice.matches("block.dense.query").unwrap());
    }

    #[test]
    fn what_takes_too_long_or_is_no_pattern_is_an_error() {
        let slow = Pattern::whole(r"(?=(a+)+$)(?!x)\1b").unwrap();
        let error = slow
            .matches(&"a".repeat(200))
            .map_err(|error| error.to_string());
        assert!(
            error.as_ref().is_ok_and(|matches| !matches)
                || error
                    .as_ref()
                    .is_err_and(|error| error.contains("too many steps")),
            "{error:?}"
        );
        let slow =
            Pattern::whole(r"(?:(?=a)a|a)*(?:(?=a)a|a)*(?:(?=a)a|a)*(?:(?=a)a|a)*b").unwrap();
        let error = slow.matches(&"a".repeat(200)).unwrap_err().to_string();
        assert!(error.contains("too many steps"), "{error}");
        let wrong = Pattern::whole("(").unwrap_err().to_string();
        assert!(
            wrong.starts_with("`(` is not a regular expression"),
            "{wrong}"
        );
    }
}
