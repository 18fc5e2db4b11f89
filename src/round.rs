//! Rounds: which origin measures which direction, and what a closed round is worth.
//!
//! A round has `K` shared directions. The members that are active are dealt in the order of a
//! keyed permutation; member number `i` of `A` starts its walk at slot position `⌊i·K/A⌋` of a
//! second keyed permutation and goes on cyclically, so that walks of equal length cover every slot
//! equally often. With private data and a rule that compares momenta, the first quarter of a walk is
//! common to all, so that they overlap.
//!
//! With private directions (*Just One Byte*) `K = A·m` and a walk is `m` slots long, so that every
//! active member has its own: nothing is measured twice. Only a member that was absent lately and
//! comes back repeats another's, until it is active again.

use crate::id::{Origin, Round, RunId, Slot};
use crate::manifest::{DataMode, Directions, Manifest};
use crate::sample::KeyedRng;

/// Number of directions in a round of `active` members: `⌈A·m / r⌉`, where no direction can have
/// more probes than there are members.
pub fn directions(manifest: &Manifest, active: usize) -> u32 {
    let active = active.max(1) as u64;
    if manifest.directions == Directions::Private {
        return active as u32 * manifest.probes_per_round;
    }
    let wanted = active * u64::from(manifest.probes_per_round) * 256;
    let redundancy = u64::from(manifest.redundancy_256).min(active * 256);
    wanted.div_ceil(redundancy).max(1) as u32
}

/// The most probes of one node in one round: `2m`, or every slot once; `m` of its own.
pub fn walk_len_max(manifest: &Manifest, directions: u32) -> u32 {
    if manifest.directions == Directions::Private {
        return manifest.probes_per_round;
    }
    (2 * manifest.probes_per_round).min(directions)
}

/// The order of slots in one round, for every origin.
#[derive(Clone, Debug)]
pub struct Deal {
    /// Keyed permutation of the slots.
    order: Vec<u32>,
    /// How many of `order` every walk begins with.
    common: usize,
    /// Start of an origin's own part, by roster position.
    starts: Vec<u32>,
}

impl Deal {
    /// Deals the slots of a round: `roster_len` origins, of which `active` are expected to work.
    pub fn new(
        manifest: &Manifest,
        run: &RunId,
        round: Round,
        roster_len: usize,
        active: &[Origin],
    ) -> Deal {
        let slots = directions(manifest, active.len()) as usize;
        let mut rng = KeyedRng::new("rumormill v1 deal", run, &[&round.0.to_le_bytes()]);
        let mut order: Vec<u32> = (0..slots as u32).collect();
        rng.shuffle(&mut order);
        let mut members: Vec<u16> = active.iter().map(|origin| origin.0).collect();
        rng.shuffle(&mut members);
        let common = match manifest.data_mode {
            DataMode::Private if manifest.selection.selection().uses_window() => {
                (manifest.probes_per_round as usize / 4).min(slots)
            }
            DataMode::Private | DataMode::Public => 0,
        };
        let rest = slots - common;
        let mut starts = vec![0; roster_len];
        let mut works = vec![false; roster_len];
        for (position, &member) in members.iter().enumerate() {
            starts[usize::from(member)] = (position * rest / members.len()) as u32;
            works[usize::from(member)] = true;
        }
        // Members that were absent lately and come back join the walk of another.
        let mut absent = 0;
        for (origin, start) in starts.iter_mut().enumerate() {
            if !works[origin] {
                *start = (absent * rest / members.len().max(1)) as u32 % rest.max(1) as u32;
                absent += 1;
            }
        }
        Deal { order, common, starts }
    }

    /// Number of directions.
    pub fn directions(&self) -> u32 {
        self.order.len() as u32
    }

    /// The slots of an origin's probes in order, from its first one on.
    pub fn walk(&self, origin: Origin) -> impl Iterator<Item = Slot> + '_ {
        let (common, rest) = self.order.split_at(self.common);
        let start = self.starts.get(origin.index()).copied().unwrap_or(0) as usize;
        let (before, after) = rest.split_at(start.min(rest.len()));
        common.iter().chain(after).chain(before).map(|&slot| Slot(slot))
    }

    /// The slot of an origin's probe number `position` (from 0, below the number of directions).
    pub fn slot(&self, origin: Origin, position: u32) -> Slot {
        let position = position as usize;
        if position < self.common {
            return Slot(self.order[position]);
        }
        let rest = self.order.len() - self.common;
        let start = self.starts.get(origin.index()).copied().unwrap_or(0) as usize;
        Slot(self.order[self.common + (start + position - self.common) % rest])
    }
}

/// The decoded records of a round, by slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundValues {
    /// For every slot the values measured along its direction, by origin, in roster order.
    pub slots: Vec<Vec<(Origin, f64)>>,
}

impl RoundValues {
    /// The value of `origin` in `slot`, if it has one.
    pub fn value(&self, slot: usize, origin: Origin) -> Option<f64> {
        let values = &self.slots[slot];
        values.binary_search_by_key(&origin, |entry| entry.0).ok().map(|at| values[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(n: u16) -> Vec<Origin> {
        (0..n).map(Origin).collect()
    }

    #[test]
    fn equal_walks_cover_every_slot_equally_often() {
        let manifest =
            Manifest { probes_per_round: 12, redundancy_256: 3 * 256, ..Manifest::template() };
        let deal = Deal::new(&manifest, &RunId([2; 32]), Round(5), 8, &members(8));
        assert_eq!(deal.directions(), 32);
        let mut probes = vec![0; 32];
        for origin in members(8) {
            for position in 0..12 {
                probes[deal.slot(origin, position).0 as usize] += 1;
            }
        }
        assert!(probes.iter().all(|&count| count == 3), "{probes:?}");
    }

    #[test]
    fn private_walks_begin_with_common_slots_and_never_repeat_one() {
        let manifest = Manifest {
            probes_per_round: 8,
            data_mode: DataMode::Private,
            selection: crate::selection::Rule::Nnm,
            ..Manifest::template()
        };
        let deal = Deal::new(&manifest, &RunId([2; 32]), Round(5), 5, &members(5));
        let walk = |origin| -> Vec<u32> {
            (0..walk_len_max(&manifest, deal.directions()))
                .map(|position| deal.slot(Origin(origin), position).0)
                .collect()
        };
        for origin in 1..5 {
            assert_eq!(walk(origin)[..2], walk(0)[..2]);
            let mut sorted = walk(origin);
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), walk(origin).len());
        }
    }

    #[test]
    fn private_directions_are_measured_once_each() {
        let manifest = Manifest {
            probes_per_round: 5,
            directions: Directions::Private,
            redundancy_256: 3 * 256,
            ..Manifest::template()
        };
        let active = [Origin(0), Origin(2), Origin(3), Origin(6)];
        let deal = Deal::new(&manifest, &RunId([2; 32]), Round(5), 7, &active);
        assert_eq!((deal.directions(), walk_len_max(&manifest, deal.directions())), (20, 5));
        let walks = active.iter().flat_map(|&origin| deal.walk(origin).take(5));
        let mut slots: Vec<u32> = walks.map(|slot| slot.0).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..20).collect::<Vec<u32>>());
    }

    #[test]
    fn a_lone_node_has_one_probe_a_direction() {
        let manifest = Manifest { probes_per_round: 16, ..Manifest::template() };
        assert_eq!(directions(&manifest, 1), 16);
        assert_eq!(walk_len_max(&manifest, 16), 16);
    }

    #[test]
    fn the_deal_is_pinned() {
        let manifest = Manifest { probes_per_round: 4, ..Manifest::template() };
        let deal = Deal::new(&manifest, &RunId([2; 32]), Round(5), 4, &members(4));
        let walk: Vec<u32> = (0..8).map(|position| deal.slot(Origin(1), position).0).collect();
        // Made by this program's first version; a change is a change of the wire protocol.
        assert_eq!(deal.order, [1, 7, 4, 0, 5, 6, 3, 2]);
        assert_eq!(walk, [4, 0, 5, 6, 3, 2, 1, 7]);
        let walk: Vec<u32> = (0..4).map(|position| deal.slot(Origin(2), position).0).collect();
        assert_eq!(walk, [5, 6, 3, 2]);
        let whole: Vec<u32> = deal.walk(Origin(1)).map(|slot| slot.0).collect();
        assert_eq!(whole, [4, 0, 5, 6, 3, 2, 1, 7]);
    }
}
