//! Words that stand for classes.

use burn::tensor::{Tensor, TensorData};
use epiphyte_ops::{Weight, linear};

/// The words that stand for classes where a language model predicts one word.
///
/// The logit of a class is the mean of its words' logits: a class of one word is that of LM-BFF
/// (Gao et al. 2021, arXiv 2012.15723), of several that of PET (Schick and Schütze 2021, arXiv
/// 2001.07676). OpenPrompt's mean of log probabilities gives the classes the same probabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verbalizer {
    /// Where the model predicts the word.
    pub position: WordPosition,
    /// The words of each class, as token ids; at least one each. Without classes, logits are those
    /// of the whole vocabulary.
    pub words: Vec<Vec<u32>>,
}

/// Where a model predicts a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordPosition {
    /// At this mask token, which each text has once: masked language models.
    Mask(u32),
    /// After the last token of the text: decoders.
    TextEnd,
    /// After these tokens, with which the decoder's text begins: encoder-decoders.
    DecoderStart(Vec<u32>),
}

impl Verbalizer {
    /// The logits of `rows`, `[rows, classes]`, from what computes those of some words or, without
    /// them, of all.
    pub(crate) fn logits(&self, of_words: impl FnOnce(Option<&[u32]>) -> Tensor<2>) -> Tensor<2> {
        match self.words.is_empty() {
            true => of_words(None),
            false => self.classes(of_words(Some(&self.words.concat()))),
        }
    }

    /// Logits of the classes, `[rows, classes]`, from those of all their words in a row.
    fn classes(&self, logits: Tensor<2>) -> Tensor<2> {
        let [_, all] = logits.dims();
        let classes = self.words.len();
        let mut shares = vec![0.0; classes * all];
        let mut word = 0;
        for (class, words) in self.words.iter().enumerate() {
            for _ in words {
                shares[class * all + word] = 1.0 / words.len() as f32;
                word += 1;
            }
        }
        let shares = TensorData::new(shares, [classes, all]);
        let shares = Tensor::from_data(shares, &logits.device().inner());
        linear(logits, &Weight::Trained(shares), None)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::{Precision, Sequences};

    use super::*;
    use crate::families::FAMILIES;
    use crate::{DecoderTokens, HeadKind, Identity, ModelConfig, Tokens, random_model};

    #[test]
    fn a_class_has_the_mean_of_its_words_logits_in_every_language_model() {
        let mut tried = 0;
        for config in FAMILIES.iter().flat_map(|family| (family.examples)()) {
            let bytes = config.to_string().into_bytes();
            let config = ModelConfig::parse("config.json".as_ref(), &bytes).unwrap();
            if config
                .family()
                .class_name(HeadKind::LanguageModel)
                .is_none()
            {
                continue;
            }
            let device = Device::default();
            let model = random_model(&config, HeadKind::LanguageModel, &device, Precision::F32, 7);
            let mut model = model.unwrap();
            let has_decoder = model.base().dimensions.encoder_layers > 0;
            let decoder = has_decoder.then(|| DecoderTokens {
                ids: &[2, 5],
                sequences: Sequences::new(vec![0, 2]),
            });
            let tokens = Tokens {
                decoder,
                ..Tokens::new(&[3, 4, 5], &[0; 3], Sequences::new(vec![0, 3]))
            };
            let logits = |model: &crate::Model| {
                let logits = model.logits(&tokens, &Identity);
                logits.inner().try_into_vec_as::<f32>().unwrap()
            };
            let all = logits(&model);
            model.set_verbalizer(Verbalizer {
                position: WordPosition::TextEnd,
                words: vec![vec![1], vec![2, 6]],
            });
            let classes = logits(&model);
            let expected = [all[1], (all[2] + all[6]) / 2.0];
            assert_eq!(classes.len(), 2);
            for (found, expected) in classes.iter().zip(expected) {
                let name = config.family();
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{name:?}: {found}, {expected}"
                );
            }
            tried += 1;
        }
        assert!(tried > 10, "{tried}");
    }
}
