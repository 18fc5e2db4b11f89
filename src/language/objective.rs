//! The objective: losses of texts under weights written in place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result as CandleResult, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::StateCopy;
use super::data::{Texts, Tokens};
use super::decoder::Decoder;
use super::device::Device;
use super::folder::Folder;
use super::kernel;
use super::load::{Core, LanguageError};
use super::model::{self, Batch, Model, Read};
use super::spec::{Head, LanguageSpec, Task};
use super::{op, pass};
use crate::data::Dataset;
use crate::direction::Direction;
use crate::objective::{Evaluation, Objective, Scratch, Split};
use crate::params::{End, Mark, Payout, State, TensorSpec};

/// Tokens of a forward pass of an evaluation.
const EVALUATION_TOKENS: usize = 2048;

/// Values of logits computed at a time.
const LOGITS_MAX: usize = 1 << 22;

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

/// Where a thread keeps the weights of a language model; empty until the first probe, and in a copy.
#[derive(Default)]
pub struct Slot(Option<Box<View>>);

impl Clone for Slot {
    fn clone(&self) -> Slot {
        // Weights are written in place: a copy must not share them.
        Slot(None)
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Slot(weights)" } else { "Slot" })
    }
}

/// One set of weights.
struct View {
    core: Arc<Core>,
    /// In the order of the flat parameters.
    trained: Vec<Tensor>,
    model: Model,
    classifier: Option<(Tensor, Tensor)>,
    /// The state, where the weights are on a device.
    #[cfg(feature = "cuda")]
    copy: Option<StateCopy>,
}

/// The rows of its tables that a forward pass reads.
struct Needed {
    words: Vec<u32>,
    positions: Vec<u32>,
}

impl View {
    fn new(core: Arc<Core>) -> CandleResult<View> {
        let mut weights = core.fixed.clone();
        let mut trained = Vec::with_capacity(core.tensors.len());
        for (name, spec) in core.trained.iter().zip(&core.tensors) {
            let tensor = Tensor::zeros(spec.shape.as_slice(), DType::F32, &core.device)?;
            weights.insert(name.clone(), tensor.clone());
            trained.push(tensor);
        }
        let part = |part: &str| weights.get(&format!("classifier.{part}")).cloned();
        let classifier = part("weight").zip(part("bias"));
        let positions = core.spec.tokens as usize;
        let model = Model::new(&core.config, &weights, positions, &core.device)?;
        Ok(View {
            core,
            trained,
            model,
            classifier,
            #[cfg(feature = "cuda")]
            copy: None,
        })
    }

    /// Writes all weights, or what a forward pass over a batch needs: half of a small encoder is its table
    /// of words, of which a batch has few. A device, which has threads enough, writes all.
    fn write(
        &mut self,
        state: &State,
        end: Option<End<'_>>,
        needed: Option<&Needed>,
    ) -> CandleResult<()> {
        let core = &self.core;
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &core.device {
            match &mut self.copy {
                Some(copy) if copy.is_of(&state.mark()) => (),
                Some(copy) => copy.renew(state)?,
                None => self.copy = Some(StateCopy::new(device, state)?),
            }
            let copy = self.copy.as_ref();
            let write = |tensor| op::Write { state, tensor, end, rows: None, copy };
            let each = |(index, tensor): (usize, &Tensor)| tensor.inplace_op1(&write(index));
            return self.trained.iter().enumerate().try_for_each(each);
        }
        let each = |(index, tensor): (usize, &Tensor)| {
            let rows = needed.and_then(|needed| {
                match model::read_of(&core.config, &core.trained[index]) {
                    Read::Whole => None,
                    Read::Words => Some(&needed.words[..]),
                    Read::Positions => Some(&needed.positions[..]),
                }
            });
            tensor.inplace_op1(&op::Write {
                state,
                tensor: index,
                end,
                rows,
                #[cfg(feature = "cuda")]
                copy: None,
            })
        };
        self.trained.par_iter().enumerate().try_for_each(each)
    }

    fn copy(&self, mut params: &[f32]) -> CandleResult<()> {
        for tensor in &self.trained {
            let (own, rest) = params.split_at(tensor.elem_count());
            tensor.inplace_op1(&op::Copy(own))?;
            params = rest;
        }
        Ok(())
    }
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
    /// Cuts them into runs of about equally many tokens.
    fn split(&self, parts: usize) -> Vec<Rows<'a>> {
        let all: usize = self.sequences.iter().map(|sequence| sequence.len()).sum();
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

    /// Runs forward passes over them, one in each thread of the caller's pool: a whole pass over a part of
    /// the texts never waits for another thread, and its values stay in the caches of one core.
    fn spread<T: Send>(
        &self,
        device: &candle_core::Device,
        pass: impl Fn(&Rows<'a>) -> CandleResult<Vec<T>> + Sync + Send,
    ) -> CandleResult<Vec<T>> {
        if !pass::in_place(device) {
            // It has threads of its own.
            return pass(self);
        }
        let pieces = self.split(rayon::current_num_threads());
        let results: CandleResult<Vec<Vec<T>>> = pieces.par_iter().map(pass).collect();
        Ok(results?.into_iter().flatten().collect())
    }
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
        result.unwrap_or_else(|error| panic!("a model whose shapes were checked: {error}"))
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

    /// What a probe on rows of the training texts reads of the tables.
    fn needed(&self, rows: &[u32]) -> Needed {
        let core = &self.core;
        let own = rows.iter().map(|row| &self.texts.train.sequences[*row as usize]);
        let sequences = || own.clone().chain(&core.prototypes);
        let mut words: Vec<u32> = sequences().flatten().copied().collect();
        words.sort_unstable();
        words.dedup();
        let first = model::first_position(&core.config);
        let longest = sequences().map(|sequence| sequence.len()).max().unwrap_or(0);
        Needed { words, positions: (first..first + longest as u32).collect() }
    }

    /// Calls `then` on each end of a probe, the weights written as far as the batch needs them.
    fn at_ends<T>(
        &self,
        view: &mut View,
        state: &State,
        (direction, epsilon_log2): (&Direction, i32),
        batch: &[u32],
        mut then: impl FnMut(&View) -> CandleResult<T>,
    ) -> CandleResult<(T, T)> {
        let needed = self.needed(batch);
        let mut at = |plus| {
            view.write(state, Some(End { direction, epsilon_log2, plus }), Some(&needed))?;
            then(view)
        };
        Ok((at(true)?, at(false)?))
    }

    /// What a probe does beside its two forward passes, to measure it.
    pub fn write_ends(
        &self,
        state: &State,
        direction: &Direction,
        epsilon_log2: i32,
        batch: &[u32],
        scratch: &mut Scratch,
    ) {
        let batch = self.within_budget(batch);
        self.with_view(scratch, |view| {
            self.at_ends(view, state, (direction, epsilon_log2), batch, |_| Ok(()))
        });
    }

    fn measure(&self, view: &View, split: Split, rows: &[u32]) -> CandleResult<Sum> {
        let labels = &self.tokens(split).labels;
        let labels: Vec<usize> = rows.iter().map(|row| labels[*row as usize].into()).collect();
        let rows = self.rows(split, rows);
        match (self.core.spec.task, &view.model) {
            (Task::Classify, Model::Encoder(_)) => self.classify(view, rows, &labels),
            (Task::Classify, Model::Decoder(decoder)) => self.answer(view, decoder, &rows, &labels),
            (Task::Causal, Model::Decoder(decoder)) => self.predict(view, decoder, &rows),
            (Task::Causal, Model::Encoder(_)) => unreachable!("an encoder does not predict"),
        }
    }

    /// Hidden states behind the last layer, token by token.
    fn states(&self, view: &View, rows: &Rows<'_>) -> CandleResult<(Tensor, Batch)> {
        let (config, depth) = (&self.core.config, self.core.depth);
        let batch = Batch::new(config, &rows.sequences, &self.core.device)?;
        if depth == 0 || rows.entries.iter().all(Option::is_none) {
            let x = view.model.embed(&batch)?;
            return Ok((view.model.layers(0..config.layers, x, &batch)?, batch));
        }
        let below = |rows: &Rows<'_>| -> CandleResult<Vec<Box<[f32]>>> {
            let batch = Batch::new(config, &rows.sequences, &self.core.device)?;
            let x = view.model.embed(&batch)?;
            let x = view.model.layers(0..depth, x, &batch)?;
            op::with(&x, |values| {
                let width = config.hidden;
                let piece = |pair: &[usize]| values[pair[0] * width..pair[1] * width].into();
                batch.offsets.windows(2).map(piece).collect()
            })
        };
        let pieces = self.remembered(rows, below)?;
        let x = Tensor::from_vec(
            pieces.concat(),
            (batch.positions.len(), config.hidden),
            &self.core.device,
        )?;
        Ok((view.model.layers(depth..config.layers, x, &batch)?, batch))
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

    /// Sentence vectors: the mean over the tokens, of length √hidden.
    fn vectors(&self, view: &View, rows: &Rows<'_>) -> CandleResult<Vec<Box<[f32]>>> {
        let width = self.core.config.hidden;
        let pooled = |rows: &Rows<'_>| {
            rows.spread(&self.core.device, |rows| {
                let (x, batch) = self.states(view, rows)?;
                op::with(&x, |values| {
                    let one =
                        |pair: &[usize]| pool(&values[pair[0] * width..pair[1] * width], width);
                    batch.offsets.windows(2).map(one).collect()
                })
            })
        };
        match self.core.depth == self.core.config.layers {
            true => self.remembered(rows, pooled),
            false => pooled(rows),
        }
    }

    fn classify<'a>(
        &'a self,
        view: &View,
        mut rows: Rows<'a>,
        labels: &[usize],
    ) -> CandleResult<Sum> {
        let core = &self.core;
        let first = self.texts.train.sequences.len() + self.texts.test.sequences.len();
        rows.sequences.extend(core.prototypes.iter().map(|sequence| &**sequence));
        let cached = core.depth > 0;
        rows.entries.extend((0..core.prototypes.len()).map(|at| cached.then_some(first + at)));
        let vectors = self.vectors(view, &rows)?;
        let (texts, prototypes) = vectors.split_at(labels.len());
        let classifier = match &view.classifier {
            Some((weight, bias)) if core.spec.head != Head::Prototype => {
                Some((op::with(weight, <[f32]>::to_vec)?, op::with(bias, <[f32]>::to_vec)?))
            }
            _ => None,
        };
        let width = core.config.hidden;
        let mut sum = Sum::default();
        let mut logits = vec![0.0; core.classes];
        for (vector, &label) in texts.iter().zip(labels) {
            logits.fill(0.0);
            if let Some((weight, bias)) = &classifier {
                for ((logit, row), bias) in logits.iter_mut().zip(weight.chunks(width)).zip(bias) {
                    *logit = dot(row, vector) + bias;
                }
            }
            for (logit, prototype) in logits.iter_mut().zip(prototypes) {
                *logit += PROTOTYPE_SCALE / width as f32 * dot(prototype, vector);
            }
            sum.add(kernel::cross_entropy(&mut logits, label));
        }
        Ok(sum)
    }

    /// A decoder's classes: the logits of the labels' first tokens behind the text.
    fn answer(
        &self,
        view: &View,
        decoder: &Decoder,
        rows: &Rows<'_>,
        labels: &[usize],
    ) -> CandleResult<Sum> {
        let index = |ids: Vec<u32>| {
            let len = ids.len();
            Tensor::from_vec(ids, len, &self.core.device)
        };
        let words = decoder.output.index_select(&index(self.core.answers.clone())?, 0)?.t()?;
        let logits = rows.spread(&self.core.device, |rows| {
            let (x, batch) = self.states(view, rows)?;
            let last: Vec<u32> = batch.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
            let x = decoder.finish(&x.index_select(&index(last)?, 0)?)?;
            op::with(&x.matmul(&words)?, <[f32]>::to_vec)
        })?;
        let mut sum = Sum::default();
        for (row, &label) in logits.chunks(self.core.classes).zip(labels) {
            sum.add(kernel::cross_entropy(&mut row.to_vec(), label));
        }
        Ok(sum)
    }

    /// A decoder's next tokens.
    fn predict(&self, view: &View, decoder: &Decoder, rows: &Rows<'_>) -> CandleResult<Sum> {
        let output = decoder.output.t()?;
        let vocabulary = self.core.config.vocabulary;
        let chunk = (LOGITS_MAX / rayon::current_num_threads() / vocabulary).max(1);
        let losses = rows.spread(&self.core.device, |rows| {
            let (x, batch) = self.states(view, rows)?;
            let x = decoder.finish(&x)?;
            // The target of a token is the next one; the last of a sequence has none.
            let mut targets: Vec<Option<u32>> = Vec::with_capacity(batch.positions.len());
            for sequence in &rows.sequences {
                targets.extend(sequence[1..].iter().copied().map(Some));
                targets.push(None);
            }
            let mut losses = Vec::with_capacity(targets.len());
            for (at, targets) in targets.chunks(chunk).enumerate() {
                let logits = x.narrow(0, at * chunk, targets.len())?.matmul(&output)?;
                losses.extend(pass::losses(&logits, targets)?);
            }
            Ok(losses)
        })?;
        let mut sum = Sum::default();
        losses.into_iter().for_each(|loss| sum.add(loss));
        Ok(sum)
    }

    fn evaluate_view(&self, view: &View, split: Split) -> CandleResult<Evaluation> {
        let sequences = &self.tokens(split).sequences;
        let all: Vec<u32> = (0..sequences.len() as u32).collect();
        let mut total = Sum::default();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|row| {
                tokens += sequences[**row as usize].len();
                tokens <= EVALUATION_TOKENS
            });
            let (rows, after) = rest.split_at(fits.count().max(1));
            rest = after;
            let sum = self.measure(view, split, rows)?;
            total.loss += sum.loss;
            total.right += sum.right;
            total.count += sum.count;
        }
        let accuracy = total.right as f64 / total.count as f64;
        Ok(Evaluation { loss: total.mean(), accuracy, count: sequences.len() })
    }
}

fn pool(values: &[f32], width: usize) -> Box<[f32]> {
    let mut mean = vec![0f32; width];
    for row in values.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
    }
    let length = dot(&mean, &mean).sqrt();
    let scale = (width as f32).sqrt() / length.max(f32::MIN_POSITIVE);
    mean.iter_mut().for_each(|mean| *mean *= scale);
    mean.into()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        (0..16).for_each(|lane| lanes[lane] += a[lane] * b[lane]);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
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
        self.with_view(scratch, |view| {
            let loss = |params: &[f32]| -> CandleResult<f32> {
                view.copy(params)?;
                Ok(self.measure(view, Split::Train, batch)?.mean() as f32)
            };
            Ok((loss(plus)?, loss(minus)?))
        })
    }

    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation {
        self.with_view(scratch, |view| {
            view.copy(params)?;
            self.evaluate_view(view, split)
        })
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
        self.with_view(scratch, |view| {
            self.at_ends(view, state, (direction, epsilon_log2), batch, |view| {
                Ok(self.measure(view, Split::Train, batch)?.mean() as f32)
            })
        })
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
        let evaluation = self.with_view(scratch, |view| {
            view.write(state, None, None)?;
            self.evaluate_view(view, split)
        });
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
    model.with_view(&mut Scratch::default(), |view| {
        view.write(state, None, None)?;
        let (x, batch) = model.states(view, &model.rows(Split::Test, &[row]))?;
        match &view.model {
            Model::Encoder(_) => op::with(&x, <[f32]>::to_vec),
            Model::Decoder(decoder) => {
                let last = x.narrow(0, batch.positions.len() - 1, 1)?;
                let logits = decoder.finish(&last)?.matmul(&decoder.output.t()?)?;
                op::with(&logits, <[f32]>::to_vec)
            }
        }
    })
}

/// The tokens of a held-out text.
#[cfg(test)]
pub(super) fn tokens_of(model: &LanguageModel, row: usize) -> Vec<u32> {
    model.texts.test.sequences[row].to_vec()
}

/// Parameters by the files' names.
pub(super) fn named(state: &State) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let tensors = state.layout().tensors().iter().enumerate();
    let named = tensors.map(|(index, tensor)| {
        let mut values = vec![0.0; tensor.len];
        state.write_part(index, 0, None, &mut values);
        (tensor.name.clone(), (tensor.shape.clone(), values))
    });
    named.collect()
}
