//! Text from a language model: greedy, sampled, or by beam search; one prompt or several at once.
//! A decoder continues the prompt; an encoder-decoder reads it and writes a text of its own.

mod beams;
mod sampling;
mod text;

use std::ops::ControlFlow;

use epiphyte_data::Tokenizer;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::{Adapter, Model, ModelConfig};
use epiphyte_ops::random;

use self::sampling::Draws;
pub use self::sampling::Sampling;
use self::text::Text;
use crate::TrainError;
use crate::observer::{EvaluationMeter, Observer};
use crate::scoring::model_input::{added_positions, check_ids};

/// How tokens are chosen and when to stop. The names are those of Hugging Face's
/// `GenerationConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The largest number of new tokens.
    pub max_new_tokens: usize,
    /// How the next token is chosen from its logits.
    pub sampling: Sampling,
    /// What draws follow from.
    pub seed: u64,
    /// Continuations that beam search keeps; 1 for none.
    pub num_beams: usize,
    /// Beam search compares sums of log probabilities divided by the length to this power: above 0
    /// favors long texts, below 0 short ones.
    pub length_penalty: f64,
    /// Tokens that end the text; they are not returned.
    pub stop: Vec<u32>,
    /// The longest text that the model can read, prompt and virtual tokens included; of an
    /// encoder-decoder, both the prompt and the text that it writes.
    pub max_length: usize,
    /// The token with which an encoder-decoder's text begins; none for that of the model.
    pub decoder_start_token_id: Option<u32>,
    /// The first token that an encoder-decoder writes, whatever its logits say.
    pub forced_bos_token_id: Option<u32>,
    /// The last token that an encoder-decoder writes, whatever its logits say, where a text gets
    /// as long as it may.
    pub forced_eos_token_id: Option<u32>,
}

impl Generation {
    /// New tokens where none are given.
    pub const MAX_NEW_TOKENS: usize = 50;
    /// The most beams that are searched with; each has its own keys and values.
    pub const MOST_BEAMS: usize = 256;

    /// Greedy decoding of at most `max_new_tokens`, for a model that reads texts of `max_length`.
    pub fn greedy(max_new_tokens: usize, stop: Vec<u32>, max_length: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::default(),
            seed: 0,
            num_beams: 1,
            length_penalty: 1.0,
            stop,
            max_length,
            decoder_start_token_id: None,
            forced_bos_token_id: None,
            forced_eos_token_id: None,
        }
    }

    /// Greedy decoding of [`Generation::MAX_NEW_TOKENS`] with the special tokens and the repetition
    /// penalty of a model's files. Texts end at all tokens that these files and the tokenizer name,
    /// since training appends the tokenizer's; in a `chat`, also at the one that ends the
    /// assistant's turn.
    ///
    /// # Errors
    /// In a chat, if the chat template is missing or invalid.
    pub fn of_model(
        special: &GenerationConfig,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        chat: bool,
    ) -> Result<Self, TrainError> {
        let facts = config.facts();
        let mut stop = special.eos_token_ids.clone();
        stop.extend(&facts.eos_token_ids);
        stop.extend(tokenizer.end_of_text().ok());
        if chat {
            stop.extend(tokenizer.end_of_turn()?);
        }
        let max_length = facts.max_position_embeddings.unwrap_or(usize::MAX);
        Ok(Self {
            sampling: Sampling {
                repetition_penalty: special.repetition_penalty.unwrap_or(1.0),
                ..Sampling::default()
            },
            decoder_start_token_id: special.decoder_start_token_id,
            forced_bos_token_id: special.forced_bos_token_id,
            forced_eos_token_id: special.forced_eos_token_id,
            ..Self::greedy(Self::MAX_NEW_TOKENS, stop, max_length)
        })
    }
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub end: GenerationEnd,
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEnd {
    /// A token that ends a text came, or the caller broke off.
    Stop,
    /// There are as many new tokens as were asked for.
    MaxNewTokens,
    /// The model reads no longer text: it has this many positions, of which the adapter's virtual
    /// tokens take some.
    ContextLength {
        /// Positions of the model.
        limit: usize,
        /// Virtual tokens of the adapter.
        virtual_tokens: usize,
    },
}

/// Continues `prompt`, or writes a text about it with an encoder-decoder; tells `each` new token
/// as soon as it is chosen, and returns all of them. `each` may break off. Beam search chooses at
/// its end, and tells them then.
///
/// # Errors
/// If the model has no language-model head, the prompt leaves no room for a token or has one that
/// is not in the model's vocabulary, an encoder-decoder has no start token or the prompt is empty,
/// or a logit is NaN.
pub fn generate(
    model: &Model,
    adapter: &dyn Adapter,
    prompt: &[u32],
    how: &Generation,
    mut each: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, TrainError> {
    let room = Room::new(model, adapter, prompt, how)?;
    if how.num_beams > 1 {
        let Generated { mut ids, mut end } = beams::search(model, adapter, prompt, how, room)?;
        if let Some(last) = ids.iter().position(|&token| each(token).is_break()) {
            ids.truncate(last + 1);
            end = GenerationEnd::Stop;
        }
        return Ok(Generated { ids, end });
    }
    let text = Text::new(adapter, prompt, how, room);
    let mut written = write(model, adapter, vec![(text, Draws::new(how.seed))], each)?;
    Ok(written.remove(0))
}

/// Continues several prompts at once: each as [`generate`] would alone, with a seed of its own
/// that follows from the seed and the prompt's number. A forward pass reads the next token of all
/// texts that go on.
///
/// # Errors
/// As [`generate`].
pub fn generate_batch(
    model: &Model,
    adapter: &dyn Adapter,
    prompts: &[Vec<u32>],
    how: &Generation,
) -> Result<Vec<Generated>, TrainError> {
    generate_from(model, adapter, prompts, how, 0)
}

/// [`generate_batch`] for prompts of which the first is the `first` of all.
fn generate_from(
    model: &Model,
    adapter: &dyn Adapter,
    prompts: &[impl AsRef<[u32]>],
    how: &Generation,
    first: u64,
) -> Result<Vec<Generated>, TrainError> {
    let prompts: Vec<&[u32]> = prompts.iter().map(AsRef::as_ref).collect();
    let rooms = prompts
        .iter()
        .map(|prompt| Room::new(model, adapter, prompt, how));
    let rooms: Vec<Room> = rooms.collect::<Result<_, TrainError>>()?;
    if how.num_beams > 1 {
        let each = prompts.iter().zip(rooms);
        let new = each.map(|(prompt, room)| beams::search(model, adapter, prompt, how, room));
        return new.collect();
    }
    let texts = prompts.iter().zip(rooms).zip(first..);
    let texts = texts.map(|((prompt, room), number)| {
        let draws = Draws::new(random::derive_key(how.seed, number));
        (Text::new(adapter, prompt, how, room), draws)
    });
    write(model, adapter, texts.collect(), |_| {
        ControlFlow::Continue(())
    })
}

/// Continues many prompts, `at_once` of them together, and tells `observer` of them. What is
/// written does not depend on `at_once`.
///
/// # Errors
/// As [`generate`]; the prompt that cannot be continued is named by its number, from 1.
pub fn generate_all(
    model: &Model,
    adapter: &dyn Adapter,
    prompts: &[impl AsRef<[u32]>],
    how: &Generation,
    at_once: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Generated>, TrainError> {
    let mut meter = EvaluationMeter::new(observer, prompts.len());
    let mut written = Vec::with_capacity(prompts.len());
    check_prompts(model, adapter, prompts, how)?;
    for chunk in prompts.chunks(at_once.max(1)) {
        let first = written.len() as u64;
        let texts = generate_from(model, adapter, chunk, how, first)?;
        let tokens = texts.iter().map(|text| text.ids.len()).sum();
        written.extend(texts);
        meter.advance(chunk.len(), tokens);
    }
    Ok(written)
}

/// Checks that every prompt leaves room for a token.
///
/// # Errors
/// As [`generate_all`] before the first text.
pub(crate) fn check_prompts(
    model: &Model,
    adapter: &dyn Adapter,
    prompts: &[impl AsRef<[u32]>],
    how: &Generation,
) -> Result<(), TrainError> {
    for (number, prompt) in (1..).zip(prompts) {
        Room::new(model, adapter, prompt.as_ref(), how).map_err(|source| TrainError::OfPrompt {
            number,
            source: Box::new(source),
        })?;
    }
    Ok(())
}

/// Writes texts to their ends, each with its draws, and tells `each` token that is chosen. A
/// forward pass reads the next token of all texts that go on.
fn write(
    model: &Model,
    adapter: &dyn Adapter,
    mut texts: Vec<(Text<'_>, Draws)>,
    mut each: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<Generated>, TrainError> {
    loop {
        let going = texts.iter_mut().filter(|(text, _)| text.goes_on());
        let (mut going, draws): (Vec<_>, Vec<_>) = going.map(|(text, it)| (text, it)).unzip();
        if going.is_empty() {
            break;
        }
        let logits = text::next_logits(model, adapter, &mut going)?;
        for ((text, draws), mut logits) in going.into_iter().zip(draws).zip(logits) {
            let sampling = &text.how().sampling;
            let next = sampling.choose(&mut logits, text.ids(), draws.next());
            match text.end_before(next) {
                Some(end) => text.end(end),
                None => {
                    text.push(next);
                    if each(next).is_break() {
                        text.end(GenerationEnd::Stop);
                    }
                }
            }
        }
    }
    Ok(texts.iter().map(|(text, _)| text.generated()).collect())
}

/// How many tokens may be written, and why no more.
#[derive(Clone, Copy, Debug)]
struct Room {
    tokens: usize,
    end: GenerationEnd,
    /// The token with which the text begins, where it is not the prompt: an encoder-decoder's.
    start: Option<u32>,
}

impl Room {
    fn new(
        model: &Model,
        adapter: &dyn Adapter,
        prompt: &[u32],
        how: &Generation,
    ) -> Result<Self, TrainError> {
        model.language_head().ok_or(TrainError::CannotGenerate)?;
        let dimensions = &model.base().dimensions;
        let limit = dimensions.max_positions.unwrap_or(usize::MAX);
        let limit = limit.min(how.max_length);
        let virtual_tokens = added_positions(adapter);
        let length = prompt.len() + virtual_tokens;
        check_ids(model, prompt.iter().copied())?;
        let is_encoder_decoder = dimensions.encoder_layers > 0;
        let start = match is_encoder_decoder {
            true => Some(start_token(model, how)?),
            false => None,
        };
        // What the written text has already, and the virtual tokens of it.
        let (begun, virtual_tokens, fits) = match is_encoder_decoder {
            true if prompt.is_empty() => return Err(TrainError::EmptyPrompt),
            true => (1, 0, length <= limit),
            false => (length, virtual_tokens, length < limit),
        };
        if !fits {
            return Err(TrainError::PromptTooLong { length, limit });
        }
        let (tokens, end) = match how.max_new_tokens > limit - begun {
            true => (
                limit - begun,
                GenerationEnd::ContextLength {
                    limit,
                    virtual_tokens,
                },
            ),
            false => (how.max_new_tokens, GenerationEnd::MaxNewTokens),
        };
        Ok(Self { tokens, end, start })
    }
}

/// The token with which an encoder-decoder's text begins.
fn start_token(model: &Model, how: &Generation) -> Result<u32, TrainError> {
    let start = (how.decoder_start_token_id).or_else(|| model.backbone().decoder_start_token());
    let start = start.ok_or(TrainError::NoDecoderStart)?;
    let forced = [how.forced_bos_token_id, how.forced_eos_token_id];
    check_ids(model, forced.into_iter().flatten().chain([start]))?;
    Ok(start)
}
