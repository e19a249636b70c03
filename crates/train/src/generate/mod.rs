//! Text from a language model: greedy, sampled, or by beam search; one prompt or several at once.
//! A decoder continues the prompt; an encoder-decoder reads it and writes a text of its own.

mod beams;
mod sampling;
mod text;

use std::ops::ControlFlow;
use std::slice;

use epiphyte_models::{Adapter, Model};
use epiphyte_ops::random;

use self::sampling::Draws;
pub use self::sampling::Sampling;
use self::text::Text;
use crate::TrainError;
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
    /// The last token that an encoder-decoder writes, whatever its logits say, where a text gets as
    /// long as it may.
    pub forced_eos_token_id: Option<u32>,
}

impl Generation {
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

/// Continues `prompt`, or writes a text about it with an encoder-decoder; tells `each` new token as
/// soon as it is chosen, and returns all of them. `each` may break off. Beam search chooses at its
/// end, and tells them then.
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
    let mut text = Text::new(adapter, prompt, how, room);
    let mut draws = Draws::new(how.seed);
    let mut end = room.end;
    for _ in 0..room.tokens {
        let mut logits = text::next_logits(model, adapter, slice::from_mut(&mut text))?;
        let next = (how.sampling).choose(&mut logits[0], text.ids(), draws.next());
        if let Some(why) = text.end_before(next) {
            end = why;
            break;
        }
        text.push(next);
        if each(next).is_break() {
            end = GenerationEnd::Stop;
            break;
        }
    }
    let ids = text.new_ids().to_vec();
    Ok(Generated { ids, end })
}

/// Continues several prompts at once: each as [`generate`] would alone, with a seed of its own that
/// follows from the seed and the prompt's number. A forward pass reads the next token of all texts
/// that go on.
///
/// # Errors
/// As [`generate`].
pub fn generate_batch(
    model: &Model,
    adapter: &dyn Adapter,
    prompts: &[Vec<u32>],
    how: &Generation,
) -> Result<Vec<Generated>, TrainError> {
    let rooms = prompts
        .iter()
        .map(|prompt| Room::new(model, adapter, prompt, how));
    let rooms: Vec<Room> = rooms.collect::<Result<_, TrainError>>()?;
    if how.num_beams > 1 {
        let each = prompts.iter().zip(rooms);
        let new = each.map(|(prompt, room)| beams::search(model, adapter, prompt, how, room));
        return new.collect();
    }
    let begin = |room: &Room| Generated {
        ids: Vec::new(),
        end: room.end,
    };
    let mut new: Vec<Generated> = rooms.iter().map(begin).collect();
    let mut draws: Vec<Draws> = (0..prompts.len() as u64)
        .map(|number| Draws::new(random::derive_key(how.seed, number)))
        .collect();
    let mut going: Vec<usize> = (0..prompts.len())
        .filter(|&number| rooms[number].tokens > 0)
        .collect();
    let begin = |&number: &usize| Text::new(adapter, &prompts[number], how, rooms[number]);
    let mut texts: Vec<Text<'_>> = going.iter().map(begin).collect();
    while !going.is_empty() {
        let mut logits = text::next_logits(model, adapter, &mut texts)?;
        // From the last, so that those that end can be taken out.
        for at in (0..going.len()).rev() {
            let number = going[at];
            let (text, new) = (&mut texts[at], &mut new[number]);
            let draw = draws[number].next();
            let next = (how.sampling).choose(&mut logits[at], text.ids(), draw);
            let end = text.end_before(next);
            match end {
                Some(end) => new.end = end,
                None => {
                    text.push(next);
                    new.ids.push(next);
                }
            }
            if end.is_some() || new.ids.len() == rooms[number].tokens {
                going.remove(at);
                texts.remove(at);
            }
        }
    }
    Ok(new)
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
