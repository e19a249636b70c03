//! The flags that say how a model writes, of `generate` and `eval`.

use anyhow::Result;
use clap::Args;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::{Generation, Sampling};

use crate::failure::UsageError;
use crate::output;

/// How tokens are chosen and when a text ends.
#[derive(Args, Debug)]
pub(crate) struct DecodingArguments {
    /// Maximum number of new tokens [default: 50]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy decoding [default: of generation_config.json, or 0]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    temperature: Option<f64>,
    /// Draw from the K most likely tokens [default: of generation_config.json, or from all]
    #[arg(long, value_name = "K", value_parser = count)]
    top_k: Option<usize>,
    /// Draw from the fewest tokens whose probabilities add up to P [default: of
    /// generation_config.json, or from all]
    #[arg(long, value_name = "P", value_parser = share)]
    top_p: Option<f64>,
    /// Draw from tokens with at least P times the probability of the most likely one [default: of
    /// generation_config.json, or from all]
    #[arg(long, value_name = "P", value_parser = share)]
    min_p: Option<f64>,
    /// Make tokens that the text has already less likely; 1 does not [default: of
    /// generation_config.json, or 1]
    #[arg(long, value_name = "X", value_parser = positive)]
    repetition_penalty: Option<f64>,
    /// Beams of the search for the most likely text; 1 does not search [default: 1]
    #[arg(long, value_name = "N", value_parser = beams, conflicts_with_all = ["top_k", "top_p", "min_p", "temperature"])]
    num_beams: Option<usize>,
    /// With --num-beams: compare log probabilities divided by the length to this power [default: 1]
    #[arg(long, value_name = "X", value_parser = finite, allow_hyphen_values = true)]
    length_penalty: Option<f64>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Random seed of sampling [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop at a token that ends a text or, in a chat, a turn [default: true]
    #[arg(long, value_name = "true|false", hide_possible_values = true,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stop_at_eos: Option<bool>,
}

impl DecodingArguments {
    /// How a model writes whose authors' settings are `special`, and whose files say `own` of
    /// tokens and lengths.
    ///
    /// # Errors
    /// If a flag would do nothing.
    pub(crate) fn how(&self, special: &GenerationConfig, own: Generation) -> Result<Generation> {
        let sampling = self.sampling(special);
        self.check(&sampling)?;
        Ok(Generation {
            max_new_tokens: self.max_new_tokens.unwrap_or(own.max_new_tokens),
            sampling,
            seed: self.seed.unwrap_or(own.seed),
            num_beams: self.num_beams.unwrap_or(own.num_beams),
            length_penalty: self.length_penalty.unwrap_or(own.length_penalty),
            stop: match self.stop_at_eos {
                Some(false) => Vec::new(),
                _ => own.stop.clone(),
            },
            ..own
        })
    }

    /// How a token is chosen: flags, then the model's own settings. Beam search draws nothing.
    fn sampling(&self, special: &GenerationConfig) -> Sampling {
        let own = special
            .sampling
            .filter(|_| self.num_beams.is_none_or(|beams| beams == 1));
        let temperature = self.temperature.or(own.map(|own| own.temperature));
        let own = own.filter(|_| temperature != Some(0.0));
        Sampling {
            temperature: temperature.unwrap_or(0.0),
            top_k: self.top_k.or(own.and_then(|own| own.top_k)),
            top_p: self.top_p.or(own.and_then(|own| own.top_p)),
            min_p: self.min_p.or(own.and_then(|own| own.min_p)),
            repetition_penalty: self
                .repetition_penalty
                .or(special.repetition_penalty)
                .unwrap_or(1.0),
        }
    }

    /// Checks that every flag about the choice of tokens does something.
    fn check(&self, sampling: &Sampling) -> Result<(), UsageError> {
        let limits = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
        ];
        let limit = limits.iter().find(|(_, given)| *given);
        if let Some((flag, _)) = limit.filter(|_| sampling.temperature == 0.0) {
            let problem = format!(
                "{flag} limits what is drawn, and nothing is drawn: pass --temperature above 0"
            );
            return Err(UsageError::Other(problem));
        }
        if self.length_penalty.is_some() && self.num_beams.is_none_or(|beams| beams == 1) {
            let problem = "--length-penalty compares beams: pass --num-beams above 1";
            return Err(UsageError::Other(problem.to_owned()));
        }
        Ok(())
    }

    /// Says which settings of generation_config.json count because no flag says another.
    pub(crate) fn say_defaults(&self, special: &GenerationConfig) {
        let (with, without) = (
            self.sampling(special),
            self.sampling(&GenerationConfig::default()),
        );
        let mut used = Vec::new();
        let mut add = |name: &str, is_used: bool, value: Option<String>| {
            if let Some(value) = value.filter(|_| is_used) {
                used.push(format!("{name} {value}"));
            }
        };
        let text = |value: f64| Some(value.to_string());
        add(
            "temperature",
            with.temperature != without.temperature,
            text(with.temperature),
        );
        add(
            "top-k",
            with.top_k != without.top_k,
            with.top_k.map(|value| value.to_string()),
        );
        add(
            "top-p",
            with.top_p != without.top_p,
            with.top_p.and_then(text),
        );
        add(
            "min-p",
            with.min_p != without.min_p,
            with.min_p.and_then(text),
        );
        add(
            "repetition-penalty",
            with.repetition_penalty != without.repetition_penalty,
            text(with.repetition_penalty),
        );
        if !used.is_empty() {
            output::note(&format!(
                "note: tokens are chosen as the model's generation_config.json says ({}); flags of \
                 the same names override it, --temperature 0 takes the most likely token",
                used.join(", ")
            ));
        }
    }

    /// A flag that was given, if there is one.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--max-new-tokens", self.max_new_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--num-beams", self.num_beams.is_some()),
            ("--length-penalty", self.length_penalty.is_some()),
            ("--stop", !self.stop.is_empty()),
            ("--seed", self.seed.is_some()),
            ("--stop-at-eos", self.stop_at_eos.is_some()),
        ];
        flags
            .iter()
            .find(|(_, given)| *given)
            .map(|(flag, _)| *flag)
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("use a whole number, 1 or more".to_owned()),
    }
}

fn beams(text: &str) -> Result<usize, String> {
    let count = text.parse().ok();
    let count = count.filter(|count| (1..=Generation::MOST_BEAMS).contains(count));
    count.ok_or_else(|| format!("use a whole number from 1 to {}", Generation::MOST_BEAMS))
}

pub(crate) fn finite(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| "use a number".to_owned())
}

fn not_negative(text: &str) -> Result<f64, String> {
    let value = finite(text).ok().filter(|&value| value >= 0.0);
    value.ok_or_else(|| "use a number, 0 or more".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let value = finite(text).ok().filter(|&value| value > 0.0);
    value.ok_or_else(|| "use a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let value = positive(text).ok().filter(|&value| value <= 1.0);
    value.ok_or_else(|| "use a number above 0, up to 1".to_owned())
}
