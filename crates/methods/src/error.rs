//! What can be wrong with a method's configuration or an adapter's files.

use std::path::PathBuf;

use thiserror::Error;

/// A method cannot be built, or an adapter cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MethodError {
    /// No method of that name.
    #[error("unknown method `{name}`; known are {known}")]
    UnknownMethod {
        /// The name that was asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A key is unknown, or settings contradict each other.
    #[error("{method}: {reason}")]
    Configuration {
        /// The method.
        method: &'static str,
        /// What is wrong, naming the key.
        reason: String,
    },
    /// A configuration value is of the wrong type.
    #[error("{method}: `{key}`: {problem}")]
    Setting {
        /// The method.
        method: &'static str,
        /// The configuration key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A configuration value is out of range.
    #[error("{method}: `{key}` is {value}, but {expected}")]
    Value {
        /// The method.
        method: &'static str,
        /// The configuration key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// No linear layer matches the target modules.
    #[error(
        "{method}: target modules {targets} match nothing in this {model_type} model; it has {available}"
    )]
    NoTarget {
        /// The method.
        method: &'static str,
        /// What was asked for.
        targets: String,
        /// The model's type.
        model_type: String,
        /// The last components of the model's linear layers.
        available: String,
    },
    /// Names of modules that match nothing, among others that do.
    #[error(
        "{method}: `{key}` has {}, but no linear layer of this {model_type} model is called so; it has {}",
        quoted(unmatched),
        available.join(", ")
    )]
    Unmatched {
        /// The method.
        method: &'static str,
        /// The configuration key.
        key: &'static str,
        /// The names that match nothing.
        unmatched: Vec<String>,
        /// The model's type.
        model_type: String,
        /// The last components of the model's linear layers.
        available: Vec<String>,
    },
    /// The method has nothing to act on in this model.
    #[error("{method} cannot act on this {model_type} model: {reason}")]
    NotApplicable {
        /// The method.
        method: &'static str,
        /// The model's type.
        model_type: String,
        /// Why not, and what to use instead.
        reason: String,
    },
    /// The method changes more than weights, so it cannot be folded into them.
    #[error("{method} cannot be merged into the base: {reason}")]
    NotMergeable {
        /// The method.
        method: &'static str,
        /// What it adds beside the weights.
        reason: &'static str,
    },
    /// A change of a base cannot be expressed as LoRA.
    #[error("the change cannot be converted to LoRA: {reason}")]
    NotLora {
        /// What LoRA has no place for.
        reason: String,
    },
    /// The training data cannot be run before training.
    #[error("the training data cannot be run before training: {0}")]
    Calibration(String),
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("`{}`: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the key or tensor.
        reason: String,
    },
    /// `adapter_config.json` asks for something that is not implemented.
    #[error(
        "`{}`: `{key}` = {value} is not supported{}{reason}",
        path.display(),
        if reason.is_empty() { "" } else { ": " }
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why not, and what to do instead; empty if nothing is known of it.
        reason: &'static str,
    },
    /// The two files of an adapter were not written together, or were changed since.
    #[error(
        "`{}`: {reason}; put back both files from one save, or pass --allow-edited-adapter if it was \
         changed on purpose",
        path.display()
    )]
    NotOneAdapter {
        /// The file that differs.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Tensors and parameters do not pair up.
    #[error(
        "`{}` does not fit the method and the base: {}",
        path.display(),
        lists(&[
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("wrong shapes", misshapen),
        ])
    )]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Keys that the method has and the file lacks.
        missing: Vec<String>,
        /// Keys that the file has and the method lacks.
        unexpected: Vec<String>,
        /// Keys whose shapes differ, with both shapes.
        misshapen: Vec<String>,
    },
    /// The base or a tensor file cannot be used.
    #[error(transparent)]
    Model(#[from] epiphyte_models::ModelError),
    /// The adapter was trained over another base or tokenizer.
    #[error(
        "`{}` was trained over another {what} (its sha256 begins {expected}, this one's {found}); pass \
         --allow-other-base to use it all the same",
        path.display()
    )]
    OtherBase {
        /// The adapter's directory.
        path: PathBuf,
        /// `base` or `tokenizer`.
        what: &'static str,
        /// The start of the hash that the adapter names.
        expected: String,
        /// The start of the hash at hand.
        found: String,
    },
    /// The base's configuration is another than the one that the adapter was trained with.
    #[error(
        "`{}` was trained over a base whose config.json says `{key}` = {expected}, but this one's says \
         {found}; pass --allow-other-base to use it all the same",
        path.display()
    )]
    OtherConfig {
        /// The adapter's directory.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value that the adapter names.
        expected: String,
        /// The value at hand.
        found: String,
    },
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Lists of names, each with its title; lists without names are left out.
fn lists(lists: &[(&str, &[String])]) -> String {
    const SHOWN: usize = 5;
    let lists = lists.iter().filter(|(_, names)| !names.is_empty());
    let lists = lists.map(|(title, names)| {
        let shown = quoted(&names[..names.len().min(SHOWN)]);
        match names.len().saturating_sub(SHOWN) {
            0 => format!("{title}: {shown}"),
            more => format!("{title}: {shown} and {more} more"),
        }
    });
    lists.collect::<Vec<String>>().join("; ")
}
