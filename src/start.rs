//! The start of an open run: the founders agree on who they are, without a leader.
//!
//! A node votes for the smallest identities it knows, as many as the manifest asks for, itself
//! among them, and signs at most one set in a ballot. A set has founded the run when **all** its
//! members have signed it in one ballot. A node leaves a ballot only when its set can never be
//! complete there: a member signed another set in that ballot, or is in a later one. So two sets
//! that share an honest member cannot both be complete. A member that went silent before voting is
//! given up after a while; if its vote was on its way after all, two starts can meet, and then the
//! nodes of one refuse those of the other instead of mixing records.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{FRAME_LEN_MAX, encoded_len};
use crate::id::{NodeId, RunId};
use crate::keys::{Keys, Scheme};
use crate::manifest::ROSTER_LEN_MAX;
use crate::message::{Presence, StartVote};
use crate::time::Time;

/// How long a node that was heard of counts as present without being heard again.
const PRESENT: Time = Time::from_millis(20_000);

/// How far a vote's ballot may be ahead of all that are known. A guess: a node that was away sees
/// the ballots of one episode of conflicts.
const BALLOT_STEP_MAX: u32 = 64;

/// Bytes of votes in a frame: those of [`FOUNDERS_MAX`](crate::manifest::FOUNDERS_MAX) founders, and some of others.
const VOTES_LEN_MAX: usize = FRAME_LEN_MAX / 4 * 3;

/// The state of a node before the run has started.
#[derive(Clone, Debug)]
pub struct Start {
    run: RunId,
    minimum: usize,
    /// Who is present, and since when its beat has not grown. At most [`ROSTER_LEN_MAX`].
    seen: BTreeMap<NodeId, (Presence, Time)>,
    /// The latest vote of each voter. At most [`ROSTER_LEN_MAX`].
    votes: BTreeMap<NodeId, StartVote>,
}

fn statement(run: &RunId, ballot: u32, founders: &[NodeId]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 start");
    hasher.update(&run.0).update(&ballot.to_le_bytes());
    for id in founders {
        hasher.update(&id.0);
    }
    *hasher.finalize().as_bytes()
}

fn presence_statement(run: &RunId, beat: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 presence");
    hasher.update(&run.0).update(&beat.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// Whether votes make exactly these founders: every founder's own signature, in one ballot.
pub fn founders_of(
    run: &RunId,
    scheme: Scheme,
    minimum: usize,
    votes: &[StartVote],
) -> Option<Vec<NodeId>> {
    let first = votes.first()?;
    let voters: BTreeSet<NodeId> = votes.iter().map(|vote| vote.voter).collect();
    let complete = first.founders.len() == minimum
        && votes.len() == minimum
        && first.founders.iter().copied().collect::<BTreeSet<_>>() == voters
        && first.founders.is_sorted()
        && votes.iter().all(|vote| {
            vote.ballot == first.ballot
                && vote.founders == first.founders
                && is_signed(run, scheme, vote)
        });
    complete.then(|| first.founders.clone())
}

fn is_signed(run: &RunId, scheme: Scheme, vote: &StartVote) -> bool {
    let digest = statement(run, vote.ballot, &vote.founders);
    scheme.verify(&vote.voter, &digest, &vote.signature)
}

impl Start {
    /// Nobody is known yet.
    pub fn new(run: RunId, minimum: usize) -> Start {
        Start { run, minimum, seen: BTreeMap::new(), votes: BTreeMap::new() }
    }

    /// This node is present; `beat` grows with time.
    pub fn beat(&mut self, keys: &Keys, beat: u64, now: Time) {
        let held = self.seen.get(&keys.id());
        if held.is_none_or(|(presence, _)| presence.beat < beat) {
            let signature = keys.sign(&presence_statement(&self.run, beat));
            self.seen.insert(keys.id(), (Presence { id: keys.id(), beat, signature }, now));
        }
    }

    /// A node was heard of; `false` when it did not sign its presence.
    pub fn hear(&mut self, presence: Presence, scheme: Scheme, now: Time) -> bool {
        let held = self.seen.get(&presence.id);
        if held.is_some_and(|(held, _)| held.beat >= presence.beat) {
            return true;
        }
        if held.is_none() && self.seen.len() >= ROSTER_LEN_MAX {
            return true;
        }
        let digest = presence_statement(&self.run, presence.beat);
        let signed = scheme.verify(&presence.id, &digest, &presence.signature);
        if signed {
            self.seen.insert(presence.id, (presence, now));
        }
        signed
    }

    /// Nodes that are present.
    pub fn present(&self, now: Time) -> Vec<Presence> {
        let fresh = self.seen.values().filter(|(_, since)| now.since(*since) <= PRESENT);
        fresh.map(|(presence, _)| presence.clone()).collect()
    }

    /// What a neighbor is told, in less than a frame whatever was invented: who is present of the identities that a set
    /// is made of, the smallest, and this node; and votes, those for its own set first, then the latest ballots'.
    pub fn told(&self, me: &NodeId, now: Time) -> (Vec<Presence>, Vec<StartVote>) {
        let present = self.present(now).into_iter().enumerate();
        let present = present.filter(|(at, node)| *at < self.minimum || node.id == *me);
        let mine = self.votes.get(me).map(|vote| &vote.founders);
        let mut votes: Vec<&StartVote> = self.votes.values().collect();
        // Comparing sets once each: somebody may have invented thousands that differ late.
        let order =
            |vote: &&StartVote| (mine != Some(&vote.founders), std::cmp::Reverse(vote.ballot));
        votes.sort_by_cached_key(order);
        let mut len = 0;
        let fitting = votes.into_iter().take_while(|vote| {
            len += encoded_len(*vote);
            len <= VOTES_LEN_MAX
        });
        (present.map(|(_, node)| node).collect(), fitting.cloned().collect())
    }

    /// How many founders are needed.
    pub fn minimum(&self) -> usize {
        self.minimum
    }

    /// Takes another node's vote; `false` when it is not signed by its voter or breaks a limit.
    pub fn take(&mut self, vote: StartVote, scheme: Scheme) -> bool {
        let fits = vote.founders.len() == self.minimum
            && vote.founders.contains(&vote.voter)
            && vote.founders.windows(2).all(|pair| pair[0] < pair[1]);
        let held = self.votes.get(&vote.voter);
        if held.is_some_and(|held| held.ballot >= vote.ballot) {
            return true;
        }
        // A ballot far ahead would use up their numbers; honest ones follow one another.
        let full = held.is_none() && self.votes.len() >= ROSTER_LEN_MAX;
        if full || vote.ballot > self.ballot().saturating_add(BALLOT_STEP_MAX) {
            return true;
        }
        if !fits || !is_signed(&self.run, scheme, &vote) {
            return false;
        }
        self.votes.insert(vote.voter, vote);
        true
    }

    /// The votes that founded the run, once they are complete.
    pub fn complete(&self) -> Option<Vec<StartVote>> {
        self.votes.values().find_map(|vote| {
            let votes: Vec<StartVote> =
                vote.founders.iter().filter_map(|id| self.votes.get(id)).cloned().collect();
            let same =
                |other: &StartVote| other.ballot == vote.ballot && other.founders == vote.founders;
            (votes.len() == self.minimum && votes.iter().all(same)).then_some(votes)
        })
    }

    /// Votes, or votes anew when the last ballot is dead. Returns a new vote, to be written to disk
    /// before it is sent.
    pub fn vote(&mut self, keys: &Keys, now: Time) -> Option<StartVote> {
        let me = keys.id();
        let mut ballot = self.ballot();
        if let Some(mine) = self.votes.get(&me) {
            if mine.ballot == ballot && !self.is_dead(mine, now) {
                return None;
            }
            // A ballot is never signed twice, not even the last.
            ballot = ballot.max(mine.ballot.checked_add(1)?);
        }
        let present = self.present(now).into_iter();
        let founders: Vec<NodeId> = present.map(|node| node.id).take(self.minimum).collect();
        if founders.len() < self.minimum || !founders.contains(&me) {
            return None;
        }
        let signature = keys.sign(&statement(&self.run, ballot, &founders));
        let vote = StartVote { ballot, founders, voter: me, signature };
        self.votes.insert(me, vote.clone());
        Some(vote)
    }

    /// The latest ballot known.
    fn ballot(&self) -> u32 {
        self.votes.values().map(|vote| vote.ballot).max().unwrap_or(0)
    }

    /// Whether the set of a vote can never be complete in its ballot, or a member went silent.
    fn is_dead(&self, vote: &StartVote, now: Time) -> bool {
        vote.founders.iter().any(|id| match self.votes.get(id) {
            Some(other) => {
                other.ballot > vote.ballot
                    || (other.ballot == vote.ballot && other.founders != vote.founders)
            }
            None => self.seen.get(id).is_none_or(|(_, since)| now.since(*since) > PRESENT),
        })
    }

    /// Restores one's own vote after a restart.
    pub fn restore(&mut self, vote: StartVote) {
        self.votes.insert(vote.voter, vote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId([9; 32]);

    /// Lets `n` nodes vote, with views that grow at different times, until all see the start.
    fn found(n: u64, minimum: usize) -> Vec<Option<Vec<NodeId>>> {
        let keys: Vec<Keys> = (0..n).map(Keys::simulated).collect();
        let mut starts: Vec<Start> = keys.iter().map(|_| Start::new(RUN, minimum)).collect();
        for tick in 0..60_u64 {
            let now = Time::from_millis(100 * tick);
            for at in 0..keys.len() {
                // Node `at` hears another node each tick, and what that one knows.
                starts[at].beat(&keys[at], tick, now);
                starts[at].vote(&keys[at], now);
                let other = (at + 1 + tick as usize) % keys.len();
                let (present, votes) = starts[other].told(&keys[other].id(), now);
                for presence in present {
                    assert!(starts[at].hear(presence, Scheme::Simulated, now));
                }
                for vote in votes {
                    assert!(starts[at].take(vote, Scheme::Simulated));
                }
            }
        }
        let complete = starts.iter().map(Start::complete);
        complete.map(|votes| founders_of(&RUN, Scheme::Simulated, minimum, &votes?)).collect()
    }

    #[test]
    fn all_founders_see_the_same_start() {
        for (n, minimum) in [(1, 1), (2, 2), (3, 3), (7, 7), (5, 3), (9, 6)] {
            let seen = found(n, minimum);
            let first = seen.iter().flatten().next().expect("the run starts");
            assert_eq!(first.len(), minimum);
            assert!(seen.iter().all(|founders| founders.as_ref() == Some(first)), "{n} {minimum}");
        }
    }

    #[test]
    fn a_vote_in_the_last_ballot_does_not_use_up_the_ballots() {
        let keys: Vec<Keys> = (0..3).map(Keys::simulated).collect();
        let mut founders: Vec<NodeId> = keys[..2].iter().map(Keys::id).collect();
        founders.sort();
        let mut start = Start::new(RUN, 2);
        let signature = keys[1].sign(&statement(&RUN, u32::MAX, &founders));
        let vote = StartVote { ballot: u32::MAX, founders, voter: keys[1].id(), signature };
        assert!(start.take(vote, Scheme::Simulated));
        start.beat(&keys[0], 1, Time::ZERO);
        start.beat(&keys[2], 1, Time::ZERO);
        assert_eq!(start.vote(&keys[0], Time::ZERO).map(|vote| vote.ballot), Some(0));
    }

    #[test]
    fn invented_identities_neither_outgrow_a_frame_nor_crowd_out_ones_own_set() {
        let founders = crate::manifest::FOUNDERS_MAX;
        let mut keys: Vec<Keys> = (0..founders as u64).map(Keys::simulated).collect();
        keys.sort_by_key(Keys::id);
        let mut start = Start::new(RUN, founders);
        let set: Vec<NodeId> = keys.iter().map(Keys::id).collect();
        let vote = |set: &[NodeId], ballot, voter: &Keys| StartVote {
            ballot,
            founders: set.to_vec(),
            voter: voter.id(),
            signature: voter.sign(&statement(&RUN, ballot, set)),
        };
        for key in &keys {
            start.beat(key, 1, Time::ZERO);
            assert!(start.take(vote(&set, 0, key), Scheme::Simulated));
        }
        for invented in (0..300).map(|at| Keys::simulated(10_000 + at)) {
            let presence = Presence {
                id: invented.id(),
                beat: 1,
                signature: invented.sign(&presence_statement(&RUN, 1)),
            };
            assert!(start.hear(presence, Scheme::Simulated, Time::ZERO));
            let mut other = [&set[1..], &[invented.id()]].concat();
            other.sort();
            assert!(start.take(vote(&other, 9, &invented), Scheme::Simulated));
        }
        let me = keys[founders - 1].id();
        let (present, votes) = start.told(&me, Time::ZERO);
        assert!(present.len() <= founders + 1);
        assert!(present.iter().any(|node| node.id == me));
        assert!(votes.len() > founders, "there is room for others' votes");
        assert!(votes[..founders].iter().all(|vote| vote.founders == set));
        let frame = crate::message::Frame::Start { present, votes };
        assert!(frame.encode().len() <= FRAME_LEN_MAX);
    }

    #[test]
    fn votes_of_others_or_in_parts_found_nothing() {
        let keys: Vec<Keys> = (0..3).map(Keys::simulated).collect();
        let mut start = Start::new(RUN, 3);
        for key in &keys {
            start.beat(key, 1, Time::ZERO);
        }
        let vote = start.vote(&keys[0], Time::ZERO).unwrap();
        assert_eq!(founders_of(&RUN, Scheme::Simulated, 3, std::slice::from_ref(&vote)), None);
        let mut forged = vote;
        forged.voter = keys[1].id();
        assert!(!start.take(forged, Scheme::Simulated));
    }
}
