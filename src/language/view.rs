//! The weights of forward passes: written from the state when they are needed, and over those used before.
//!
//! One room serves for the halves of all layers, attention and feed-forward. A probe takes both of its ends through
//! them side by side: the weights of a half are written at both ends, from one look at the state and at the direction's
//! signs, and stay in the caches for the products that follow. Each end on its own would read the state in two cores,
//! after which its next update takes twice as long (`experiments/results/2026-11-27-lines`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::state::StateCopy;
use super::load::Core;
use super::model::{self, Half, Model, Table, TableRows, Weights};
use super::op;
use super::spec::Task;
use crate::direction::Direction;
use crate::params::{End, State, TensorSpec};

/// What weights are written from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A state, or one end of a probe.
    One(&'a State, Option<End<'a>>),
    /// Both ends of a probe along a direction, so far apart (the logarithm of ε).
    Both(&'a State, &'a Direction, i32),
    /// Values in the order of the flat parameters, for one end or two.
    Given(&'a [&'a [f32]], &'a Core),
}

impl<'a> Source<'a> {
    /// How many models it is: two at both ends of a probe.
    pub(super) fn ends(&self) -> usize {
        match self {
            Source::One(..) => 1,
            Source::Both(..) => 2,
            Source::Given(ends, _) => ends.len(),
        }
    }

    /// One of the ends, plus or the first before minus or the second.
    pub(super) fn at(&self, end: usize) -> Source<'a> {
        match *self {
            Source::One(..) => *self,
            Source::Both(state, direction, epsilon_log2) => {
                Source::One(state, Some(End { direction, epsilon_log2, plus: end == 0 }))
            }
            Source::Given(ends, core) => Source::Given(&ends[end..=end], core),
        }
    }

    /// Writes parameters of a tensor, from number `first` on, for one of the ends.
    pub(super) fn write(&self, end: usize, tensor: usize, first: usize, out: &mut [f32]) {
        match self.at(end) {
            Source::One(state, end) => state.write_part(tensor, first, end, out),
            Source::Given(&[values, ..], core) => {
                let from = core.offsets[tensor] + first;
                out.copy_from_slice(&values[from..from + out.len()]);
            }
            _ => unreachable!("one of the ends is one"),
        }
    }

    /// The same for two ends at once.
    pub(super) fn write_both(&self, tensor: usize, first: usize, [a, b]: [&mut [f32]; 2]) {
        match *self {
            Source::Both(state, direction, epsilon_log2) => {
                state.write_pair_part(tensor, first, (direction, epsilon_log2), a, b);
            }
            _ => {
                self.write(0, tensor, first, a);
                self.write(1, tensor, first, b);
            }
        }
    }
}

/// Where a thread keeps the weights of a language model; empty until the first probe, and in a copy.
#[derive(Default)]
pub struct Slot(pub(super) Option<Box<View>>);

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

/// The weights of one end.
pub(super) struct Weighted {
    pub(super) model: Model,
    /// Matrix and bias of the head.
    pub(super) classifier: Option<(Tensor, Tensor)>,
}

/// Room for the trained weights, and the transformer over them.
pub(super) struct View {
    pub(super) core: Arc<Core>,
    rooms: Rooms,
    /// By the end.
    pub(super) ends: Vec<Weighted>,
    /// The state, where the weights are on a device.
    #[cfg(feature = "cuda")]
    pub(super) copy: Option<StateCopy>,
}

/// Where trained weights are written.
enum Rooms {
    /// At both ends.
    Halves {
        /// For the longest half of a layer; the first dimension is the ends.
        room: Tensor,
        /// What each half has of it.
        places: BTreeMap<Half, Vec<Place>>,
        /// For what is in front of the layers and behind them.
        around: Tensor,
        /// What it has there.
        around_places: Vec<Place>,
    },
    /// One tensor of all weights of one end, and where each begins and its length.
    All(Tensor, Vec<(usize, usize)>),
}

/// Where a trained tensor is in a room.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its number.
    pub(super) tensor: usize,
    /// Where it begins.
    pub(super) at: usize,
    /// Its length.
    pub(super) len: usize,
}

/// Rows of a table written by one thread at a time.
const ROWS_CHUNK: usize = 16;

/// Values that a tensor in a room begins at a multiple of: whole lines of the cache are written and read.
const ALIGNMENT: usize = 64;

/// Where tensors of these lengths begin in a room, each with its length; and the room's own length.
pub(super) fn places_in_view(lengths: impl Iterator<Item = usize>) -> (Vec<(usize, usize)>, usize) {
    let mut end = 0usize;
    let place = |len: usize| {
        let at = end.next_multiple_of(ALIGNMENT);
        end = at + len;
        (at, len)
    };
    let places = lengths.map(place).collect();
    (places, end)
}

#[cfg(test)]
thread_local! {
    /// Has main memory hold all weights of one end, as a device does.
    pub(super) static WHOLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether weights are written by halves of layers, at both ends at once, and texts shared out to threads. A device, which
/// has threads enough, has all weights of one end.
pub(super) fn by_half(device: &Device) -> bool {
    #[cfg(test)]
    if WHOLE.get() {
        return false;
    }
    device.is_cpu()
}

impl View {
    pub(super) fn new(core: Arc<Core>) -> Result<View> {
        let by_half = by_half(&core.device);
        let causal = core.spec.task == Task::Causal;
        let (rooms, tensors) = match by_half {
            true => View::rooms_of_halves(&core)?,
            false => View::rooms_of_all(&core)?,
        };
        let weighted = |room_of: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Weighted> {
            let mut weights = core.fixed.clone();
            let mut tables = BTreeMap::new();
            for (index, (name, room)) in core.trained.iter().zip(&tensors).enumerate() {
                if let Some(room) = room {
                    let shape = &core.tensors[index].shape[..];
                    weights.insert(name.clone(), room_of(room)?.reshape(shape)?);
                }
                if by_half && !model::is_read_whole(&core.config, name, causal) {
                    tables.insert(name.clone(), (index, core.tensors[index].shape[1]));
                }
            }
            let part = |part: &str| weights.get(&format!("classifier.{part}")).cloned();
            let classifier = part("weight").zip(part("bias"));
            let positions = core.spec.tokens as usize;
            let weights = Weights { tensors: &weights, tables: &tables };
            let model = Model::new(&core.config, &weights, positions, &core.device)?;
            Ok(Weighted { model, classifier })
        };
        let ends = match by_half {
            true => vec![weighted(&|room| room.get(0))?, weighted(&|room| room.get(1))?],
            false => vec![weighted(&|room| Ok(room.clone()))?],
        };
        Ok(View {
            ends,
            rooms,
            core: Arc::clone(&core),
            #[cfg(feature = "cuda")]
            copy: None,
        })
    }

    /// Rooms for the weights of half a layer at both ends, and for those in front of the layers and behind them; and
    /// what each trained tensor has of them, by the end: nothing for a table of which only rows are read.
    fn rooms_of_halves(core: &Core) -> Result<(Rooms, Vec<Option<Tensor>>)> {
        let causal = core.spec.task == Task::Causal;
        let mut parts: BTreeMap<Option<Half>, Vec<usize>> = BTreeMap::new();
        for (tensor, name) in core.trained.iter().enumerate() {
            if model::is_read_whole(&core.config, name, causal) {
                parts.entry(model::half_of(&core.config, name)).or_default().push(tensor);
            }
        }
        let placed = |tensors: Vec<usize>| {
            let (places, len) = places_in_view(tensors.iter().map(|&at| core.tensors[at].len()));
            let place = |(tensor, (at, len))| Place { tensor, at, len };
            (tensors.into_iter().zip(places).map(place).collect::<Vec<Place>>(), len)
        };
        let new_room = |len: usize| {
            let len = len.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
            Tensor::zeros((2, len), DType::F32, &core.device)
        };
        let (around_places, len) = placed(parts.remove(&None).unwrap_or_default());
        let around = new_room(len)?;
        let (mut places, mut longest) = (BTreeMap::new(), 0);
        for (half, tensors) in parts {
            let (own, len) = placed(tensors);
            longest = longest.max(len);
            places.extend(half.map(|half| (half, own)));
        }
        let room = new_room(longest)?;
        let mut tensors = vec![None; core.trained.len()];
        let of_halves = places.values().map(|places| (&room, places));
        for (room, places) in of_halves.chain([(&around, &around_places)]) {
            for &Place { tensor, at, len } in places {
                tensors[tensor] = Some(room.narrow(1, at, len)?);
            }
        }
        Ok((Rooms::Halves { room, places, around, around_places }, tensors))
    }

    /// A room for all weights of one end, and what each trained tensor has of it.
    fn rooms_of_all(core: &Core) -> Result<(Rooms, Vec<Option<Tensor>>)> {
        let (places, len) = places_in_view(core.tensors.iter().map(TensorSpec::len));
        let all = Tensor::zeros(len, DType::F32, &core.device)?;
        let of = |&(at, len): &(usize, usize)| Ok(Some(all.narrow(0, at, len)?));
        let tensors = places.iter().map(of).collect::<Result<_>>()?;
        Ok((Rooms::All(all, places), tensors))
    }

    /// Writes what a source has beside the layers; on a device, everything. From here on passes run with this
    /// source alone.
    pub(super) fn begin(&mut self, source: &Source<'_>) -> Result<()> {
        let (room, places) = match &self.rooms {
            Rooms::All(room, places) => (room, places),
            Rooms::Halves { around, around_places: places, .. } => {
                return around.inplace_op1(&op::Write { source, places });
            }
        };
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), Source::One(state, _)) = (&self.core.device, source) {
            match &mut self.copy {
                Some(copy) if copy.is_of(&state.mark()) => (),
                Some(copy) if copy.fits(state) => copy.renew(state)?,
                _ => self.copy = Some(StateCopy::new(device, state, places)?),
            }
        }
        room.inplace_op1(&op::WriteAll {
            source,
            places,
            #[cfg(feature = "cuda")]
            copy: self.copy.as_ref(),
        })
    }

    /// Writes the weights of half a layer over those of the half before, unless all are there.
    pub(super) fn write_half(&self, source: &Source<'_>, half: Half) -> Result<()> {
        let Rooms::Halves { room, places, .. } = &self.rooms else { return Ok(()) };
        match places.get(&half) {
            Some(places) => room.inplace_op1(&op::Write { source, places }),
            None => Ok(()),
        }
    }

    /// Rows of a table of the model, by the end, written where the table stands nowhere. Their numbers ascend.
    pub(super) fn rows(
        &self,
        source: &Source<'_>,
        ends: usize,
        table: impl for<'m> Fn(&'m Model) -> &'m Table,
        numbers: Vec<u32>,
    ) -> Result<Vec<TableRows>> {
        let (tensor, width) = match table(&self.ends[0].model) {
            Table::Whole(_) => {
                let whole = |end: &Weighted| table(&end.model).whole().clone();
                let ends = self.ends[..ends].iter().map(whole);
                return Ok(ends.map(|matrix| TableRows { numbers: None, matrix }).collect());
            }
            &Table::Rows { tensor, width } => (tensor, width),
        };
        let mut values = vec![vec![0.0; numbers.len() * width]; ends];
        let some = numbers.par_chunks(ROWS_CHUNK);
        match &mut values[..] {
            [plus, minus] => {
                let plus = plus.par_chunks_mut(ROWS_CHUNK * width);
                let minus = minus.par_chunks_mut(ROWS_CHUNK * width);
                some.zip(plus).zip(minus).for_each(|((numbers, plus), minus)| {
                    for (first, range) in runs(numbers, width) {
                        let ends = [&mut plus[range.clone()], &mut minus[range]];
                        source.write_both(tensor, first, ends);
                    }
                });
            }
            ends => ends.iter_mut().enumerate().for_each(|(end, out)| {
                let out = out.par_chunks_mut(ROWS_CHUNK * width);
                some.clone().zip(out).for_each(|(numbers, out)| {
                    for (first, range) in runs(numbers, width) {
                        source.write(end, tensor, first, &mut out[range]);
                    }
                });
            }),
        }
        let shape = (numbers.len(), width);
        let numbers: Arc<[u32]> = numbers.into();
        let rows = values.into_iter().map(|values| {
            let matrix = Tensor::from_vec(values, shape, &self.core.device)?;
            Ok(TableRows { numbers: Some(Arc::clone(&numbers)), matrix })
        });
        rows.collect()
    }
}

/// Of rows that follow each other in a table and where they are written: the first parameter, and the place.
fn runs(numbers: &[u32], width: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = 0;
    numbers.chunk_by(|a, b| a + 1 == *b).map(move |run| {
        let begin = at;
        at += run.len() * width;
        (run[0] as usize * width, begin..at)
    })
}
