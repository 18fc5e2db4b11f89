//! The means of a round of an open height, kept up to date record by record.
//!
//! A closed round is worked out again whenever records of it come late, about ten times with many
//! nodes, and most of its records are the same each time. With rule `mean` the sum of a slot's
//! values is all that is needed of them. It does not depend on the order of its terms: levels of
//! LB8 are multiples of 2⁻³⁵ below 2⁴ in units of the scale, so that the sums of 2¹⁴ of them are
//! exact in `f64`, and a slot has at most one value of each of 2¹² members.

use std::sync::Arc;

use crate::id::Origin;
use crate::lb8;
use crate::round::Deal;

/// What a round's slots add up to, of the records that were added.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    deal: Arc<Deal>,
    exponent: i32,
    /// By slot: the sum of its values, and how many there are.
    slots: Vec<(f64, u32)>,
    /// By origin: the bytes of its part that were added, and how many values they are.
    added: Vec<(u16, u16)>,
}

impl Sums {
    pub(super) fn new(deal: Arc<Deal>, exponent: i32, roster_len: usize) -> Sums {
        let slots = vec![(0.0, 0); deal.directions() as usize];
        Sums { deal, exponent, slots, added: vec![(0, 0); roster_len] }
    }

    /// Adds what is new in an origin's part of the round, which only ever grows.
    pub(super) fn add(&mut self, origin: Origin, part: &[u8]) {
        let added = usize::from(self.added[origin.index()].0);
        part.iter().skip(added).for_each(|&byte| self.push(origin, byte, part.len()));
    }

    /// Adds the byte that comes next in an origin's part, unless it is beyond its walk.
    pub(super) fn push(&mut self, origin: Origin, byte: u8, walk_len: usize) {
        let (added, values) = &mut self.added[origin.index()];
        if usize::from(*added) < walk_len {
            let slot = self.deal.slot(origin, u32::from(*added));
            *added += 1;
            if let Some(value) = lb8::decode(byte, self.exponent) {
                let (sum, count) = &mut self.slots[slot.0 as usize];
                *sum += f64::from(value);
                *count += 1;
                *values += 1;
            }
        }
    }

    /// How many values an origin has.
    pub(super) fn values_of(&self, origin: Origin) -> usize {
        self.added[origin.index()].1.into()
    }

    /// The mean of every slot that has a value.
    pub(super) fn means(&self) -> Vec<Option<f64>> {
        let mean = |&(sum, count): &(f64, u32)| (count > 0).then(|| sum / f64::from(count));
        self.slots.iter().map(mean).collect()
    }

    /// The weight of every origin under rule `mean`.
    pub(super) fn weights(&self) -> Vec<f64> {
        self.values().map(|values| f64::from(u8::from(values > 0))).collect()
    }

    /// By origin: how many values it has.
    pub(super) fn values(&self) -> impl Iterator<Item = u16> + '_ {
        self.added.iter().map(|&(_, values)| values)
    }
}
