//! Parameters: the exact integer state and its floating-point view.
//!
//! The state of a model is one `i32` per parameter, in units of its tensor's LSB, a power of two
//! chosen once from the base model. A slot's coefficient is an integer in units of
//! `2^COEFFICIENT_LOG2`, and applying it adds
//!
//! ```text
//! state[p] += sign(direction, p) · shift(coefficient)      (wrapping)
//! shift(c)  = c · 2^COEFFICIENT_LOG2 / LSB, rounded to the nearest integer, ties to even
//! ```
//!
//! Wrapping addition is an abelian group: any order, split or repetition that adds up to the same
//! coefficients gives the same bits, and replacing a coefficient is adding `shift(to) − shift(from)`.
//! The `f32` weights are only a view, `LSB · state` with one rounding, so probing around a state never
//! moves it. That no parameter wraps through the end of its range is the ledger's bound to keep; the
//! ranges chosen here leave 128 times the base model's largest magnitude.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use crate::direction::{BLOCK_PARAMETERS, Direction, SignBlock, sign_words_of};
use crate::lb8::pow2_f64;

mod kernel;
mod lazy;
mod sliced;

/// Binary logarithm of a coefficient's unit.
///
/// Fine enough that the rounding to it vanishes beside that to any LSB (which are at least `2^-30`),
/// and an `i64` still reaches ±8 million.
pub const COEFFICIENT_LOG2: i32 = -40;

/// Magnitudes of a base model below `2^-6` choose the LSB as `2^-6` does, so that small tensors can
/// grow.
const MAGNITUDE_LOG2_MIN: i32 = -6;

/// A tensor that starts at zero says nothing of its scale: it gets the range of one of magnitude 1.
const MAGNITUDE_LOG2_ZERO: i32 = 0;

/// The largest magnitude a base model may hold, `2^64`, so that all views are finite.
const MAGNITUDE_MAX: f32 = (1u128 << 64) as f32;

/// Binary logarithm of the largest magnitude over the LSB: `2^31 / 2^24` leaves 128 times.
const RESOLUTION_LOG2: i32 = 24;

/// The name and shape of a tensor, as a model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, unique within the model.
    pub name: String,
    /// The extents, outermost first; the product is the number of parameters.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of that name and shape.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.to_vec() }
    }

    /// The number of parameters.
    ///
    /// # Panics
    /// If it does not fit a `usize`.
    #[expect(clippy::len_without_is_empty, reason = "a count of parameters, not a collection")]
    pub fn len(&self) -> usize {
        let product = self.shape.iter().try_fold(1usize, |len, &extent| len.checked_mul(extent));
        product.expect("a tensor's size fits the address space")
    }
}

/// A tensor within a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name, unique within the model.
    pub name: String,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// Where its parameters begin in the flat arrays.
    pub offset: usize,
    /// The number of its parameters.
    pub len: usize,
    /// Binary logarithm of the unit of its state.
    pub lsb_log2: i32,
}

/// The tensors of a model in the order of the flat arrays; a tensor's position is its stream of
/// every direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<Tensor>,
    dim: usize,
}

impl Layout {
    /// The tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The number of parameters of all tensors together.
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// A coefficient that a direction had and the one it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payout {
    /// The direction.
    pub direction: Direction,
    /// The coefficient the state holds so far, in units of `2^COEFFICIENT_LOG2`.
    pub from: i64,
    /// The coefficient it shall hold.
    pub to: i64,
}

/// The integer of a coefficient: `value / 2^COEFFICIENT_LOG2`, ties to even.
///
/// Values beyond the range of `i64` saturate; NaN is zero.
pub fn coefficient(value: f64) -> i64 {
    (value * pow2_f64(-COEFFICIENT_LOG2)).round_ties_even() as i64
}

/// The exact parameters of a model.
#[derive(Clone, Debug)]
pub struct State {
    layout: Layout,
    // As many as the layout has parameters, in its order.
    values: Vec<i32>,
    // A new one with every change. All marks are equal, so it takes no part in comparisons.
    mark: Mark,
    // What the values of some tables do not have yet.
    owed: lazy::Owed,
}

/// Tells whether a copy of a state, such as a device's, is still one: two states with the same mark hold
/// the same values.
///
/// A mark is known by its place in memory, which nothing else gets while somebody holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark(Arc<()>);

impl Mark {
    /// Whether these are the mark of the same values. Equal values may have different marks.
    pub fn is(&self, other: &Mark) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Why a state could not be made; nothing was changed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum StateError {
    /// The number of values is not that of the tensors.
    #[error("{values} values for tensors of {parameters} parameters")]
    Length {
        /// The values given.
        values: usize,
        /// The parameters expected.
        parameters: usize,
    },
    /// A base parameter that no state can hold.
    #[error("parameter {index} of tensor {tensor:?} is {value}, which no state can hold")]
    Value {
        /// The tensor's name.
        tensor: String,
        /// The position within the tensor.
        index: usize,
        /// The parameter.
        value: f32,
    },
}

impl State {
    /// The state nearest to a base model: `base / LSB`, ties to even. It takes the base model's place in memory.
    ///
    /// # Errors
    /// If the lengths differ, or a parameter is not finite or above `2^64` in magnitude.
    pub fn from_base(specs: Vec<TensorSpec>, base: Vec<f32>) -> Result<State, StateError> {
        let dim = specs.iter().map(TensorSpec::len).sum();
        if dim != base.len() {
            return Err(StateError::Length { values: base.len(), parameters: dim });
        }
        let mut tensors = Vec::with_capacity(specs.len());
        let mut offset = 0;
        for spec in specs {
            let len = spec.len();
            let base = &base[offset..offset + len];
            let unfit = |value: &f32| value.is_nan() || value.abs() > MAGNITUDE_MAX;
            if let Some(index) = base.iter().position(unfit) {
                let value = base[index];
                return Err(StateError::Value { tensor: spec.name, index, value });
            }
            let lsb_log2 = lsb_log2(base);
            tensors.push(Tensor { name: spec.name, shape: spec.shape, offset, len, lsb_log2 });
            offset += len;
        }
        let units = tensors
            .iter()
            .flat_map(|tensor| std::iter::repeat_n(pow2_f64(-tensor.lsb_log2), tensor.len));
        let value =
            |(value, inverse): (f32, f64)| (f64::from(value) * inverse).round_ties_even() as i32;
        // Collected where the numbers of the same size were: a model may be most of what fits.
        let values = base.into_iter().zip(units).map(value).collect();
        Ok(State::of(Layout { tensors, dim }, values))
    }

    /// A state from the values of another one of the same layout, such as a checkpoint's.
    ///
    /// # Errors
    /// If the number of values is not that of the layout.
    pub fn from_values(layout: Layout, values: Vec<i32>) -> Result<State, StateError> {
        if values.len() != layout.dim {
            return Err(StateError::Length { values: values.len(), parameters: layout.dim });
        }
        Ok(State::of(layout, values))
    }

    fn of(layout: Layout, values: Vec<i32>) -> State {
        State { layout, values, mark: Mark::default(), owed: lazy::Owed::default() }
    }

    /// The tensors and their units.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The parameters in units of their tensors' LSBs.
    ///
    /// # Panics
    /// Where [`State::apply_lazily`] left changes that [`State::settle`] has not made.
    pub fn values(&self) -> &[i32] {
        assert!(self.owed.is_empty(), "a state is settled before its values are read");
        &self.values
    }

    /// The mark of the values as they are now.
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Replaces coefficients: adds, along each direction, what the new one adds beyond the old one.
    ///
    /// Any order of the same payouts, in one call or many, gives the same state. Many in one call cost
    /// least: from some sixteen on each costs a third of what the first one does.
    pub fn apply(&mut self, payouts: &[Payout]) {
        self.split(1).iter_mut().for_each(|part| part.apply(payouts));
    }

    /// The same in up to so many threads, each of which gets a quarter of a millisecond's work at least.
    pub fn apply_in_threads(&mut self, threads: usize, payouts: &[Payout]) {
        self.apply_to(|_| true, threads, payouts);
    }

    /// The same for some of the tensors.
    fn apply_to(&mut self, takes: impl Fn(usize) -> bool, threads: usize, payouts: &[Payout]) {
        let numbered = self.layout.tensors.iter().enumerate();
        let taken = numbered.filter(|(tensor, _)| takes(*tensor)).map(|(_, tensor)| tensor.len);
        let work = payouts.len().saturating_mul(taken.sum());
        let parts = (work / THREAD_WORK_MIN).clamp(1, threads.max(1));
        let mut parts = self.split_some(takes, parts);
        let Some((own, others)) = parts.split_first_mut() else { return };
        std::thread::scope(|scope| {
            for part in others {
                scope.spawn(|| part.apply(payouts));
            }
            own.apply(payouts);
        });
    }

    /// Splits the parameters into at most `parts` of about equal size. What is applied to all of them,
    /// in whatever order or at once, is applied to the state.
    ///
    /// # Panics
    /// If `parts` is zero.
    pub fn split(&mut self, parts: usize) -> Vec<Part<'_>> {
        self.split_some(|_| true, parts)
    }

    fn split_some(&mut self, takes: impl Fn(usize) -> bool, parts: usize) -> Vec<Part<'_>> {
        self.mark = Mark::default();
        let numbered = self.layout.tensors.iter().enumerate();
        let taken = numbered.filter(|(tensor, _)| takes(*tensor));
        let all: usize = taken.map(|(_, of)| of.len.div_ceil(SUPERBLOCK_PARAMETERS)).sum();
        let most = all.div_ceil(parts);
        let mut split: Vec<Part<'_>> = Vec::new();
        let mut room = 0;
        let mut rest = &mut self.values[..];
        for (tensor, Tensor { len, lsb_log2, .. }) in self.layout.tensors.iter().enumerate() {
            let (mut own, after) = rest.split_at_mut(*len);
            rest = after;
            if !takes(tensor) {
                continue;
            }
            let mut superblock = 0;
            while !own.is_empty() {
                if room == 0 {
                    split.push(Part { pieces: Vec::new() });
                    room = most;
                }
                let piece_len = own.len().min(room * SUPERBLOCK_PARAMETERS);
                let (values, after) = own.split_at_mut(piece_len);
                own = after;
                let piece = Piece { tensor, lsb_log2: *lsb_log2, superblock, values };
                split.last_mut().expect("just made").pieces.push(piece);
                let taken = piece_len.div_ceil(SUPERBLOCK_PARAMETERS);
                superblock += taken as u64;
                room -= taken;
            }
        }
        split
    }

    /// Adds another state of the same layout, such as what a model has beyond the one it grew from.
    ///
    /// # Panics
    /// If the layouts differ.
    pub fn add(&mut self, other: &State) {
        self.change_by(other, i32::wrapping_add);
    }

    /// Takes another state of the same layout away.
    ///
    /// # Panics
    /// If the layouts differ.
    pub fn subtract(&mut self, other: &State) {
        self.change_by(other, i32::wrapping_sub);
    }

    fn change_by(&mut self, other: &State, with: impl Fn(i32, i32) -> i32) {
        assert!(self.layout == other.layout, "states of one layout");
        self.mark = Mark::default();
        for (tensor, Tensor { offset, len, .. }) in self.layout.tensors.iter().enumerate() {
            let own = &mut self.values[*offset..offset + len];
            other.read(tensor, 0, *len, |range, values| {
                let pairs = own[range].iter_mut().zip(values);
                pairs.for_each(|(own, other)| *own = with(*own, *other));
            });
        }
    }

    /// Writes the weights: `LSB · state`, rounded once to `f32`.
    ///
    /// # Panics
    /// If `out` does not hold exactly [`Layout::dim`] values.
    pub fn write_view(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.layout.dim, "a view has the model's size");
        for (tensor, Tensor { offset, len, .. }) in self.layout.tensors.iter().enumerate() {
            self.write_part(tensor, 0, None, &mut out[*offset..offset + len]);
        }
    }

    /// Writes the weights at both ends of a probe: `view ± ε · direction` with `ε = 2^epsilon_log2`.
    ///
    /// Each is the view of [`State::write_view`] plus or minus ε, rounded once more to `f32`.
    ///
    /// # Panics
    /// If `plus` or `minus` does not hold exactly [`Layout::dim`] values, or ε is not a normal `f32`.
    pub fn write_pair(
        &self,
        direction: &Direction,
        epsilon_log2: i32,
        plus: &mut [f32],
        minus: &mut [f32],
    ) {
        assert_eq!(plus.len(), self.layout.dim, "a view has the model's size");
        assert_eq!(minus.len(), self.layout.dim, "a view has the model's size");
        for (index, Tensor { offset, len, .. }) in self.layout.tensors.iter().enumerate() {
            let range = *offset..offset + len;
            let (plus, minus) = (&mut plus[range.clone()], &mut minus[range]);
            self.write_pair_part(index, 0, (direction, epsilon_log2), plus, minus);
        }
    }

    /// Writes what [`State::write_pair`] writes of one tensor, from its parameter `first` on. The direction comes with
    /// the binary logarithm of ε.
    ///
    /// # Panics
    /// If the tensor does not have these parameters, the two are not equally long, or ε is not a normal `f32`.
    pub fn write_pair_part(
        &self,
        tensor: usize,
        first: usize,
        (direction, epsilon_log2): (&Direction, i32),
        plus: &mut [f32],
        minus: &mut [f32],
    ) {
        assert_eq!(plus.len(), minus.len(), "two ends of the same parameters");
        let units = [self.lsb(tensor), End { direction, epsilon_log2, plus: true }.step()];
        self.read(tensor, first, plus.len(), |read, values| {
            let (plus, minus) = (&mut plus[read.clone()], &mut minus[read.clone()]);
            let first = first + read.start;
            by_superblock(direction, tensor, first, values.len(), |range, signs, first| {
                let (plus, minus) = (&mut plus[range.clone()], &mut minus[range.clone()]);
                kernel::pair(&values[range], signs, first, units, plus, minus);
            });
        });
    }

    /// Writes weights of one tensor, from its parameter `first` on: their view, or one end of a probe.
    ///
    /// For models that do not hold all weights at once: the values are those of [`State::write_view`] and
    /// [`State::write_pair`], bit for bit.
    ///
    /// # Panics
    /// If the tensor does not have these parameters, or ε is not a normal `f32`.
    pub fn write_part(&self, tensor: usize, first: usize, end: Option<End<'_>>, out: &mut [f32]) {
        let lsb = self.lsb(tensor);
        self.read(tensor, first, out.len(), |read, values| {
            let (first, out) = (first + read.start, &mut out[read]);
            let Some(end) = end else { return kernel::view(values, lsb, out) };
            let step = end.step();
            by_superblock(end.direction, tensor, first, values.len(), |range, signs, first| {
                kernel::end(&values[range.clone()], signs, first, [lsb, step], &mut out[range]);
            });
        });
    }

    /// The unit of a tensor's state.
    fn lsb(&self, tensor: usize) -> f32 {
        pow2_f64(self.layout.tensors[tensor].lsb_log2) as f32
    }

    /// Gives the weights of a tensor as little-endian `f32`, some at a time.
    ///
    /// # Errors
    /// The receiver's.
    pub fn weight_bytes<E>(
        &self,
        tensor: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let len = self.layout.tensors[tensor].len;
        let mut weights = [0.0; SUPERBLOCK_PARAMETERS];
        let mut bytes = Vec::with_capacity(4 * weights.len());
        for first in (0..len).step_by(weights.len()) {
            let weights = &mut weights[..(len - first).min(SUPERBLOCK_PARAMETERS)];
            self.write_part(tensor, first, None, weights);
            bytes.clear();
            bytes.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
            take(&bytes)?;
        }
        Ok(())
    }

    /// The hash of layout and values: two states with one hash are the same model.
    ///
    /// BLAKE3 under the context `rumormill v1 state` over the number of tensors, each tensor's name
    /// and shape (lengths as `u64`), `offset`, `len` (as `u64`) and LSB logarithm (`i32`), then the
    /// values; all little-endian.
    pub fn hash(&self) -> [u8; 32] {
        /// Values turned to bytes at a time; the hash takes several kilobytes at once best.
        const CHUNK: usize = 4096;
        let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 state");
        let count = |hasher: &mut blake3::Hasher, count: usize| {
            hasher.update(&(count as u64).to_le_bytes());
        };
        count(&mut hasher, self.layout.tensors.len());
        for tensor in &self.layout.tensors {
            count(&mut hasher, tensor.name.len());
            hasher.update(tensor.name.as_bytes());
            count(&mut hasher, tensor.shape.len());
            tensor.shape.iter().for_each(|&extent| count(&mut hasher, extent));
            count(&mut hasher, tensor.offset);
            count(&mut hasher, tensor.len);
            hasher.update(&tensor.lsb_log2.to_le_bytes());
        }
        let mut bytes = [0; 4 * CHUNK];
        for (tensor, Tensor { len, .. }) in self.layout.tensors.iter().enumerate() {
            self.read(tensor, 0, *len, |_, values| {
                for values in values.chunks(CHUNK) {
                    let bytes = &mut bytes[..4 * values.len()];
                    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                        *bytes = value.to_le_bytes();
                    }
                    hasher.update(bytes);
                }
            });
        }
        hasher.finalize().into()
    }
}

/// Whether they are the same model, whatever of it is settled.
impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        let read = |state: &State| {
            let mut state = state.clone();
            state.settle(1);
            state.values
        };
        let settled = self.owed.is_empty() && other.owed.is_empty();
        self.layout == other.layout
            && if settled { self.values == other.values } else { read(self) == read(other) }
    }
}

impl Eq for State {}

/// One end of a probe: `view ± ε · direction` with `ε = 2^epsilon_log2`.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The direction.
    pub direction: &'a Direction,
    /// Binary logarithm of ε.
    pub epsilon_log2: i32,
    /// Which end.
    pub plus: bool,
}

impl End<'_> {
    /// What is added where the direction's sign is plus.
    ///
    /// # Panics
    /// If ε is not a normal `f32`.
    pub(crate) fn step(&self) -> f32 {
        let log2 = self.epsilon_log2;
        assert!((-126..=127).contains(&log2), "2^{log2} is a normal f32");
        let epsilon = pow2_f64(log2) as f32;
        if self.plus { epsilon } else { -epsilon }
    }
}

/// Parameters whose signs are generated at a time.
const SUPERBLOCK_PARAMETERS: usize = BLOCK_PARAMETERS * kernel::SUPERBLOCK;

/// Gives a direction's signs of `len` parameters of a tensor from `first` on, a superblock at a time: which of the
/// parameters, the signs of their blocks, and where in these the first of them is.
fn by_superblock(
    direction: &Direction,
    tensor: usize,
    first: usize,
    len: usize,
    mut take: impl FnMut(Range<usize>, &[SignBlock], usize),
) {
    let mut signs = kernel::Lines([[0; 16]; kernel::SUPERBLOCK]);
    let (mut block, mut skip) = ((first / BLOCK_PARAMETERS) as u64, first % BLOCK_PARAMETERS);
    let mut at = 0;
    while at < len {
        let end = len.min(at + SUPERBLOCK_PARAMETERS - skip);
        let signs = &mut signs.0[..(skip + end - at).div_ceil(BLOCK_PARAMETERS)];
        direction.sign_words(tensor, block, signs);
        take(at..end, signs, skip);
        (at, block, skip) = (end, block + kernel::SUPERBLOCK as u64, 0);
    }
}

/// Some of a state's parameters, for a thread of their own.
#[derive(Debug)]
pub struct Part<'a> {
    pieces: Vec<Piece<'a>>,
}

/// Neighboring superblocks of one tensor.
#[derive(Debug)]
struct Piece<'a> {
    tensor: usize,
    lsb_log2: i32,
    superblock: u64,
    values: &'a mut [i32],
}

impl Part<'_> {
    /// Does to these parameters what [`State::apply`] does to all.
    pub fn apply(&mut self, payouts: &[Payout]) {
        let mut changes = Vec::with_capacity(payouts.len());
        for Piece { tensor, lsb_log2, superblock, values } in &mut self.pieces {
            changes.clear();
            let all = payouts.iter().map(|payout| (payout.direction, change_of(payout, *lsb_log2)));
            changes.extend(all.filter(|(_, change)| *change != 0));
            add_directions(values, *tensor, *superblock, &changes);
        }
    }
}

/// What a payout adds along its direction to a tensor with this LSB.
pub(crate) fn change_of(payout: &Payout, lsb_log2: i32) -> i32 {
    let (from, to) = (shift(payout.from, lsb_log2), shift(payout.to, lsb_log2));
    // The state counts modulo 2^32, and so may its changes.
    to.wrapping_sub(from) as i32
}

/// Parameters times directions for which a thread of its own is worth while.
const THREAD_WORK_MIN: usize = 1 << 22;

/// From so many directions on, counters of bits are faster than adding eight at a time; measured.
const SLICED_MIN: usize = 16;

/// Directions that one plan counts: its steps stay in the second-level cache.
const SLICED_MAX: usize = 4096;

/// Adds `change · direction` for every change to superblocks of one tensor.
fn add_directions(
    values: &mut [i32],
    tensor: usize,
    superblock: u64,
    changes: &[(Direction, i32)],
) {
    // Counters always work on whole superblocks: less than half of one is not worth it.
    let sliced = match values.len() % SUPERBLOCK_PARAMETERS {
        _ if changes.len() < SLICED_MIN => 0,
        rest if rest < SUPERBLOCK_PARAMETERS / 2 => values.len() - rest,
        _ => values.len(),
    };
    let (values, rest) = values.split_at_mut(sliced);
    if !values.is_empty() {
        for changes in changes.chunks(SLICED_MAX) {
            let mut plan = sliced::Plan::new(changes);
            for (at, values) in (superblock..).zip(values.chunks_mut(SUPERBLOCK_PARAMETERS)) {
                plan.add(values, tensor, at);
            }
        }
    }
    let superblock = superblock + (sliced / SUPERBLOCK_PARAMETERS) as u64;
    add_eights(rest, tensor, superblock * kernel::SUPERBLOCK as u64, changes);
}

/// Directions added in one visit to a superblock: their sign words fill a quarter of the
/// first-level cache, and the visit's one load and store of the state is shared by all.
const DIRECTIONS: usize = 8;

/// The same with eight directions at a time, from a block of the tensor on.
///
/// Superblock by superblock, so that the state stays in the first-level cache while all
/// directions pass over it.
fn add_eights(values: &mut [i32], tensor: usize, block: u64, changes: &[(Direction, i32)]) {
    let mut signs: [[SignBlock; kernel::SUPERBLOCK]; DIRECTIONS] = Default::default();
    let firsts = (block..).step_by(kernel::SUPERBLOCK);
    for (first, values) in firsts.zip(values.chunks_mut(SUPERBLOCK_PARAMETERS)) {
        let blocks = values.len().div_ceil(BLOCK_PARAMETERS);
        for changes in changes.chunks(DIRECTIONS) {
            let mut amounts = [0; DIRECTIONS];
            amounts.iter_mut().zip(changes).for_each(|(amount, change)| *amount = change.1);
            if blocks == 1 && changes.len() > 1 {
                // Generators start slowly: one block of all of them comes side by side.
                let of = |at: usize| &changes[at.min(changes.len() - 1)].0;
                let out = signs.each_mut().map(|signs| &mut signs[0]);
                sign_words_of(std::array::from_fn(of), tensor, first, out);
            } else {
                for ((direction, _), signs) in changes.iter().zip(&mut signs) {
                    direction.sign_words(tensor, first, &mut signs[..blocks]);
                }
            }
            match changes.len() {
                1 => kernel::add_one(values, &signs[..1], &amounts),
                2 => kernel::add_two(values, &signs[..2], &amounts),
                3 | 4 => kernel::add_four(values, &signs[..4], &amounts),
                // What the missing directions left in the buffer is added zero times.
                _ => kernel::add_eight(values, &signs, &amounts),
            }
        }
    }
}

/// `coefficient · 2^COEFFICIENT_LOG2` in units of `2^lsb_log2`, ties to even.
fn shift(coefficient: i64, lsb_log2: i32) -> i64 {
    let bits = lsb_log2 - COEFFICIENT_LOG2;
    match bits {
        ..=0 => coefficient.wrapping_shl(bits.unsigned_abs()),
        1..=62 => {
            let floor = coefficient >> bits;
            let rest = coefficient & ((1 << bits) - 1);
            let half = 1 << (bits - 1);
            let up = rest > half || rest == half && floor & 1 == 1;
            floor + i64::from(up)
        }
        63 => {
            // Only beyond ±2^62 is anything above one half.
            let limit = 1 << 62;
            i64::from(coefficient > limit) - i64::from(coefficient < -limit)
        }
        // At most one half in magnitude, and a tie goes to zero.
        _ => 0,
    }
}

/// The binary logarithm of a tensor's LSB: that of its largest magnitude, rounded up, less
/// [`RESOLUTION_LOG2`].
fn lsb_log2(base: &[f32]) -> i32 {
    let magnitude = base.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    if magnitude == 0.0 {
        return MAGNITUDE_LOG2_ZERO - RESOLUTION_LOG2;
    }
    // Below the minimum, subnormal numbers included, the logarithm does not matter.
    let bits = magnitude.to_bits();
    let floor = (bits >> 23) as i32 - 127;
    let ceil = floor + i32::from(bits & ((1 << 23) - 1) != 0);
    ceil.max(MAGNITUDE_LOG2_MIN) - RESOLUTION_LOG2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Round, RunId, Slot};

    /// Three tensors: across several superblocks, a few parameters of another magnitude, one alone.
    fn some_state() -> State {
        let specs = vec![
            TensorSpec::new("a", &[173, 100]),
            TensorSpec::new("b", &[7]),
            TensorSpec::new("c", &[]),
        ];
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 0, 0);
        let mut base: Vec<f32> = (0..17_300).map(|_| rng.symmetric(0.1)).collect();
        base.extend([100.0, -3.5, 0.0, 1.0, 2.0, 3.0, 4.0, 0.001]);
        State::from_base(specs, base).unwrap()
    }

    fn direction(slot: u32) -> Direction {
        Direction::new(&RunId([1; 32]), Round(0), Slot(slot))
    }

    /// The rule as it is written, in wide integers and one parameter at a time.
    fn apply_slowly(state: &mut State, payouts: &[Payout]) {
        let divide = |coefficient: i64, lsb_log2: i32| -> i128 {
            let unit = 1i128 << (lsb_log2 - COEFFICIENT_LOG2);
            let (floor, rest) = (
                i128::from(coefficient).div_euclid(unit),
                i128::from(coefficient).rem_euclid(unit),
            );
            match (2 * rest).cmp(&unit) {
                std::cmp::Ordering::Less => floor,
                std::cmp::Ordering::Equal => floor + floor.rem_euclid(2),
                std::cmp::Ordering::Greater => floor + 1,
            }
        };
        for (index, tensor) in state.layout.tensors.iter().enumerate() {
            for payout in payouts {
                let change =
                    divide(payout.to, tensor.lsb_log2) - divide(payout.from, tensor.lsb_log2);
                let mut words = vec![[0; 16]; tensor.len.div_ceil(BLOCK_PARAMETERS)];
                payout.direction.sign_words(index, 0, &mut words);
                for p in 0..tensor.len {
                    let set = words[p / 512][p % 16] >> (31 - p % 512 / 16) & 1;
                    let signed = if set == 1 { -change } else { change };
                    let value = &mut state.values[tensor.offset + p];
                    *value = (i128::from(*value) + signed) as i32;
                }
            }
        }
    }

    fn payouts(rng: &mut crate::sample::KeyedRng, count: u32) -> Vec<Payout> {
        let mut coefficient = || rng.next_u64() as i64 >> (20 + rng.index(44));
        (0..count)
            .map(|slot| Payout {
                direction: direction(slot),
                from: coefficient(),
                to: coefficient(),
            })
            .collect()
    }

    #[test]
    fn lsb_leaves_128_times_the_largest_magnitude() {
        let lsbs: Vec<i32> = some_state().layout.tensors.iter().map(|t| t.lsb_log2).collect();
        assert_eq!(lsbs, [-27, -17, -30]);
        assert_eq!(lsb_log2(&[1.0, -0.5]), -24);
        assert_eq!(lsb_log2(&[1.0f32.next_up()]), -23);
        assert_eq!(lsb_log2(&[0.0, 1e-40]), -30);
    }

    #[test]
    fn base_is_rounded_to_the_nearest_unit() {
        let ulps = |value: f32| (value as f64 * pow2_f64(-24)) as f32;
        let base = [1.0, ulps(0.5), ulps(1.5), ulps(-2.5), ulps(0.75)];
        let state = State::from_base(vec![TensorSpec::new("a", &[5])], base.to_vec()).unwrap();
        assert_eq!(state.values, [1 << 24, 0, 2, -2, 1]);
    }

    #[test]
    fn wrong_bases_are_refused() {
        let specs = || vec![TensorSpec::new("a", &[2])];
        let short = State::from_base(specs(), vec![1.0]);
        assert_eq!(short, Err(StateError::Length { values: 1, parameters: 2 }));
        for value in [f32::NAN, f32::INFINITY, -1e30] {
            let error = State::from_base(specs(), vec![0.0, value]).unwrap_err();
            assert!(matches!(error, StateError::Value { index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn fast_application_equals_the_slow_one() {
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 1, 0);
        for count in [0, 1, 2, 3, 5, 8, 9, 27, 61] {
            let payouts = payouts(&mut rng, count);
            let (mut fast, mut slow) = (some_state(), some_state());
            fast.apply(&payouts);
            apply_slowly(&mut slow, &payouts);
            assert!(fast == slow, "{count} payouts");
        }
    }

    /// Every way of adding on sizes around their borders, with amounts at the ends of their range.
    #[test]
    fn all_kernels_equal_the_slow_one_whatever_size_and_amount() {
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 2, 0);
        for len in [1, 511, 513, 4095, 4096, 8191, 8192, 8193, 12_289, 20_000] {
            for count in [1, 2, 7, 8, 15, 16, 17, 32, 100] {
                let base: Vec<i32> = (0..len).map(|_| rng.next_u32() as i32).collect();
                let changes: Vec<(Direction, i32)> = (0..count)
                    .map(|slot| {
                        let amount = match slot % 7 {
                            0 => i32::MIN,
                            1 => i32::MAX,
                            2 => -1,
                            bits => rng.next_u32() as i32 >> (5 * bits),
                        };
                        (direction(slot), amount)
                    })
                    .collect();
                let mut slow = base.clone();
                let mut words = vec![[0; 16]; (len as usize).div_ceil(BLOCK_PARAMETERS)];
                for (direction, amount) in &changes {
                    direction.sign_words(3, 0, &mut words);
                    for (p, value) in slow.iter_mut().enumerate() {
                        let set = words[p / 512][p % 16] >> (31 - p % 512 / 16) & 1;
                        let signed = if set == 1 { amount.wrapping_neg() } else { *amount };
                        *value = value.wrapping_add(signed);
                    }
                }
                let [mut any, mut eights, mut sliced] = std::array::from_fn(|_| base.clone());
                add_directions(&mut any, 3, 0, &changes);
                add_eights(&mut eights, 3, 0, &changes);
                let mut plan = sliced::Plan::new(&changes);
                for (at, values) in (0..).zip(sliced.chunks_mut(SUPERBLOCK_PARAMETERS)) {
                    plan.add(values, 3, at);
                }
                assert!(any == slow, "{len} parameters, {count} directions");
                assert!(eights == slow, "{len} parameters, {count} directions by eight");
                assert!(sliced == slow, "{len} parameters, {count} directions by bits");
            }
        }
    }

    /// Whoever reads sees nothing of what is owed; what is due at last is what was due at once.
    #[test]
    fn tables_that_are_owed_changes_are_read_as_if_they_had_them() {
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 4, 0);
        for steps in
            [&[1; 7][..], &[1; 15], &[1; 16], &[1; 40], &[3, 5, 1, 2], &[9, 9, 9], &[40, 1]]
        {
            for tables in [&[][..], &[0], &[1, 2], &[0, 1, 2]] {
                let (mut lazy, mut at_once) = (some_state(), some_state());
                for &step in steps {
                    let payouts = payouts(&mut rng, step);
                    let before = lazy.mark();
                    lazy.apply_lazily(2, &payouts, tables);
                    at_once.apply(&payouts);
                    assert!(!before.is(&lazy.mark()));
                }
                let due =
                    |due: u32, step: &u32| Some(due + step).filter(|due| *due < 16).unwrap_or(0);
                let due = if tables.is_empty() { 0 } else { steps.iter().fold(0, due) };
                assert_eq!(lazy.owed.payouts.len(), due as usize);
                assert!(lazy == at_once && lazy.hash() == at_once.hash());
                let mut of_both = [&lazy, &at_once].map(|state| {
                    let mut written = [vec![0.0; 17_308], vec![0.0; 17_308], vec![0.0; 17_308]];
                    let [view, plus, minus] = &mut written;
                    state.write_view(view);
                    state.write_pair(&direction(99), -7, plus, minus);
                    for (first, len) in [(0, 1), (384, 384), (1000, 5_000), (17_000, 300)] {
                        let end = End { direction: &direction(99), epsilon_log2: -7, plus: true };
                        state.write_part(0, first, Some(end), &mut plus[first..first + len]);
                        let ends = [&mut plus[first..], &mut minus[first..]];
                        let [plus, minus] = ends.map(|end| &mut end[..len]);
                        state.write_pair_part(0, first, (&direction(98), -7), plus, minus);
                    }
                    let mut sum = some_state();
                    sum.add(state);
                    sum.subtract(&some_state());
                    (written, sum.values)
                });
                let [lazily, once] = &mut of_both;
                assert!(lazily == once, "{steps:?} for {tables:?}");
                lazy.settle(2);
                assert_eq!(lazy.values(), at_once.values());
                // Another set of tables, and none.
                lazy.apply_lazily(1, &payouts(&mut rng, 2), tables);
                lazy.apply_lazily(1, &[], &[]);
                assert!(lazy.owed.is_empty());
            }
        }
    }

    #[test]
    #[should_panic(expected = "settled before its values are read")]
    fn values_are_not_read_while_something_is_owed() {
        let mut state = some_state();
        state.apply_lazily(1, &[Payout { direction: direction(1), from: 0, to: 1 << 30 }], &[0]);
        state.values();
    }

    #[test]
    fn a_mark_is_kept_by_copies_and_lost_with_any_change() {
        let mut state = some_state();
        let (before, copy) = (state.mark(), state.clone());
        assert!(before.is(&copy.mark()) && before.is(&state.mark()));
        assert!(!before.is(&some_state().mark()), "equal values, but nobody knows");
        let changes: [fn(&mut State); 3] = [
            |state| state.apply(&[]),
            |state| state.add(&some_state()),
            |state| state.subtract(&some_state()),
        ];
        for change in changes {
            let before = state.mark();
            change(&mut state);
            assert!(!before.is(&state.mark()));
        }
        assert!(state == copy, "marks take no part in comparisons");
    }

    #[test]
    fn parts_of_a_state_together_are_the_state() {
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 3, 0);
        for (parts, count) in [(1, 3), (2, 1), (2, 40), (3, 40), (9, 20)] {
            let payouts = payouts(&mut rng, count);
            let (mut whole, mut split) = (some_state(), some_state());
            whole.apply(&payouts);
            let mut pieces = split.split(parts);
            assert!(pieces.len() <= parts);
            pieces.iter_mut().rev().for_each(|part| part.apply(&payouts));
            assert!(whole == split, "{parts} parts, {count} payouts");
        }
        // Work for one thread and for several.
        for count in [0, 1, 1000] {
            let (mut whole, mut shared) = (some_state(), some_state());
            let payouts = payouts(&mut rng, count);
            whole.apply(&payouts);
            shared.apply_in_threads(3, &payouts);
            assert!(whole == shared, "{count} payouts in threads");
        }
        assert!(1000 * some_state().layout().dim() > 2 * THREAD_WORK_MIN);
    }

    #[test]
    fn sign_of_a_payout_is_that_of_the_direction() {
        let mut state = some_state();
        let before = state.clone();
        state.apply(&[Payout { direction: direction(4), from: 0, to: coefficient(0.25) }]);
        for (index, tensor) in before.layout.tensors.iter().enumerate() {
            for p in (0..tensor.len).step_by(if index == 0 { 97 } else { 1 }) {
                let change = state.values[tensor.offset + p] - before.values[tensor.offset + p];
                let unit = 1 << (-2 - tensor.lsb_log2);
                assert_eq!(change, i32::from(direction(4).sign(index, p as u64)) * unit);
            }
        }
    }

    #[test]
    fn replacing_a_coefficient_leaves_no_trace_of_the_first() {
        let (a, b) = (coefficient(0.123_456_789), coefficient(-0.000_98));
        let mut replaced = some_state();
        replaced.apply(&[Payout { direction: direction(0), from: 0, to: a }]);
        replaced.apply(&[Payout { direction: direction(0), from: a, to: b }]);
        let mut at_once = some_state();
        at_once.apply(&[Payout { direction: direction(0), from: 0, to: b }]);
        assert!(replaced == at_once);
        at_once.apply(&[Payout { direction: direction(0), from: b, to: 0 }]);
        assert!(at_once == some_state());
    }

    #[test]
    fn view_is_the_base_within_half_a_unit() {
        let mut view = vec![0.0; 17_308];
        some_state().write_view(&mut view);
        assert_eq!(view[17_300..17_303], [100.0, -3.5, 0.0]);
        let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", 0, 0);
        assert!(view[..17_300].iter().all(|v| (v - rng.symmetric(0.1)).abs() <= 0.5f32.powi(28)));
    }

    #[test]
    fn pair_is_the_view_plus_and_minus_epsilon() {
        let state = some_state();
        let (mut view, mut plus) = (vec![0.0; 17_308], vec![0.0; 17_308]);
        let mut minus = plus.clone();
        state.write_view(&mut view);
        state.write_pair(&direction(1), -7, &mut plus, &mut minus);
        for (index, tensor) in state.layout.tensors.iter().enumerate() {
            for p in (0..tensor.len).step_by(if index == 0 { 41 } else { 1 }) {
                let step = f32::from(direction(1).sign(index, p as u64)) / 128.0;
                let i = tensor.offset + p;
                assert_eq!((plus[i], minus[i]), (view[i] + step, view[i] - step));
            }
        }
    }

    #[test]
    fn parts_written_alone_are_those_of_the_whole() {
        const RANGES: [(usize, usize); 8] = [
            (0, 20_000),
            (3, 5),
            (100, 17_000),
            (511, 513),
            (512, 1024),
            (768, 1152),
            (8_192, 17_000),
            (16_896, 20_000),
        ];
        let state = some_state();
        let mut whole = [vec![0.0; 17_308], vec![0.0; 17_308], vec![0.0; 17_308]];
        let [plus, minus, view] = &mut whole;
        state.write_view(view);
        state.write_pair(&direction(1), -7, plus, minus);
        let direction = direction(1);
        let end = |plus| Some(End { direction: &direction, epsilon_log2: -7, plus });
        for (index, tensor) in state.layout.tensors.iter().enumerate() {
            for (end, whole) in [end(true), end(false), None].into_iter().zip(&whole) {
                for (from, to) in RANGES {
                    let (from, to) = (from.min(tensor.len), to.min(tensor.len));
                    let mut alone = vec![0.0; to - from];
                    state.write_part(index, from, end, &mut alone);
                    assert_eq!(alone, whole[tensor.offset + from..tensor.offset + to]);
                }
            }
            // Both ends, where they begin with a line of the cache and elsewhere.
            for (from, to) in RANGES {
                let (from, to) = (from.min(tensor.len), to.min(tensor.len));
                let range = tensor.offset + from..tensor.offset + to;
                for beside in 0..16 {
                    let mut ends = [vec![0.0; range.len() + 16], vec![0.0; range.len() + 16]];
                    let [plus, minus] = ends.each_mut().map(|end| {
                        let first = end.as_ptr().align_offset(64) + beside;
                        &mut end[first % 16..][..range.len()]
                    });
                    state.write_pair_part(index, from, (&direction, -7), plus, minus);
                    assert_eq!(plus, &whole[0][range.clone()]);
                    assert_eq!(minus, &whole[1][range.clone()]);
                }
            }
        }
    }

    #[test]
    fn hash_sees_values_names_and_shapes() {
        let state = |name: &str, shape: &[usize], first: f32| {
            State::from_base(vec![TensorSpec::new(name, shape)], vec![first, 0.5]).unwrap().hash()
        };
        let hash = state("a", &[2], 0.0);
        assert_eq!(hash, state("a", &[2], 0.0));
        assert_ne!(hash, state("b", &[2], 0.0));
        assert_ne!(hash, state("a", &[2, 1], 0.0));
        assert_ne!(hash, state("a", &[2], 0.25));
    }

    #[test]
    fn coefficient_rounds_ties_to_even_and_saturates() {
        let unit = pow2_f64(COEFFICIENT_LOG2);
        for (units, expected) in [(0.5, 0), (1.5, 2), (-2.5, -2), (2.75, 3), (-7.0, -7)] {
            assert_eq!(coefficient(units * unit), expected);
        }
        assert_eq!(coefficient(1e300), i64::MAX);
        assert_eq!(coefficient(f64::NEG_INFINITY), i64::MIN);
        assert_eq!(coefficient(f64::NAN), 0);
    }

    #[test]
    fn shift_rounds_ties_to_even_at_any_distance() {
        assert_eq!(
            [5, 6, 7, -5, -6, -7, 2, -2].map(|c| shift(c, -38)),
            [1, 2, 2, -1, -2, -2, 0, 0]
        );
        assert_eq!(shift(i64::MAX, 22), 2);
        assert_eq!((shift(i64::MAX, 23), shift(i64::MIN, 23)), (1, -1));
        assert_eq!((shift(1 << 62, 23), shift(i64::MIN, 24), shift(i64::MAX, 60)), (0, 0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn order_and_split_do_not_matter(seed: u64, count in 1u32..40, cut in 0u32..40) {
            let mut rng = crate::sample::KeyedRng::from_seed("rumormill v1 test", seed, 1);
            let mut payouts = payouts(&mut rng, count);
            let mut at_once = some_state();
            at_once.apply(&payouts);
            rng.shuffle(&mut payouts);
            let (first, second) = payouts.split_at(cut.min(count) as usize);
            let mut in_parts = some_state();
            in_parts.apply(first);
            in_parts.apply(second);
            prop_assert!(at_once == in_parts);
        }
    }
}
