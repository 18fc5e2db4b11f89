//! Tokenizers: the `tokenizer.json` of a folder, or the scored vocabulary of llama2.c.

use std::collections::BTreeMap;

use tokenizers::tokenizer::Tokenizer as Hub;
use tokenizers::{PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy};

/// Turns texts into tokens.
#[derive(Clone)]
pub enum Tokenizer {
    /// `tokenizer.json`.
    Hub(Box<Hub>),
    /// llama2.c: greedy merging of the best-scored pair of neighbors.
    Scored(Scored),
}

/// The vocabulary of llama2.c.
#[derive(Clone)]
pub struct Scored {
    tokens: Vec<Vec<u8>>,
    scores: Vec<f32>,
    index: BTreeMap<Vec<u8>, u32>,
}

/// llama2.c's token of the beginning of a text.
const BEGIN: u32 = 1;

/// llama2.c's tokens of single bytes begin here.
const BYTES: u32 = 3;

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, String> {
        let mut hub = Hub::from_bytes(bytes).map_err(|error| error.to_string())?;
        hub.with_padding(None);
        Ok(Tokenizer::Hub(Box::new(hub)))
    }

    /// Reads llama2.c's `tokenizer.bin` of so many tokens.
    ///
    /// # Errors
    /// Where it ends too early or too late.
    pub fn from_scored(bytes: &[u8], vocabulary: usize) -> Result<Tokenizer, String> {
        let mut rest = bytes.get(4..).ok_or("is shorter than its header")?;
        let (mut tokens, mut scores) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let cut = || format!("is cut off at byte {at}, in token {}", tokens.len());
            let (score, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
            let (len, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
            let (token, after) =
                after.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(cut)?;
            tokens.push(token.to_vec());
            scores.push(f32::from_le_bytes(*score));
            rest = after;
        }
        if tokens.len() != vocabulary || tokens.len() < BYTES as usize + 256 {
            return Err(format!(
                "holds {} tokens, the model has {vocabulary}: take the tokenizer of this model",
                tokens.len()
            ));
        }
        // Of equal tokens the first counts; bytes come before pieces of text.
        let mut index = BTreeMap::new();
        for (token, id) in tokens.iter().zip(0..) {
            index.entry(token.clone()).or_insert(id);
        }
        Ok(Tokenizer::Scored(Scored { tokens, scores, index }))
    }

    /// One more than the largest token.
    pub fn size(&self) -> usize {
        match self {
            Tokenizer::Hub(hub) => {
                let largest = hub.get_vocab(true).into_values().max();
                largest.map_or(0, |largest| largest as usize + 1)
            }
            Tokenizer::Scored(scored) => scored.tokens.len(),
        }
    }

    /// The tokens of texts with the model's marks of beginning and end, each at most `tokens` long, and
    /// whether something was cut off.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, texts: &[String], tokens: usize) -> Result<Vec<(Vec<u32>, bool)>, String> {
        match self {
            Tokenizer::Hub(hub) => {
                let mut hub = hub.clone();
                let marks = hub.get_post_processor().map_or(0, |marks| marks.added_tokens(false));
                if tokens <= marks {
                    return Err(format!(
                        "the tokenizer adds {marks} marks to every text, which leaves no room for it \
                         in {tokens} tokens (--tokens)"
                    ));
                }
                let truncation = TruncationParams {
                    max_length: tokens,
                    strategy: TruncationStrategy::OnlyFirst,
                    stride: 0,
                    direction: TruncationDirection::Right,
                };
                hub.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let encoded = hub.encode_batch_fast(texts, true).map_err(|e| e.to_string())?;
                let pair = |encoding: &tokenizers::Encoding| {
                    (encoding.get_ids().to_vec(), !encoding.get_overflowing().is_empty())
                };
                let encoded: Vec<(Vec<u32>, bool)> = encoded.iter().map(pair).collect();
                // The marks are numbers in the file that need not be tokens of its vocabulary.
                let size = self.size();
                let beyond =
                    encoded.iter().flat_map(|(ids, _)| ids).find(|id| **id as usize >= size);
                match beyond {
                    Some(id) => {
                        Err(format!("the tokenizer gives token {id}, but knows {size} only"))
                    }
                    None => Ok(encoded),
                }
            }
            Tokenizer::Scored(scored) => Ok(texts
                .iter()
                .map(|text| {
                    let mut ids = scored.encode(text);
                    let cut = ids.len() > tokens;
                    ids.truncate(tokens);
                    (ids, cut)
                })
                .collect()),
        }
    }

    /// The tokens of a text that goes on from another.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn continuation(&self, text: &str) -> Result<Vec<u32>, String> {
        match self {
            Tokenizer::Hub(hub) => {
                let mut hub = hub.clone();
                hub.with_truncation(None).map_err(|error| error.to_string())?;
                let encoded = hub.encode_fast(text, false).map_err(|error| error.to_string())?;
                Ok(encoded.get_ids().to_vec())
            }
            // It always puts a space in front.
            Tokenizer::Scored(scored) => {
                Ok(scored.encode(text.strip_prefix(' ').unwrap_or(text)).split_off(1))
            }
        }
    }

    /// The first token that a word has behind other text.
    ///
    /// # Errors
    /// The word has no token.
    pub fn first_of(&self, word: &str) -> Result<u32, String> {
        let ids = self.continuation(&format!(" {word}"))?;
        ids.first().copied().ok_or_else(|| format!("the word {word:?} has no token"))
    }
}

impl Scored {
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![BEGIN];
        if text.is_empty() {
            return ids;
        }
        let mut buffer = [0; 4];
        for character in " ".chars().chain(text.chars()) {
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            match self.index.get(bytes) {
                Some(&id) => ids.push(id),
                None => ids.extend(bytes.iter().map(|&byte| u32::from(byte) + BYTES)),
            }
        }
        // What the tokens at a place and behind it merge to, if they do; only the mark never does.
        let merged = |ids: &[u32], at: usize| -> Option<(f32, u32)> {
            let (&left, &right) = (ids.get(at)?, ids.get(at + 1)?);
            let pair = [left, right].map(|id| &self.tokens[id as usize][..]).concat();
            let id = *self.index.get(&pair)?;
            Some((self.scores[id as usize], id))
        };
        let mut pairs: Vec<Option<(f32, u32)>> =
            (0..ids.len()).map(|at| if at == 0 { None } else { merged(&ids, at) }).collect();
        loop {
            let mut best: Option<(f32, usize, u32)> = None;
            for (at, pair) in pairs.iter().enumerate() {
                if let Some((score, id)) = *pair
                    && best.is_none_or(|(highest, ..)| score > highest)
                {
                    best = Some((score, at, id));
                }
            }
            let Some((_, at, id)) = best else { return ids };
            ids[at] = id;
            ids.remove(at + 1);
            pairs.remove(at + 1);
            pairs[at] = merged(&ids, at);
            if at > 1 {
                pairs[at - 1] = merged(&ids, at - 1);
            }
        }
    }
}
