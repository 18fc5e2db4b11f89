//! Tokenized texts: made once, kept for the run, with what never changes of their hidden states.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::load::LanguageError;
use super::spec::{LanguageSpec, Task};
use super::tokenizer::Tokenizer;
use crate::data::{Dataset, Features, Table};

/// Bytes of hidden states that are kept; what does not fit is computed anew.
const CACHE_LEN_MAX: usize = 3 << 29;

/// The texts of a table as tokens.
pub(super) struct Tokens {
    pub(super) sequences: Vec<Box<[u32]>>,
    pub(super) labels: Vec<u16>,
    /// Texts that were longer.
    pub(super) cut: usize,
}

impl Tokens {
    pub(super) fn new(
        table: &Table,
        tokenizer: &Tokenizer,
        spec: &LanguageSpec,
        is_decoder: bool,
    ) -> Result<Tokens, LanguageError> {
        let Features::Text(texts) = &table.features else { return Err(LanguageError::Numbers) };
        let encoded =
            encode(texts, tokenizer, spec, is_decoder).map_err(LanguageError::Tokenizer)?;
        let cut = encoded.iter().filter(|(_, cut)| *cut).count();
        let sequences: Vec<Box<[u32]>> =
            encoded.into_iter().map(|(ids, _)| ids.into_boxed_slice()).collect();
        // A sequence predicts all its tokens but the first.
        let least = if spec.task == Task::Causal { 2 } else { 1 };
        match sequences.iter().position(|sequence| sequence.len() < least) {
            Some(row) => Err(LanguageError::Short(row)),
            None => Ok(Tokens { sequences, labels: table.labels.clone(), cut }),
        }
    }
}

type Encoded = Vec<(Vec<u32>, bool)>;

fn encode(
    texts: &[String],
    tokenizer: &Tokenizer,
    spec: &LanguageSpec,
    is_decoder: bool,
) -> Result<Encoded, String> {
    let tokens = spec.tokens as usize;
    let Some((before, after)) = spec.template.as_deref().and_then(|text| text.split_once("{}"))
    else {
        return tokenizer.encode(texts, tokens);
    };
    if !is_decoder {
        let filled: Vec<String> =
            texts.iter().map(|text| format!("{before}{text}{after}")).collect();
        return tokenizer.encode(&filled, tokens);
    }
    // What follows the text asks for the label, so the text is cut and not that.
    let end = if after.is_empty() { Vec::new() } else { tokenizer.continuation(after)? };
    let room = tokens.checked_sub(end.len()).filter(|&room| room > 0).ok_or_else(|| {
        format!("the template's {} tokens leave no room for a text in {tokens}", end.len())
    })?;
    let filled: Vec<String> = texts.iter().map(|text| format!("{before}{text}")).collect();
    let mut encoded = tokenizer.encode(&filled, room)?;
    encoded.iter_mut().for_each(|(ids, _)| ids.extend_from_slice(&end));
    Ok(encoded)
}

/// A training and a test table as tokens, and the words of the labels.
pub(super) struct Texts {
    pub(super) train: Tokens,
    pub(super) test: Tokens,
    pub(super) cache: Cache,
}

impl Texts {
    pub(super) fn new(
        dataset: &Dataset,
        tokenizer: &Tokenizer,
        spec: &LanguageSpec,
        is_decoder: bool,
    ) -> Result<Texts, LanguageError> {
        let train = Tokens::new(&dataset.train, tokenizer, spec, is_decoder)?;
        let test = Tokens::new(&dataset.test, tokenizer, spec, is_decoder)?;
        let cache = Cache::of(&train, &test, dataset.classes);
        Ok(Texts { train, test, cache })
    }

    /// The same texts with class `c` called `C − 1 − c` in training.
    pub(super) fn with_flipped_labels(&self, classes: usize) -> Texts {
        let copy = |tokens: &Tokens| Tokens {
            sequences: tokens.sequences.clone(),
            labels: tokens.labels.clone(),
            cut: tokens.cut,
        };
        let mut train = copy(&self.train);
        let last = classes.saturating_sub(1) as u16;
        train.labels.iter_mut().for_each(|label| *label = last.saturating_sub(*label));
        let test = copy(&self.test);
        let cache = Cache::of(&train, &test, classes);
        Texts { train, test, cache }
    }
}

/// Hidden states below the first layer that is trained, by row: those of the training set, the held-out
/// ones, then the labels' words. They are the same in every probe.
pub(super) struct Cache {
    entries: Vec<OnceLock<Box<[f32]>>>,
    bytes: AtomicUsize,
}

impl Cache {
    fn of(train: &Tokens, test: &Tokens, classes: usize) -> Cache {
        let entries = train.sequences.len() + test.sequences.len() + classes;
        Cache {
            entries: (0..entries).map(|_| OnceLock::new()).collect(),
            bytes: AtomicUsize::new(0),
        }
    }

    pub(super) fn get(&self, entry: usize) -> Option<&[f32]> {
        self.entries[entry].get().map(|values| &values[..])
    }

    pub(super) fn insert(&self, entry: usize, values: &[f32]) {
        let len = size_of_val(values);
        if self.bytes.fetch_add(len, Ordering::Relaxed) > CACHE_LEN_MAX {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            return;
        }
        // Somebody else may have been first, with the same values.
        let _ = self.entries[entry].set(values.into());
    }
}
