//! A question with each window of a text that is too long for one example.

use tokenizers::PostProcessorWrapper;
use tokenizers::utils::truncation::TruncationDirection;

use super::Tokenizer;
use crate::error::DataError;

/// Neighboring windows share this many tokens, if nothing is set and half of a window's text is not
/// less.
const DOC_STRIDE: usize = 128;

/// A question with a part of a text, as token ids with special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment ids, as long as `ids`.
    pub type_ids: Vec<u32>,
    /// Start and end of each of the text's tokens, in characters of the text; none for others.
    pub offsets: Vec<Option<(usize, usize)>>,
}

impl Window {
    /// The first and the last token of a part of the text, given in characters; the first token of
    /// all where the window does not hold the whole part, or there is none.
    pub fn span(&self, part: Option<(usize, usize)>) -> [usize; 2] {
        let tokens = || self.offsets.iter().enumerate();
        let tokens = || tokens().filter_map(|(at, offsets)| Some((at, (*offsets)?)));
        let span = part.and_then(|(start, end)| {
            let holds = |offsets: (usize, usize)| offsets.0 <= start && start < offsets.1;
            // A character that becomes no token is of the token before it.
            let before = tokens()
                .take_while(|(_, offsets)| offsets.0 <= start)
                .last();
            let first = tokens().find(|(_, offsets)| holds(*offsets)).or(before);
            let last = tokens().find(|(_, offsets)| offsets.1 >= end);
            Some([first?.0, last?.0])
        });
        span.unwrap_or([0, 0])
    }
}

/// Encodes questions with windows of texts.
#[derive(Debug, Clone)]
pub struct Windows {
    tokenizer: Tokenizer,
    /// The same without its post-processor, which would shorten the offsets of tokens twice.
    plain: tokenizers::Tokenizer,
    /// The longest example in tokens.
    pub(crate) max_length: usize,
    /// The tokens that neighboring windows share, if given.
    pub(crate) doc_stride: Option<usize>,
}

impl Windows {
    /// Windows of at most `max_length` tokens, question and special tokens included, of which
    /// neighboring ones share `doc_stride` tokens of the text: 128 if not given, or half of a
    /// window's text if that is less.
    pub fn new(tokenizer: &Tokenizer, max_length: usize, doc_stride: Option<usize>) -> Self {
        let mut plain = tokenizer.inner.clone();
        plain.with_post_processor(None::<PostProcessorWrapper>);
        Self {
            tokenizer: tokenizer.clone(),
            plain,
            max_length,
            doc_stride,
        }
    }

    /// The question with each window of the text; none for a text without any token. If the
    /// question leaves no room for windows that go on, its number of tokens.
    ///
    /// # Errors
    /// [`DataError::MaxLengthTooShort`] if the special tokens alone fill `max_length`;
    /// [`DataError::Tokenize`].
    pub fn of(
        &self,
        question: &str,
        context: &str,
    ) -> Result<Result<Vec<Window>, usize>, DataError> {
        let tokenizer = &self.tokenizer;
        let room = tokenizer.room(self.max_length, true)?;
        let question = tokenizer.run(|| self.plain.encode_fast(question, false))?;
        let mut context = tokenizer.run(|| self.plain.encode_char_offsets(context, false))?;
        let tokens = question.len();
        if context.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let Some(room) = room.checked_sub(tokens).filter(|&room| room > 0) else {
            return Ok(Err(tokens));
        };
        let shared = self.doc_stride.unwrap_or(DOC_STRIDE.min(room / 2));
        if shared >= room && context.len() > room {
            return Ok(Err(tokens));
        }
        context.truncate(room, shared, TruncationDirection::Right);
        let others = context.take_overflowing();
        let windows = [context].into_iter().chain(others).map(|part| {
            let pair = || {
                let question = question.clone();
                tokenizer.inner.post_process(question, Some(part), true)
            };
            let window = tokenizer.run(pair)?;
            let of_context = window.get_sequence_ids().into_iter();
            let of_context = of_context.map(|sequence| sequence == Some(1));
            let offsets = window.get_offsets().iter().zip(of_context);
            Ok(Window {
                ids: window.get_ids().to_vec(),
                type_ids: window.get_type_ids().to_vec(),
                offsets: offsets.map(|(&it, own)| own.then_some(it)).collect(),
            })
        });
        windows.collect::<Result<_, _>>().map(Ok)
    }
}
