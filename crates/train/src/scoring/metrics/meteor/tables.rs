//! The tables of METEOR 1.5 for English, which come with the program.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::jar::Jar;
use super::normalization::Prefixes;
use super::paraphrases::Paraphrases;
use super::synonyms::Synonyms;
use crate::error::MetricError;

/// The program, in which all tables are but the largest.
const JAR: &str = "meteor-1.5.jar";
/// The table of paraphrases.
const PARAPHRASES: &str = "data/paraphrase-en.gz";

/// The tables of METEOR: function words, abbreviations, WordNet's sets of synonyms, and a table of
/// paraphrases, which is read when texts are scored.
#[derive(Debug)]
pub struct MeteorTables {
    pub(super) function_words: HashSet<String>,
    pub(super) prefixes: Prefixes,
    pub(super) synonyms: Synonyms,
    paraphrases: PathBuf,
}

impl MeteorTables {
    /// Reads the tables of a directory with `meteor-1.5.jar` and `data/paraphrase-en.gz`, as METEOR
    /// is distributed; the directory `meteor` of PyPI's package `pycocoevalcap` is one.
    ///
    /// # Errors
    /// [`MetricError::MeteorTable`] with the file that is missing, or what is wrong with it.
    pub fn open(directory: &Path) -> Result<Self, MetricError> {
        let path = directory.join(JAR);
        let problem = |problem: String| MetricError::MeteorTable {
            path: path.clone(),
            problem,
        };
        let jar = Jar::open(&path).map_err(problem)?;
        let function_words = jar.text("function/english.words").map_err(problem)?;
        let prefixes = jar.text("nonbreaking/english.prefixes").map_err(problem)?;
        let tables = Self {
            function_words: function_words.lines().map(str::to_owned).collect(),
            prefixes: Prefixes::read(&prefixes),
            synonyms: Synonyms::read(&jar).map_err(problem)?,
            paraphrases: directory.join(PARAPHRASES),
        };
        tables.open_paraphrases()?;
        Ok(tables)
    }

    /// The paraphrases that these words can be.
    ///
    /// # Errors
    /// [`MetricError::MeteorTable`] if the table cannot be read.
    pub(super) fn paraphrases<'a>(
        &self,
        words: impl Iterator<Item = &'a str>,
    ) -> Result<Paraphrases, MetricError> {
        let table = BufReader::new(MultiGzDecoder::new(self.open_paraphrases()?));
        let read = Paraphrases::read(table, &words.collect());
        read.map_err(|error| self.in_paraphrases(error.to_string()))
    }

    fn open_paraphrases(&self) -> Result<File, MetricError> {
        let opened = File::open(&self.paraphrases);
        opened.map_err(|error| self.in_paraphrases(error.to_string()))
    }

    fn in_paraphrases(&self, problem: String) -> MetricError {
        MetricError::MeteorTable {
            path: self.paraphrases.clone(),
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn damaged_tables_are_errors_that_name_the_file() {
        let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/meteor");
        let here = tempfile::tempdir().unwrap();
        let here = here.path();
        let error = MeteorTables::open(here).unwrap_err().to_string();
        assert!(
            error.contains(JAR) && error.contains("pycocoevalcap"),
            "{error}"
        );

        let jar = fs::read(small.join(JAR)).unwrap();
        let packed = fs::read(small.join(PARAPHRASES)).unwrap();
        fs::create_dir(here.join("data")).unwrap();
        let with = |jar: &[u8], packed: &[u8]| {
            fs::write(here.join(JAR), jar).unwrap();
            fs::write(here.join(PARAPHRASES), packed).unwrap();
            let tables = MeteorTables::open(here)?;
            tables
                .paraphrases(["near", "close"].into_iter())
                .map(|_| ())
        };
        with(&jar, &packed).unwrap();
        let in_paraphrases = with(&jar, &packed[..100]).unwrap_err().to_string();
        assert!(in_paraphrases.contains(PARAPHRASES), "{in_paraphrases}");

        for length in 0..jar.len() {
            let error = with(&jar[..length], &packed).unwrap_err().to_string();
            assert!(error.contains("is no jar"), "{length}: {error}");
        }
        // Every damaged byte is an error or changes nothing that is read; none is a panic.
        let mut errors = 0;
        for at in 0..jar.len() {
            let mut damaged = jar.clone();
            damaged[at] ^= 0x55;
            errors += usize::from(with(&damaged, &packed).is_err());
        }
        assert!(errors > jar.len() / 2, "{errors} of {}", jar.len());
    }
}
