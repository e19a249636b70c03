//! The files of a model or an adapter, and which of them a snapshot in the cache lacks.
//!
//! A snapshot is the directory of one commit of a repository. Python's `huggingface_hub` writes
//! files into it when a program asks for them, so a snapshot may have some of the files only. Next
//! to it, an empty file `.no_exist/COMMIT/NAME` says that the commit has no file of that name.

use std::fs;
use std::path::{Path, PathBuf};

use crate::name::{Name, is_plain};

/// Of several small shards or one file: the weights of a model.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The list of shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// What a repository is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A base model.
    Model,
    /// An adapter of one.
    Adapter,
}

impl Kind {
    /// The word for it.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Adapter => "adapter",
        }
    }

    /// The files without which nothing works, weights and tokenizers of models apart.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Model => &["config.json"],
            Self::Adapter => &["adapter_config.json", "adapter_model.safetensors"],
        }
    }

    /// The files that many models do not have, but which change results where they exist.
    fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Model => &[
                "tokenizer_config.json",
                "generation_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
            ],
            Self::Adapter => &[],
        }
    }

    /// The files that go with a model to other programs: a merged model has copies of them.
    #[cfg(feature = "download")]
    fn companions(self) -> &'static [&'static str] {
        match self {
            Self::Model => &[
                "added_tokens.json",
                "chat_template.json",
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
            ],
            Self::Adapter => &[],
        }
    }

    /// The small files that are downloaded if the hub has them.
    #[cfg(feature = "download")]
    pub(crate) fn small_files(self) -> impl Iterator<Item = &'static str> {
        let groups = [self.required(), self.optional(), self.companions()];
        let tokenizer = TOKENIZERS.iter().filter(move |_| self == Self::Model);
        groups
            .into_iter()
            .chain(tokenizer.copied())
            .flatten()
            .copied()
    }
}

/// The file that alone is a tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// The files of which one set is a model's tokenizer, the newest kind first.
const TOKENIZERS: [&[&str]; 7] = [
    &[TOKENIZER],
    &["vocab.txt"],
    &["vocab.json", "merges.txt"],
    &["tokenizer.model"],
    &["spiece.model"],
    &["sentencepiece.bpe.model"],
    &["spm.model"],
];

/// Whether there is a tokenizer among the files that `exists` knows.
pub(crate) fn has_tokenizer(exists: impl Fn(&str) -> bool) -> bool {
    TOKENIZERS
        .iter()
        .any(|files| files.iter().all(|file| exists(file)))
}

/// One commit of a repository, as it lies in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The repository's directory in the cache.
    pub(crate) repository: PathBuf,
    /// The commit's hash.
    pub(crate) commit: String,
    kind: Kind,
}

impl Snapshot {
    pub(crate) fn new(cache: &Path, name: Name<'_>, commit: &str, kind: Kind) -> Self {
        Self {
            repository: cache.join(name.folder()),
            commit: commit.to_owned(),
            kind,
        }
    }

    /// The snapshot of the main branch, if the cache knows the branch's commit.
    pub(crate) fn of_main(cache: &Path, name: Name<'_>, kind: Kind) -> Option<Self> {
        let commit = fs::read_to_string(cache.join(name.folder()).join("refs/main")).ok()?;
        let commit = commit.trim();
        is_plain(commit).then(|| Self::new(cache, name, commit, kind))
    }

    /// The snapshot's directory.
    pub(crate) fn directory(&self) -> PathBuf {
        self.repository.join("snapshots").join(&self.commit)
    }

    /// The file that says that the commit has no file of this name.
    fn absence(&self, name: &str) -> PathBuf {
        self.repository
            .join(".no_exist")
            .join(&self.commit)
            .join(name)
    }

    /// The missing files without which nothing works: configuration, tokenizer, and weights with
    /// all their shards.
    pub(crate) fn missing(&self) -> Vec<String> {
        let directory = self.directory();
        let is_missing = |name: &str| !directory.join(name).exists();
        let mut wanted: Vec<String> = self.kind.required().iter().map(|&it| it.into()).collect();
        if self.kind == Kind::Model {
            if !has_tokenizer(|name| !is_missing(name)) {
                wanted.push(TOKENIZER.to_owned());
            }
            match fs::read(directory.join(INDEX)) {
                Ok(index) if is_missing(WEIGHTS) => wanted.extend(shards(&index)),
                _ => wanted.push(WEIGHTS.to_owned()),
            }
        }
        wanted.retain(|name| is_missing(name));
        wanted
    }

    /// The optional files that are missing although nothing says that the commit has none.
    pub(crate) fn undecided(&self) -> Vec<&'static str> {
        /// What changes the results of a tokenizer of older files.
        const BESIDE_OLDER_FILES: [&str; 2] = [TOKENIZER, "added_tokens.json"];
        let directory = self.directory();
        let is_older = self.kind == Kind::Model && !directory.join(TOKENIZER).exists();
        let older = BESIDE_OLDER_FILES.iter().filter(|_| is_older);
        let optional = self.kind.optional().iter().chain(older).copied();
        let is_undecided =
            |name: &&str| !directory.join(name).exists() && !self.absence(name).exists();
        optional.filter(is_undecided).collect()
    }

    /// Notes which of the undecided files the commit does not have. A cache that cannot be written
    /// to stays without notes: then the hub is asked again.
    #[cfg(feature = "download")]
    pub(crate) fn decide(&self, is_on_hub: impl Fn(&str) -> bool) {
        for name in self.undecided() {
            let absence = self.absence(name);
            if !is_on_hub(name)
                && let Some(directory) = absence.parent()
                && fs::create_dir_all(directory).is_ok()
            {
                let _ = fs::write(absence, b"");
            }
        }
    }
}

/// The files that an index names; none if it is malformed, which is an error when the model is
/// loaded.
pub(crate) fn shards(index: &[u8]) -> Vec<String> {
    let index: serde_json::Value = serde_json::from_slice(index).unwrap_or_default();
    let files = index["weight_map"].as_object().into_iter().flatten();
    let mut shards: Vec<String> = files
        .filter_map(|(_, file)| file.as_str().map(str::to_owned))
        .collect();
    shards.sort_unstable();
    shards.dedup();
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_whole_with_configuration_tokenizer_and_all_shards() {
        let cache = tempfile::tempdir().unwrap();
        let name = Name::parse("org/name").unwrap();
        let snapshot = Snapshot::new(cache.path(), name, "abc", Kind::Model);
        let directory = snapshot.directory();
        assert!(directory.ends_with("models--org--name/snapshots/abc"));
        fs::create_dir_all(&directory).unwrap();
        for file in ["config.json", "tokenizer.json"] {
            assert!(snapshot.missing().contains(&file.to_owned()));
            fs::write(directory.join(file), "{}").unwrap();
        }
        assert_eq!(snapshot.missing(), [WEIGHTS]);
        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        fs::write(directory.join(INDEX), index).unwrap();
        assert_eq!(snapshot.missing(), ["one.safetensors", "two.safetensors"]);
        fs::write(directory.join("one.safetensors"), "").unwrap();
        assert_eq!(snapshot.missing(), ["two.safetensors"]);
        fs::write(directory.join("two.safetensors"), "").unwrap();
        assert!(snapshot.missing().is_empty());
        fs::remove_file(directory.join("tokenizer.json")).unwrap();
        assert_eq!(snapshot.missing(), ["tokenizer.json"]);
        fs::write(directory.join("vocab.json"), "").unwrap();
        assert_eq!(snapshot.missing(), ["tokenizer.json"]);
        fs::write(directory.join("merges.txt"), "").unwrap();
        assert!(snapshot.missing().is_empty());
    }

    #[test]
    fn a_file_that_changes_results_is_there_or_known_to_be_absent() {
        let cache = tempfile::tempdir().unwrap();
        let name = Name::parse("gpt2").unwrap();
        let snapshot = Snapshot::new(cache.path(), name, "abc", Kind::Model);
        fs::create_dir_all(snapshot.directory()).unwrap();
        let undecided = snapshot.undecided();
        let (optional, older) = undecided.split_at(Kind::Model.optional().len());
        assert_eq!(optional, Kind::Model.optional());
        assert_eq!(older, ["tokenizer.json", "added_tokens.json"]);
        fs::write(snapshot.directory().join("tokenizer.json"), "{}").unwrap();
        assert_eq!(snapshot.undecided(), Kind::Model.optional());
        fs::write(snapshot.directory().join("tokenizer_config.json"), "{}").unwrap();
        // As Python's `huggingface_hub` notes it.
        let absences = cache.path().join("models--gpt2/.no_exist/abc");
        fs::create_dir_all(&absences).unwrap();
        fs::write(absences.join("generation_config.json"), "").unwrap();
        assert_eq!(
            snapshot.undecided(),
            ["special_tokens_map.json", "chat_template.jinja"]
        );
    }

    #[test]
    fn the_branch_of_a_cache_leads_nowhere_else() {
        let cache = tempfile::tempdir().unwrap();
        let name = Name::parse("org/name").unwrap();
        let refs = cache.path().join("models--org--name/refs");
        fs::create_dir_all(&refs).unwrap();
        for (text, expected) in [("abc\n", Some("abc")), ("../../..", None), ("", None)] {
            fs::write(refs.join("main"), text).unwrap();
            let snapshot = Snapshot::of_main(cache.path(), name, Kind::Model);
            assert_eq!(snapshot.map(|it| it.commit), expected.map(str::to_owned));
        }
    }
}
