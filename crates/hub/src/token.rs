//! The user's token for the hub.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;

/// A token of the hub. It is sent to the hub itself over https only, and is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token; none for a text that is empty or cannot be one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The token that the environment names, as for Python's `huggingface_hub`: `HF_TOKEN`, or else
    /// the file that `hf auth login` writes, at `HF_TOKEN_PATH` or `token` in `home`.
    pub(crate) fn from_env(home: &Path) -> Option<Self> {
        if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].map(|name| env::var(name).ok());
        let file = || {
            let path = env::var_os("HF_TOKEN_PATH").map_or_else(|| home.join("token"), Into::into);
            Self::new(&fs::read_to_string(path).ok()?)
        };
        let named = named.into_iter().flatten().find_map(|it| Self::new(&it));
        named.or_else(file)
    }

    /// The value of the header `Authorization`.
    #[cfg(feature = "download")]
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Whether an environment variable is set to what Python's `huggingface_hub` takes for yes.
pub(crate) fn is_on(name: &str) -> bool {
    let value = env::var(name).unwrap_or_default().to_ascii_uppercase();
    matches!(&*value, "1" | "ON" | "YES" | "TRUE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_not_printed() {
        let token = Token::new("hf_secret\n").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert_eq!(token, Token("hf_secret".to_owned()));
        for text in ["", " \n", "a b", "a\r\nHost: b"] {
            assert_eq!(Token::new(text), None, "{text:?}");
        }
    }
}
