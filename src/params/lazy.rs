//! Changes that large tables of a state are owed.
//!
//! A step along one direction changes every parameter, and where only some rows of a table are read before the next
//! step, most of what it costs is reading and writing the others. They may wait until many directions are due, of
//! which each costs a fraction (see [`State::apply`]). Whoever reads rows before gets them with what they are owed, so
//! that nobody can tell: addition modulo 2^32 has no order.

use std::ops::Range;

use super::{BLOCK_PARAMETERS, Payout, SLICED_MIN, State, add_eights, change_of};
use crate::direction::Direction;

/// Parameters settled at a time for a reader: a row of most tables and what lies about it.
const PIECE: usize = 4 * BLOCK_PARAMETERS;

/// What the values of some tensors do not have yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Owed {
    /// Numbers of the tensors.
    tables: Vec<usize>,
    /// Fewer than [`SLICED_MIN`].
    pub(super) payouts: Vec<Payout>,
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.payouts.is_empty()
    }
}

impl State {
    /// Does what [`State::apply_in_threads`] does; but large tables, tensors with these numbers, may get it later. For
    /// callers that read few of their rows until then, by [`State::write_part`] and [`State::write_pair_part`].
    pub fn apply_lazily(&mut self, threads: usize, payouts: &[Payout], tables: &[usize]) {
        if self.owed.tables != tables {
            self.settle(threads);
            self.owed.tables = tables.to_vec();
        }
        let at_once = self.owed.is_empty() && payouts.len() >= SLICED_MIN;
        if tables.is_empty() || at_once {
            return self.apply_in_threads(threads, payouts);
        }
        self.apply_to(|tensor| !tables.contains(&tensor), threads, payouts);
        self.owed.payouts.extend_from_slice(payouts);
        if self.owed.payouts.len() >= SLICED_MIN {
            self.settle(threads);
        }
    }

    /// Makes all changes that are owed, in up to so many threads.
    pub fn settle(&mut self, threads: usize) {
        if self.owed.is_empty() {
            return;
        }
        let Owed { tables, mut payouts } = std::mem::take(&mut self.owed);
        self.apply_to(|tensor| tables.contains(&tensor), threads, &payouts);
        payouts.clear();
        self.owed = Owed { tables, payouts };
    }

    /// Gives `len` parameters of a tensor from `first` on as they are when settled, some at a time: which of them,
    /// and their values.
    ///
    /// # Panics
    /// If the tensor does not have these parameters.
    pub(super) fn read(
        &self,
        tensor: usize,
        first: usize,
        len: usize,
        mut take: impl FnMut(Range<usize>, &[i32]),
    ) {
        let of = &self.layout.tensors[tensor];
        let all = &self.values[of.offset..of.offset + of.len];
        let (end, values) = (first + len, &all[first..first + len]);
        if self.owed.is_empty() || !self.owed.tables.contains(&tensor) {
            return take(0..len, values);
        }
        let changes = self.owed.payouts.iter();
        let changes = changes.map(|payout| (payout.direction, change_of(payout, of.lsb_log2)));
        let changes: Vec<(Direction, i32)> = changes.filter(|(_, change)| *change != 0).collect();
        let mut room = [0; PIECE];
        let mut at = first;
        while at < end {
            let block = at / BLOCK_PARAMETERS;
            let begin = block * BLOCK_PARAMETERS;
            let next = end.min(begin + PIECE);
            // Whole blocks, as directions have signs by the block.
            let whole = begin..all.len().min(next.next_multiple_of(BLOCK_PARAMETERS));
            let room = &mut room[..whole.len()];
            room.copy_from_slice(&all[whole]);
            // One by one, for eight directions side by side.
            for (block, values) in (block as u64..).zip(room.chunks_mut(BLOCK_PARAMETERS)) {
                add_eights(values, tensor, block, &changes);
            }
            take(at - first..next - first, &room[at - begin..next - begin]);
            at = next;
        }
    }
}
