//! The objective: losses of texts under weights written in place.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result as CandleResult, Tensor};
use rayon::prelude::*;

use super::data::{Texts, Tokens};
use super::decoder::Decoder;
use super::device::Device;
use super::folder::Folder;
use super::kernel::{self, dot};
use super::load::{Core, LanguageError};
use super::model::{self, Batch, Model};
use super::op;
use super::spec::{Head, LanguageSpec, Task};
use super::view::{self, Source, View};
use crate::data::Dataset;
use crate::direction::Direction;
use crate::objective::{Evaluation, Objective, Scratch, Split};
use crate::params::{Mark, Payout, State, TensorSpec};

/// Tokens of a forward pass of an evaluation, and of one on a device.
const EVALUATION_TOKENS: [usize; 2] = [1 << 11, 1 << 14];

/// About how many tokens a pass has. What a pass holds beside hidden states is several times as much, and only as many are under
/// way as there are threads; but each packs the weights for its products again. With half as many a step of 64 texts
/// takes 2 % longer, with four times as many it holds 50 MB more.
const PASS_TOKENS: usize = 1024;

/// Values of logits computed at a time by all threads, and on a device.
const LOGITS_MAX: [usize; 2] = [1 << 22, 1 << 26];

/// What multiplies the cosine to a prototype.
const PROTOTYPE_SCALE: f32 = 20.0;

/// A pretrained transformer with a task on texts.
pub struct LanguageModel {
    core: Arc<Core>,
    texts: Arc<Texts>,
    /// The quality that was asked for last: nodes of one process end with the same state, and a held-out
    /// set may take as long as many probes.
    known: Mutex<Option<([u8; 32], Split, Evaluation)>>,
}

/// Sums over texts, or over predicted tokens.
#[derive(Clone, Copy, Default)]
struct Sum {
    loss: f64,
    right: usize,
    count: usize,
}

impl Sum {
    fn add(&mut self, (loss, right): (f64, bool)) {
        self.loss += loss;
        self.right += usize::from(right);
        self.count += 1;
    }

    fn mean(self) -> f64 {
        self.loss / self.count as f64
    }
}

/// Texts of a forward pass, each with its place in the cache if it has one.
struct Rows<'a> {
    sequences: Vec<&'a [u32]>,
    entries: Vec<Option<usize>>,
}

impl<'a> Rows<'a> {
    fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.len()).sum()
    }

    /// Cuts them into runs of about equally many tokens.
    fn split(&self, parts: usize) -> Vec<Rows<'a>> {
        let all = self.tokens();
        let mut pieces: Vec<Rows<'a>> = Vec::with_capacity(parts);
        let (mut tokens, mut last) = (0, None);
        for (sequence, entry) in self.sequences.iter().zip(&self.entries) {
            // The part in which the middle of the sequence lies.
            let part = (2 * tokens + sequence.len()) * parts / (2 * all);
            tokens += sequence.len();
            if last.replace(part) != Some(part) {
                pieces.push(Rows { sequences: Vec::new(), entries: Vec::new() });
            }
            let piece = pieces.last_mut().expect("just made");
            piece.sequences.push(sequence);
            piece.entries.push(*entry);
        }
        pieces
    }

    /// Whether the cache has places for them.
    fn are_kept(&self) -> bool {
        self.entries.iter().all(Option::is_some)
    }
}

/// Into how many passes an end's texts are cut: each about [`PASS_TOKENS`], and equally many for every thread.
fn parts(tokens: usize, threads: usize, ends: usize) -> usize {
    let passes = (tokens + PASS_TOKENS / 2) / PASS_TOKENS;
    let shared = if threads.is_multiple_of(ends) { threads / ends } else { threads };
    passes.max(1).next_multiple_of(shared)
}

/// A forward pass over some texts at one of the ends.
struct Pass {
    end: usize,
    batch: Arc<Batch>,
    /// The hidden states of the tokens.
    x: Tensor,
}

impl LanguageModel {
    /// Joins a model with a data set of texts.
    ///
    /// # Errors
    /// If folder, settings and data do not fit together; each error says what would.
    pub fn new(
        folder: &Folder,
        spec: &LanguageSpec,
        dataset: &Dataset,
    ) -> Result<LanguageModel, LanguageError> {
        LanguageModel::on(Device::Cpu, folder, spec, dataset)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// As [`LanguageModel::new`], or if the device cannot be used.
    pub fn on(
        device: Device,
        folder: &Folder,
        spec: &LanguageSpec,
        dataset: &Dataset,
    ) -> Result<LanguageModel, LanguageError> {
        let core = Core::new(folder, spec, dataset, device.open()?)?;
        #[cfg(feature = "cuda")]
        {
            let (head, heads) = (core.config.head, core.config.heads);
            super::cuda::prepare(&core.device, head, heads)
                .map_err(|error| device.refuses(&error))?;
        }
        let texts = Texts::new(dataset, &folder.tokenizer, spec, core.config.is_decoder())?;
        Ok(LanguageModel { core: Arc::new(core), texts: Arc::new(texts), known: Mutex::default() })
    }

    /// Parameters that are trained, and all.
    pub fn parameters(&self) -> (usize, usize) {
        let trained = self.core.tensors.iter().map(TensorSpec::len).sum();
        let fixed: usize = self.core.fixed.values().map(Tensor::elem_count).sum();
        (trained, trained + fixed)
    }

    /// The rows of a minibatch that its budget of tokens allows, at least one.
    fn within_budget<'b>(&self, batch: &'b [u32]) -> &'b [u32] {
        assert!(!batch.is_empty(), "a minibatch has rows");
        let budget = match self.core.spec.budget {
            0 => return batch,
            budget => budget as usize,
        };
        let mut tokens = 0;
        let fits = batch.iter().take_while(|row| {
            tokens += self.texts.train.sequences[**row as usize].len();
            tokens <= budget
        });
        &batch[..fits.count().max(1)]
    }

    fn with_view<T>(
        &self,
        scratch: &mut Scratch,
        f: impl FnOnce(&mut View) -> CandleResult<T>,
    ) -> T {
        let held = scratch.weights.0.take().filter(|view| Arc::ptr_eq(&view.core, &self.core));
        let view = held.map_or_else(|| View::new(Arc::clone(&self.core)).map(Box::new), Ok);
        let result = view.and_then(|mut view| {
            let result = f(&mut view);
            scratch.weights.0 = Some(view);
            result
        });
        // Names and shapes were compared when the model was loaded. A device may run out of memory or fall off
        // its bus: nothing can be measured then.
        result.unwrap_or_else(|error| {
            let error = error.to_string();
            panic!("{}", error.lines().next().unwrap_or_default())
        })
    }

    fn tokens(&self, split: Split) -> &Tokens {
        match split {
            Split::Train => &self.texts.train,
            Split::Test => &self.texts.test,
        }
    }

    fn rows<'a>(&'a self, split: Split, rows: &[u32]) -> Rows<'a> {
        let tokens = self.tokens(split);
        let first = match split {
            Split::Train => 0,
            Split::Test => self.texts.train.sequences.len(),
        };
        let entry = |row: &u32| (self.core.depth > 0).then_some(first + *row as usize);
        Rows {
            sequences: rows.iter().map(|row| &*tokens.sequences[*row as usize]).collect(),
            entries: rows.iter().map(entry).collect(),
        }
    }

    /// Mean losses at the ends of a source on rows of the training texts.
    fn losses(
        &self,
        view: &mut View,
        source: &Source<'_>,
        batch: &[u32],
    ) -> CandleResult<Vec<f32>> {
        view.begin(source)?;
        let sums = self.measure(view, source, Split::Train, batch)?;
        Ok(sums.into_iter().map(|sum| sum.mean() as f32).collect())
    }

    /// The losses at two ends: both at once, or one after the other where a view holds one.
    fn losses_of_pair(
        &self,
        view: &mut View,
        both: &Source<'_>,
        batch: &[u32],
    ) -> CandleResult<(f32, f32)> {
        if view.ends.len() == both.ends() {
            let losses = self.losses(view, both, batch)?;
            return Ok((losses[0], losses[1]));
        }
        let plus = self.losses(view, &both.at(0), batch)?;
        let minus = self.losses(view, &both.at(1), batch)?;
        Ok((plus[0], minus[0]))
    }

    /// What a probe does beside its two forward passes, to measure it: writes the weights at both ends, and of tables
    /// the rows of the minibatch (not those of labels' words).
    pub fn write_ends(
        &self,
        state: &State,
        direction: &Direction,
        epsilon_log2: i32,
        batch: &[u32],
        scratch: &mut Scratch,
    ) {
        let rows = self.rows(Split::Train, self.within_budget(batch));
        self.with_view(scratch, |view| {
            let both = Source::Both(state, direction, epsilon_log2);
            if view.ends.len() < both.ends() {
                // A device, on which all weights of an end are written at its begin.
                (0..both.ends()).try_for_each(|end| view.begin(&both.at(end)))?;
                return self.core.device.synchronize();
            }
            view.begin(&both)?;
            if !rows.are_kept() {
                self.write_rows(view, &both, both.ends(), &rows)?;
            }
            let mut halves = model::halves(0..self.core.config.layers);
            halves.try_for_each(|half| view.write_half(&both, half))
        });
    }

    /// Sums at the ends of the source that the view was begun with.
    fn measure(
        &self,
        view: &View,
        source: &Source<'_>,
        split: Split,
        rows: &[u32],
    ) -> CandleResult<Vec<Sum>> {
        let labels = &self.tokens(split).labels;
        let labels: Vec<usize> = rows.iter().map(|row| labels[*row as usize].into()).collect();
        let rows = self.rows(split, rows);
        match (self.core.spec.task, self.core.config.is_decoder()) {
            (Task::Classify, false) => self.classify(view, source, rows, &labels),
            (Task::Classify, true) => self.answer(view, source, &rows, &labels),
            (Task::Causal, true) => self.predict(view, source, &rows),
            (Task::Causal, false) => unreachable!("an encoder does not predict"),
        }
    }

    /// Does the same with all items, in the threads of the caller's pool; a device has threads of its own.
    fn spread<T: Send, U: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> CandleResult<U> + Sync + Send,
    ) -> CandleResult<Vec<U>> {
        match view::by_half(&self.core.device) {
            true => items.into_par_iter().map(work).collect(),
            false => items.into_iter().map(work).collect(),
        }
    }

    /// Writes the rows that embeddings of these texts are read from; by the end and the table.
    fn write_rows(
        &self,
        view: &View,
        source: &Source<'_>,
        ends: usize,
        rows: &Rows<'_>,
    ) -> CandleResult<Vec<Vec<model::TableRows>>> {
        let mut tables: Vec<Vec<model::TableRows>> = (0..ends).map(|_| Vec::new()).collect();
        let numbers = view.ends[0].model.rows_of(&rows.sequences);
        for (at, numbers) in numbers.into_iter().enumerate() {
            let rows = view.rows(source, ends, |model| model.tables()[at], numbers)?;
            tables.iter_mut().zip(rows).for_each(|(tables, rows)| tables.push(rows));
        }
        Ok(tables)
    }

    /// Passes as they enter the first layer, or the first that is trained; by the end and then by the texts. The
    /// texts are shared out so that every thread has a pass, in which it never waits for another.
    fn enter(
        &self,
        view: &View,
        source: &Source<'_>,
        ends: usize,
        rows: &Rows<'_>,
    ) -> CandleResult<Vec<Pass>> {
        let core = &self.core;
        let parts = match view::by_half(&core.device) {
            true => parts(rows.tokens(), rayon::current_num_threads(), ends),
            false => 1,
        };
        let tables = match rows.are_kept() {
            true => Vec::new(),
            false => self.write_rows(view, source, ends, rows)?,
        };
        let pieces = self.spread(rows.split(parts), |piece| {
            let batch = Batch::new(core.config.head, &piece.sequences, &core.device)?;
            let kept = match piece.are_kept() {
                true => Some(self.kept(view, source, &piece)?),
                false => None,
            };
            Ok((Arc::new(batch), kept))
        })?;
        let pieces = (0..ends).flat_map(|end| pieces.iter().map(move |piece| (end, piece)));
        self.spread(pieces.collect(), |(end, (batch, kept))| {
            let x = match kept {
                Some(x) => x.clone(),
                None => view.ends[end].model.embed(batch, &tables[end])?,
            };
            Ok(Pass { end, batch: Arc::clone(batch), x })
        })
    }

    /// Passes behind the last layer.
    fn states(
        &self,
        view: &View,
        source: &Source<'_>,
        ends: usize,
        rows: &Rows<'_>,
    ) -> CandleResult<Vec<Pass>> {
        let mut passes = self.enter(view, source, ends, rows)?;
        let first = if rows.are_kept() { self.core.depth } else { 0 };
        for half in model::halves(first..self.core.config.layers) {
            view.write_half(source, half)?;
            passes = self.spread(passes, |Pass { end, batch, x }| {
                let x = view.ends[end].model.half(half, &x, &batch)?;
                Ok(Pass { end, batch, x })
            })?;
        }
        Ok(passes)
    }

    /// What all passes give, by the end.
    fn gather<T: Send + Clone>(
        &self,
        ends: usize,
        passes: Vec<Pass>,
        give: impl Fn(&Pass) -> CandleResult<Vec<T>> + Sync + Send,
    ) -> CandleResult<Vec<Vec<T>>> {
        let mut gathered = vec![Vec::new(); ends];
        for (end, given) in self.spread(passes, |pass| Ok((pass.end, give(&pass)?)))? {
            gathered[end].extend(given);
        }
        Ok(gathered)
    }

    /// The hidden states of texts in front of the first layer that is trained. They are the same at all ends.
    fn kept(&self, view: &View, source: &Source<'_>, rows: &Rows<'_>) -> CandleResult<Tensor> {
        let Core { config, depth, device, .. } = &*self.core;
        let width = config.hidden;
        let pieces = self.remembered(rows, |rows| {
            let model = &view.ends[0].model;
            let batch = Batch::new(config.head, &rows.sequences, device)?;
            let mut x = model.embed(&batch, &self.write_rows(view, source, 1, rows)?[0])?;
            for half in model::halves(0..*depth) {
                x = model.half(half, &x, &batch)?;
            }
            op::with(&x, |values| {
                let piece = |pair: &[usize]| values[pair[0] * width..pair[1] * width].into();
                batch.offsets.windows(2).map(piece).collect()
            })
        })?;
        let values = pieces.concat();
        let tokens = values.len() / width;
        Tensor::from_vec(values, (tokens, width), device)
    }

    /// What the cache has of rows, or `compute` makes of those that it lacks.
    fn remembered(
        &self,
        rows: &Rows<'_>,
        compute: impl Fn(&Rows<'_>) -> CandleResult<Vec<Box<[f32]>>>,
    ) -> CandleResult<Vec<Box<[f32]>>> {
        let cache = &self.texts.cache;
        let known = |entry: &Option<usize>| entry.and_then(|entry| cache.get(entry));
        let missing: Vec<usize> =
            (0..rows.entries.len()).filter(|&at| known(&rows.entries[at]).is_none()).collect();
        let mut computed = Vec::new();
        if !missing.is_empty() {
            computed = compute(&Rows {
                sequences: missing.iter().map(|&at| rows.sequences[at]).collect(),
                entries: vec![None; missing.len()],
            })?;
            for (&at, values) in missing.iter().zip(&computed) {
                if let Some(entry) = rows.entries[at] {
                    cache.insert(entry, values);
                }
            }
        }
        let mut computed = missing.into_iter().zip(computed).peekable();
        let pieces = rows.entries.iter().enumerate().map(|(at, entry)| {
            match computed.next_if(|(missing, _)| *missing == at) {
                Some((_, values)) => values,
                None => known(entry).expect("either known or computed").into(),
            }
        });
        Ok(pieces.collect())
    }

    /// Sentence vectors, by the end: the mean over the tokens, of length √hidden.
    fn vectors(
        &self,
        view: &View,
        source: &Source<'_>,
        ends: usize,
        rows: &Rows<'_>,
    ) -> CandleResult<Vec<Vec<Box<[f32]>>>> {
        let width = self.core.config.hidden;
        let passes = self.states(view, source, ends, rows)?;
        self.gather(ends, passes, |pass| {
            let vectors = op::pool(&pass.x, &pass.batch.offsets)?;
            op::with(&vectors, |values| values.chunks_exact(width).map(Box::from).collect())
        })
    }

    fn classify<'a>(
        &'a self,
        view: &View,
        source: &Source<'_>,
        mut rows: Rows<'a>,
        labels: &[usize],
    ) -> CandleResult<Vec<Sum>> {
        let core = &self.core;
        let first = self.texts.train.sequences.len() + self.texts.test.sequences.len();
        rows.sequences.extend(core.prototypes.iter().map(|sequence| &**sequence));
        let cached = core.depth > 0;
        rows.entries.extend((0..core.prototypes.len()).map(|at| cached.then_some(first + at)));
        let vectors = match core.depth == core.config.layers {
            // They are the same at all ends.
            true => vec![self.remembered(&rows, |rows| {
                Ok(self.vectors(view, source, 1, rows)?.swap_remove(0))
            })?],
            false => self.vectors(view, source, source.ends(), &rows)?,
        };
        let width = core.config.hidden;
        let sum = |end: usize| {
            let vectors = vectors.get(end).unwrap_or(&vectors[0]);
            let (texts, prototypes) = vectors.split_at(labels.len());
            let classifier = match &view.ends[end].classifier {
                Some((weight, bias)) if core.spec.head != Head::Prototype => {
                    Some((op::with(weight, <[f32]>::to_vec)?, op::with(bias, <[f32]>::to_vec)?))
                }
                _ => None,
            };
            let mut sum = Sum::default();
            let mut logits = vec![0.0; core.classes];
            for (vector, &label) in texts.iter().zip(labels) {
                logits.fill(0.0);
                if let Some((weight, bias)) = &classifier {
                    let rows = weight.chunks(width).zip(bias);
                    for (logit, (row, bias)) in logits.iter_mut().zip(rows) {
                        *logit = dot(row, vector) + bias;
                    }
                }
                for (logit, prototype) in logits.iter_mut().zip(prototypes) {
                    *logit += PROTOTYPE_SCALE / width as f32 * dot(prototype, vector);
                }
                sum.add(kernel::cross_entropy(&mut logits, label));
            }
            Ok(sum)
        };
        (0..source.ends()).map(sum).collect()
    }

    /// A decoder's classes: the logits of the labels' first tokens behind the text.
    fn answer(
        &self,
        view: &View,
        source: &Source<'_>,
        rows: &Rows<'_>,
        labels: &[usize],
    ) -> CandleResult<Vec<Sum>> {
        let Core { classes, answers, device, .. } = &*self.core;
        let ends = source.ends();
        let mut numbers = answers.clone();
        numbers.sort_unstable();
        numbers.dedup();
        let rows_of_answers =
            view.rows(source, ends, |model| &decoder_of(model).output, numbers)?;
        let words: Vec<Tensor> = rows_of_answers
            .iter()
            .map(|rows| rows.read(answers)?.t())
            .collect::<CandleResult<_>>()?;
        let passes = self.states(view, source, ends, rows)?;
        let logits = self.gather(ends, passes, |Pass { end, batch, x }| {
            let last: Vec<u32> = batch.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
            let last = Tensor::from_slice(&last, last.len(), device)?;
            let x = decoder(view, *end).finish(&x.index_select(&last, 0)?)?;
            op::with(&x.matmul(&words[*end])?, <[f32]>::to_vec)
        })?;
        let sum = |logits: Vec<f32>| {
            let mut sum = Sum::default();
            for (row, &label) in logits.chunks(*classes).zip(labels) {
                sum.add(kernel::cross_entropy(&mut row.to_vec(), label));
            }
            sum
        };
        Ok(logits.into_iter().map(sum).collect())
    }

    /// A decoder's next tokens.
    fn predict(&self, view: &View, source: &Source<'_>, rows: &Rows<'_>) -> CandleResult<Vec<Sum>> {
        let ends = source.ends();
        let vocabulary = self.core.config.vocabulary;
        let logits = match view::by_half(&self.core.device) {
            true => LOGITS_MAX[0] / rayon::current_num_threads(),
            false => LOGITS_MAX[1],
        };
        let chunk = (logits / vocabulary).max(1);
        let passes = self.states(view, source, ends, rows)?;
        let losses = self.gather(ends, passes, |Pass { end, batch, x }| {
            let decoder = decoder(view, *end);
            let output = decoder.output.whole().t()?;
            let x = decoder.finish(x)?;
            // The target of a token is the next one; the last of a sequence has none.
            let mut targets: Vec<Option<u32>> = Vec::with_capacity(batch.ids.len());
            for pair in batch.offsets.windows(2) {
                targets.extend(batch.ids[pair[0] + 1..pair[1]].iter().copied().map(Some));
                targets.push(None);
            }
            let mut losses = Vec::with_capacity(targets.len());
            for (at, targets) in targets.chunks(chunk).enumerate() {
                let logits = x.narrow(0, at * chunk, targets.len())?.matmul(&output)?;
                losses.extend(op::losses(&logits, targets)?);
            }
            Ok(losses)
        })?;
        let sum = |losses: Vec<(f64, bool)>| {
            let mut sum = Sum::default();
            losses.into_iter().for_each(|loss| sum.add(loss));
            sum
        };
        Ok(losses.into_iter().map(sum).collect())
    }

    /// The quality of a source of one end.
    fn quality_of(
        &self,
        view: &mut View,
        source: &Source<'_>,
        split: Split,
    ) -> CandleResult<Evaluation> {
        view.begin(source)?;
        let sequences = &self.tokens(split).sequences;
        let all: Vec<u32> = (0..sequences.len() as u32).collect();
        let most = EVALUATION_TOKENS[usize::from(!view::by_half(&self.core.device))];
        let mut total = Sum::default();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|row| {
                tokens += sequences[**row as usize].len();
                tokens <= most
            });
            let (rows, after) = rest.split_at(fits.count().max(1));
            rest = after;
            for sum in self.measure(view, source, split, rows)? {
                total.loss += sum.loss;
                total.right += sum.right;
                total.count += sum.count;
            }
        }
        let accuracy = total.right as f64 / total.count as f64;
        Ok(Evaluation { loss: total.mean(), accuracy, count: sequences.len() })
    }
}

/// The decoder of a view that has one.
fn decoder(view: &View, end: usize) -> &Decoder {
    decoder_of(&view.ends[end].model)
}

fn decoder_of(model: &Model) -> &Decoder {
    match model {
        Model::Decoder(decoder) => decoder,
        Model::Encoder(_) => unreachable!("asked for where the model is a decoder"),
    }
}

impl Objective for LanguageModel {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.core.tensors.clone()
    }

    /// The weights as read, with the adapters drawn. They are handed over, not copied, so that a large model
    /// is held once: a second call gives an empty vector.
    fn base(&self, seed: u64) -> Vec<f32> {
        // A poisoned lock guards no invariant.
        let mut base = self.core.base.lock().unwrap_or_else(PoisonError::into_inner);
        let mut base = std::mem::take(&mut *base);
        if !base.is_empty() {
            self.core.draw_adapters(seed, &mut base);
        }
        base
    }

    fn loss_pair(
        &self,
        plus: &[f32],
        minus: &[f32],
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        let batch = self.within_budget(batch);
        let ends = [plus, minus];
        let both = Source::Given(&ends, &self.core);
        self.with_view(scratch, |view| self.losses_of_pair(view, &both, batch))
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        let source = Source::Given(&[params], &self.core);
        self.with_view(scratch, |view| self.quality_of(view, &source, split))
    }

    fn probe(
        &self,
        state: &State,
        direction: &Direction,
        epsilon_log2: i32,
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        let batch = self.within_budget(batch);
        let both = Source::Both(state, direction, epsilon_log2);
        self.with_view(scratch, |view| self.losses_of_pair(view, &both, batch))
    }

    fn tables(&self) -> &[usize] {
        &self.core.tables
    }

    fn applied(&self, before: &Mark, payouts: &[Payout], state: &State, scratch: &mut Scratch) {
        #[cfg(feature = "cuda")]
        if let Some(copy) = scratch.weights.0.as_mut().and_then(|view| view.copy.as_mut())
            && copy.is_of(before)
        {
            // Where this fails it is a copy of nothing, and made anew for the next probe, which says what ails
            // the device.
            let _ = copy.apply(payouts, state);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = (before, payouts, state, scratch);
    }

    fn quality(&self, state: &State, split: Split, scratch: &mut Scratch) -> Evaluation {
        // Held while it is computed, so that others wait for the answer instead of computing it too.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = state.hash();
        if let Some((of, on, evaluation)) = *known
            && (of, on) == (hash, split)
        {
            return evaluation;
        }
        let source = Source::One(state, None);
        let evaluation = self.with_view(scratch, |view| self.quality_of(view, &source, split));
        *known = Some((hash, split, evaluation));
        evaluation
    }

    /// # Panics
    /// Always: see [`Objective::is_differentiable`].
    fn gradient(&self, _: &[f64], _: &[u32], _: &mut [f64], _: &mut Scratch) -> f64 {
        panic!("a language model is trained without gradients")
    }

    fn curvature(&self, _: &[u32], _: &mut Scratch) -> Option<(f64, f64)> {
        None
    }

    fn fixed_hash(&self) -> Option<[u8; 32]> {
        Some(self.core.fixed_hash)
    }

    fn with_flipped_labels(&self) -> Option<Arc<dyn Objective>> {
        let texts = Arc::new(self.texts.with_flipped_labels(self.core.classes));
        let (core, known) = (Arc::clone(&self.core), Mutex::default());
        Some(Arc::new(LanguageModel { core, texts, known }))
    }

    fn is_differentiable(&self) -> bool {
        false
    }

    fn notes(&self) -> Vec<String> {
        let (trained, all) = self.parameters();
        let mut notes = vec![format!("{trained} of {all} parameters are trained")];
        let (train, test) = (&self.texts.train, &self.texts.test);
        if train.cut + test.cut > 0 {
            notes.push(format!(
                "{} of {} training texts and {} of {} held-out ones are longer than {} tokens and were cut \
                 (--tokens)",
                train.cut,
                train.sequences.len(),
                test.cut,
                test.sequences.len(),
                self.core.spec.tokens
            ));
        }
        notes
    }
}

/// What the transformer makes of a held-out text: an encoder's last hidden states, a decoder's logits behind
/// the last token.
#[cfg(test)]
pub(super) fn outputs_of(model: &LanguageModel, state: &State, row: u32) -> Vec<f32> {
    let source = Source::One(state, None);
    model.with_view(&mut Scratch::default(), |view| {
        view.begin(&source)?;
        let mut values = Vec::new();
        for pass in model.states(view, &source, 1, &model.rows(Split::Test, &[row]))? {
            values.extend(match &view.ends[pass.end].model {
                Model::Encoder(_) => op::with(&pass.x, <[f32]>::to_vec)?,
                Model::Decoder(decoder) => {
                    let last = pass.x.narrow(0, pass.batch.ids.len() - 1, 1)?;
                    let words: Vec<u32> = (0..model.core.config.vocabulary as u32).collect();
                    let rows =
                        view.rows(&source, 1, |model| &decoder_of(model).output, words.clone())?;
                    let output = rows[0].read(&words)?;
                    op::with(&decoder.finish(&last)?.matmul(&output.t()?)?, <[f32]>::to_vec)?
                }
            });
        }
        Ok(values)
    })
}

/// Rows of the table of words as they are written, by the end.
#[cfg(test)]
pub(super) fn words_of(
    model: &LanguageModel,
    source: &Source<'_>,
    numbers: &[u32],
) -> Vec<Vec<f32>> {
    model.with_view(&mut Scratch::default(), |view| {
        let rows = view.rows(source, source.ends(), |model| model.tables()[0], numbers.to_vec())?;
        rows.iter().map(|rows| op::with(&rows.read(numbers)?, <[f32]>::to_vec)).collect()
    })
}

/// The tokens of a held-out text.
#[cfg(test)]
pub(super) fn tokens_of(model: &LanguageModel, row: usize) -> Vec<u32> {
    model.texts.test.sequences[row].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_as_many_passes_and_none_is_long() {
        for (tokens, threads, ends, expected) in [
            (0, 1, 2, 1),
            (1_036, 1, 2, 1),
            (1_036, 2, 2, 1),
            (4_108, 2, 2, 4),
            (2_048, 2, 1, 2),
            (100, 3, 2, 3),
            (9_600, 16, 2, 16),
        ] {
            let found = parts(tokens, threads, ends);
            assert_eq!(found, expected, "{tokens} tokens, {threads} threads, {ends} ends");
            assert_eq!(found * ends % threads, 0);
        }
    }
}
