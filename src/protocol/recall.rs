//! After a restart: nothing is signed before neighbors have said what they hold of this node.
//!
//! A log may be older than what was sent from it: a backup was put back, a disk lost its last
//! writes with the power, a damaged file was cut off, a key was copied. A node that goes on from it
//! would sign other records at places where it has signed some before, and count for nothing from
//! then on. So a node that has a past first completes an exchange with every neighbor:
//!
//! - its own segments, where neighbors hold longer ones, become its own again, with their signature;
//! - where a neighbor claims to hold more and does not send it, or has an ack of this node that it
//!   does not remember, it signs nothing more in that height.
//!
//! It measures meanwhile, and a node whose log is whole waits for one round trip. What only
//! neighbors hold that are out of reach now cannot be asked for: against that nothing helps but a
//! log that is not lost.

use super::{Entry, Height, OPEN, Origin, Output, Own, Protocol};
use crate::ledger::{InsertError, Inserted, Segment, SegmentDelta};
use crate::protocol::link::Link;
use crate::time::Time;

/// How long neighbors that do not answer, or do not send what they claim to hold, are waited for:
/// longer than a request may stay unanswered.
const WAIT: Time = Time::from_millis(15_000);

/// What a node with a past waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recall {
    /// Since when all is waited for: a neighbor has answered, and no history has come since.
    since: Option<Time>,
}

impl Protocol {
    /// Says that this node may have signed what its log does not hold: its key is older than its
    /// log. [`Protocol::restore`] implies it.
    pub fn doubt_log(&mut self) {
        self.recall.get_or_insert_default();
    }

    /// Whether this node may sign at a height.
    pub(super) fn may_sign(&self, height: u64) -> bool {
        let Some(state) = self.heights.get(&height) else { return false };
        !state.is_lost && (self.recall.is_none() || self.is_recalled(height))
    }

    /// Whether all neighbors have said what they hold of a height, and none holds more of this
    /// node's records than it does itself.
    fn is_recalled(&self, height: u64) -> bool {
        if self.roster.len_at(Height(height)) <= 1 {
            return true;
        }
        let mut greeted = self.links.values().filter(|link| link.is_greeted()).peekable();
        greeted.peek().is_some()
            && greeted.all(|link| link.has_told(height) && !self.holds_more(link, height))
    }

    fn holds_more(&self, link: &Link, height: u64) -> bool {
        let (Some(me), Some(state)) = (self.roster.origin(&self.me), self.heights.get(&height))
        else {
            return false;
        };
        link.known_len(height, me) > state.ledger.len_of(me)
    }

    /// Ends the doubt when every neighbor has answered, or was waited for long enough.
    pub(super) fn recall(&mut self, now: Time) {
        let Some(recall) = &mut self.recall else { return };
        let mut greeted = self.links.values().filter(|link| link.is_greeted()).peekable();
        let answered = greeted.clone().any(Link::has_answered);
        let level = greeted.peek().is_some() && greeted.all(|l| l.certified() <= self.certified);
        if recall.since.is_none() && answered {
            recall.since = Some(now);
        }
        let open = self.certified..self.certified + OPEN;
        let mut open = open.filter(|height| self.heights.contains_key(height));
        if self.is_finished() || (level && open.clone().all(|height| self.is_recalled(height))) {
            self.recall = None;
        } else if self.recall_due().is_some_and(|due| due <= now) {
            let more = |height: &u64| self.links.values().any(|l| self.holds_more(l, *height));
            let lost: Vec<u64> = open.by_ref().filter(more).collect();
            for height in lost {
                self.heights.get_mut(&height).expect("listed above").is_lost = true;
            }
            self.recall = None;
        }
    }

    /// When neighbors are waited for no longer.
    pub(super) fn recall_due(&self) -> Option<Time> {
        Some(self.recall.as_ref()?.since? + WAIT)
    }

    /// Certified history came: this node is still behind, and what neighbors hold of later heights
    /// cannot be known yet. Only certificates put the wait off; heights that the network certifies
    /// meanwhile do not, or a neighbor that claims much and sends nothing could do so for ever.
    pub(super) fn go_on_recalling(&mut self) {
        if let Some(recall) = &mut self.recall {
            recall.since = None;
        }
    }

    /// Whether neighbors are asked for everything they hold.
    pub(super) fn is_recalling(&self) -> bool {
        self.recall.is_some()
    }

    /// Takes one's own segment from a neighbor, if it is longer than what is held.
    pub(super) fn take_own(
        &mut self,
        link: &mut Link,
        delta: SegmentDelta,
        out: &mut Vec<Output>,
    ) -> Result<(), InsertError> {
        let (height, origin, id) = (delta.height, Origin(delta.origin), self.me);
        let Some(params) = self.params(height) else { return Ok(()) };
        let (run, scheme) = (self.run, self.scheme);
        let Some(state) = self.heights.get_mut(&height) else { return Ok(()) };
        let held = state.ledger.len_of(origin);
        if usize::from(delta.offset) + delta.bytes.len() <= held {
            return Ok(());
        }
        let context = crate::ledger::Context {
            run: &run,
            height: Height(height),
            scheme,
            limits: params.limits,
        };
        match state.ledger.insert(&context, &id, delta)? {
            Inserted::Extended(_) => {
                state.grown = true;
                let segment = state.ledger.segment(origin).expect("just extended").clone();
                out.push(Output::Record(Entry::Own { height, segment: segment.clone() }));
                self.go_on_from(height, &segment);
            }
            Inserted::NeedsWhole => link.want_whole(height, origin),
            Inserted::Equivocation => self.on_equivocation(height, origin, out),
            Inserted::Duplicate(_) => {}
        }
        Ok(())
    }

    /// Makes a signed segment one's own records of a height; what was measured and not signed is
    /// forgotten, as its places are taken.
    pub(super) fn go_on_from(&mut self, height: u64, segment: &Segment) {
        self.reconsider();
        let Some(params) = self.params(height) else { return };
        let Some(state) = self.heights.get_mut(&height) else { return };
        state.own = Own {
            counts: segment.counts.clone(),
            bytes: segment.bytes.clone(),
            signed_len: segment.bytes.len(),
            closed: segment.closed,
        };
        let (first, end) = (self.first_round(height), self.first_round(height + 1));
        let (me, rounds) = (self.me, first..end);
        self.outstanding.retain(|probe| probe.of != me || !rounds.contains(&probe.round.0));
        self.dirty.extend(first..end.min(self.closed).max(first));
        // Go on after the last round that has records: its walk may have been cut short.
        let signed = segment.counts.len().min(params.limits.rounds) as u64;
        if self.round < end {
            self.round = self.round.max(first + signed);
            self.position = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::PoissonClock;
    use crate::keys::Keys;
    use crate::manifest::{Founders, Manifest};
    use crate::protocol::Config;

    /// It claims to be far ahead and sends nothing, while the others certify a height a second.
    #[test]
    fn a_neighbor_that_never_answers_keeps_no_member_from_signing_for_ever() {
        let ids: Vec<_> = (0..4).map(|node| Keys::simulated(node).id()).collect();
        let founders = Founders::Members(ids.clone());
        let manifest = Manifest { founders, rounds_per_height: 2, ..Manifest::template() };
        let mut protocol = Protocol::new(manifest, Keys::simulated(0), Config::default()).unwrap();
        protocol.doubt_log();
        for (id, certified, answered) in [(ids[1], 0, true), (ids[2], u64::MAX, false)] {
            let clock = PoissonClock::new(&[1; 32], 0);
            protocol.links.insert(id, Link::greeted(clock, certified, answered));
        }
        for second in 0..30 {
            protocol.certified = second;
            protocol.recall(Time::from_millis(1000 * second));
            assert_eq!(protocol.is_recalling(), second < 15, "at {second} s");
        }
        protocol.doubt_log();
        for second in 30..90 {
            // As long as certified history comes, it is still behind.
            protocol.go_on_recalling();
            protocol.recall(Time::from_millis(1000 * second));
            assert!(protocol.is_recalling());
        }
    }
}
