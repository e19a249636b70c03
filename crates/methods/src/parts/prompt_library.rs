//! Trained prompts as starts of others, and what they are near to.
//!
//! A prompt is the tensor `prompt_embeddings` of an adapter's file, whichever method trained it.
//! How alike two tasks are is told by their prompts (Vu et al. 2022, section 3.1): the cosine of
//! the means of their vectors, or the mean cosine over all pairs of vectors, one of each.

use std::path::{Path, PathBuf};

use epiphyte_models::Checkpoint;
use epiphyte_ops::FrozenMatrix;
use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::file::TENSORS_FILE;
use crate::parts::virtual_tokens::KEY;

/// A trained prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedPrompt {
    /// Where it was read.
    pub path: PathBuf,
    /// Virtual tokens and the size of each.
    pub shape: [usize; 2],
    /// The vectors, one after another.
    pub values: Vec<f32>,
}

/// How prompts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Similarity {
    /// The cosine of the means of the vectors.
    AverageToken,
    /// The mean cosine over all pairs of vectors.
    PerToken,
}

impl TrainedPrompt {
    /// Reads the prompt of an adapter, given as its directory or its file of tensors.
    ///
    /// # Errors
    /// If the file cannot be read, or has no prompt.
    pub fn read(path: &Path) -> Result<Self, MethodError> {
        let file = match path.is_dir() {
            true => path.join(TENSORS_FILE),
            false => path.to_owned(),
        };
        let file = Checkpoint::open_file(&file)?;
        let found = file.tensor(KEY);
        let shape = found.and_then(|found| <[usize; 2]>::try_from(found.shape).ok());
        let Some(shape) = shape.filter(|shape| !shape.contains(&0)) else {
            return Err(MethodError::Malformed {
                path: file.path().to_owned(),
                reason: format!(
                    "there is no matrix `{KEY}`: give the adapter of a prompt, such as one of \
                     prompt-tuning"
                ),
            });
        };
        Ok(Self {
            path: path.to_owned(),
            shape,
            values: file.to_f32(KEY, &shape)?,
        })
    }

    fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.shape[1])
    }

    /// The mean of the vectors, each scaled to length 1 if asked for.
    fn mean(&self, normalized: bool) -> Vec<f64> {
        let mut mean = vec![0.0; self.shape[1]];
        for vector in self.vectors() {
            let scale = match normalized {
                true => 1.0 / length(vector).max(f64::MIN_POSITIVE),
                false => 1.0,
            };
            for (sum, value) in mean.iter_mut().zip(vector) {
                *sum += f64::from(*value) * scale / self.shape[0] as f64;
            }
        }
        mean
    }

    /// How alike this prompt and another of the same width are, at most 1.
    ///
    /// # Errors
    /// If their vectors have other sizes.
    pub fn similarity(&self, other: &Self, kind: Similarity) -> Result<f64, MethodError> {
        if self.shape[1] != other.shape[1] {
            return Err(MethodError::Malformed {
                path: other.path.clone(),
                reason: format!(
                    "its vectors have {} values, those of `{}` have {}: the prompts are of \
                     different base models",
                    other.shape[1],
                    self.path.display(),
                    self.shape[1]
                ),
            });
        }
        // The mean over all pairs is the product of the means of the normalized vectors.
        let normalized = kind == Similarity::PerToken;
        let (own, other) = (self.mean(normalized), other.mean(normalized));
        let product: f64 = own.iter().zip(&other).map(|(a, b)| a * b).sum();
        let norm = |mean: &[f64]| mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        Ok(match kind {
            Similarity::PerToken => product,
            Similarity::AverageToken => {
                product / (norm(&own) * norm(&other)).max(f64::MIN_POSITIVE)
            }
        })
    }

    /// For each vector the `count` rows of a table of embeddings whose cosine with it is largest,
    /// largest first, with the cosine.
    ///
    /// # Errors
    /// If the table's rows have another size.
    pub fn nearest(
        &self,
        table: &FrozenMatrix,
        count: usize,
    ) -> Result<Vec<Vec<(u32, f64)>>, MethodError> {
        let [rows, width] = table.shape();
        if width != self.shape[1] {
            return Err(MethodError::Malformed {
                path: self.path.clone(),
                reason: format!(
                    "its vectors have {} values, the word embeddings of the base model {width}: it \
                     is a prompt of another base model, or a prefix",
                    self.shape[1]
                ),
            });
        }
        // Of a large vocabulary a part at a time.
        const PART: usize = 4096;
        let mut nearest = vec![Vec::new(); self.shape[0]];
        for start in (0..rows).step_by(PART) {
            let ids: Vec<u32> = (start..rows.min(start + PART))
                .map(|id| id as u32)
                .collect();
            let words = table.gather(&ids).try_into_vec_as::<f32>();
            let words = words.expect("embeddings are f32 and on a device that can be read");
            for (vector, nearest) in self.vectors().zip(&mut nearest) {
                let of_word = |(id, word): (&u32, &[f32])| (*id, cosine(vector, word));
                nearest.extend(ids.iter().zip(words.chunks(width)).map(of_word));
                nearest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                nearest.truncate(count);
            }
        }
        Ok(nearest)
    }
}

fn length(vector: &[f32]) -> f64 {
    let squares = vector.iter().map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum();
    product / (length(a) * length(b)).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::{Similarity, TrainedPrompt};
    use crate::small_bert::bert;

    fn prompt(width: usize, values: &[f32]) -> TrainedPrompt {
        TrainedPrompt {
            path: "prompt".into(),
            shape: [values.len() / width, width],
            values: values.to_vec(),
        }
    }

    #[test]
    fn similarities_are_those_of_the_paper() {
        let (one, other) = (
            prompt(2, &[1.0, 0.0, 0.0, 2.0]),
            prompt(2, &[3.0, 3.0, -1.0, 0.0]),
        );
        let of = |a: &TrainedPrompt, b: &TrainedPrompt, kind| a.similarity(b, kind).unwrap();
        // Means (1/2, 1) and (1, 3/2).
        let expected = 2.0 / (1.25f64.sqrt() * 3.25f64.sqrt());
        assert!((of(&one, &other, Similarity::AverageToken) - expected).abs() < 1e-9);
        // The four cosines: 1/√2, -1, 1/√2, 0.
        let expected = (2.0f64.sqrt() - 1.0) / 4.0;
        assert!((of(&one, &other, Similarity::PerToken) - expected).abs() < 1e-9);
        for kind in [Similarity::AverageToken, Similarity::PerToken] {
            assert_eq!(of(&one, &other, kind), of(&other, &one, kind));
        }
        assert!((of(&one, &one, Similarity::AverageToken) - 1.0).abs() < 1e-9);
        // Only a prompt of parallel vectors is wholly like itself, pair by pair.
        assert!((of(&one, &one, Similarity::PerToken) - 0.5).abs() < 1e-9);
        let error = one.similarity(&prompt(1, &[1.0]), Similarity::PerToken);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("different base models")
        );
    }

    #[test]
    fn a_words_own_vector_is_nearest_to_it() {
        let model = bert();
        let table = model.base().word_embedding_table();
        let width = table.shape()[1];
        let words = table.gather(&[7, 3]) * 2.0;
        let prompt = prompt(width, &words.try_into_vec_as::<f32>().unwrap());
        let nearest = prompt.nearest(table, 3).unwrap();
        assert_eq!(nearest.len(), 2);
        for (found, id) in nearest.iter().zip([7, 3]) {
            assert_eq!((found.len(), found[0].0), (3, id));
            assert!((found[0].1 - 1.0).abs() < 1e-6 && found[1].1 <= found[0].1);
        }
    }
}
