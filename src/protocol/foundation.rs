//! What a node must know in order to go on from a certified height without the history before it.
//!
//! All that follows from certified records, and so is the same at every node, in as much as later heights
//! look back at it: members, who is excluded, what audits found, doubt and standing, the digest chain, and the last heights
//! themselves, as the selection's window and the audits reach into them. Old history may then be dropped
//! from a log. A foundation is one's own: nobody believes another's.

use bincode::{Decode, Encode};

use super::{DEEP, HeightState, Offence, Protocol, SPARE, Summary};
use crate::audit::{Sample, WINDOW};
use crate::height::{CertifiedHeight, ChainDigest, Checked};
use crate::id::{Height, NodeId, Origin};
use crate::message::StartVote;
use crate::roster::Roster;
use crate::selection::Standing;

/// See the module.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Foundation {
    /// Heights certified.
    pub certified: u64,
    /// The digest chain after them.
    chain: [u8; 32],
    founding: Vec<StartVote>,
    /// Members in order, and the heights that they count from.
    members: Vec<(NodeId, u64)>,
    /// Who contradicted himself, and in which height.
    excluded: Vec<(u16, u64)>,
    /// Whom audits convicted, and from which height on.
    convicted: Vec<(u16, u64)>,
    past: Vec<Past>,
    /// The heights before it, as far as later ones look back.
    heights: Vec<CertifiedHeight>,
}

/// A height before a foundation.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
struct Past {
    height: u64,
    active: Vec<u16>,
    exponent_next: i32,
    audits: Vec<Sample>,
    doubted: Vec<u16>,
    standing: Standing,
}

impl Foundation {
    /// The digest chain after the heights before it.
    pub fn chain(&self) -> ChainDigest {
        ChainDigest(self.chain)
    }
}

impl Protocol {
    /// Heights before a foundation that must be in it.
    pub fn looked_back(&self) -> u64 {
        let oldest = self.manifest.instalments.last().map_or(0, |last| u64::from(last.age));
        let rounds = oldest.max(u64::from(self.manifest.window));
        rounds.div_ceil(u64::from(self.manifest.rounds_per_height)).max(2)
    }

    /// The foundation after so many certified heights, a few more than can be replaced: `heights` are the
    /// last [`Self::looked_back`] of them, in order. `None` when it is too early or too late, or
    /// `heights` are others.
    pub fn foundation(
        &self,
        certified: Height,
        heights: Vec<CertifiedHeight>,
    ) -> Option<Foundation> {
        let base = certified.0;
        let settled = self.certified.checked_sub(base)? >= DEEP;
        let first = base.saturating_sub(self.looked_back());
        let numbers = heights.iter().map(|height| height.height);
        if !settled || !numbers.eq(first..base) {
            return None;
        }
        let needed = first.saturating_sub(2).min(base.saturating_sub(2 + WINDOW));
        let past: Vec<Past> = self
            .summaries
            .range(needed..base)
            .map(|(&height, summary)| Past {
                height,
                active: summary.active.iter().map(|origin| origin.0).collect(),
                exponent_next: summary.exponent_next,
                audits: summary.audits.clone(),
                doubted: summary.doubted.iter().map(|origin| origin.0).collect(),
                standing: summary.standing.clone(),
            })
            .collect();
        let before = |from: &u64, bound| *from < bound;
        // What the heights from `base` on said is said again when they are restored.
        let excluded = self.excluded.iter().filter(|(_, from)| before(from, base));
        let convicted = self.convicted.iter().filter(|(_, from)| before(from, base + 2));
        let members = self.roster.ids().map(|(origin, id)| (*id, self.roster.from(origin)));
        let members = members.filter_map(|(id, from)| Some((id, from?.0)));
        Some(Foundation {
            certified: base,
            chain: self.chains.get(&base)?.0,
            founding: self.founding.clone(),
            members: members.filter(|(_, from)| before(from, base + 2)).collect(),
            excluded: excluded.map(|(origin, from)| (origin.0, *from)).collect(),
            convicted: convicted.map(|(origin, from)| (origin.0, *from)).collect(),
            past: (past.len() as u64 == base - needed).then_some(past)?,
            heights,
        })
    }

    /// Heights before the foundation that the log began with; zero without one.
    pub fn built_on(&self) -> Height {
        Height(self.built_on)
    }

    /// Begins with a foundation, before anything else is restored.
    pub(super) fn build_on(&mut self, foundation: Foundation) -> Result<(), Offence> {
        let refused = |problem: &str| Offence::FalseHistory(format!("a foundation: {problem}"));
        let base = foundation.certified;
        let fresh = self.certified == 0 && self.heights.values().all(|of| of.certified.is_none());
        if !fresh || base < DEEP || base > self.manifest.heights() {
            return Err(refused("it is not at the beginning, or of no height of the run"));
        }
        let mut roster = Roster::new(&[]);
        let mut before = 0;
        for (id, from) in foundation.members {
            if from < before || from >= base + 2 || !roster.admit(id, Height(from)) {
                return Err(refused("its members are out of order"));
            }
            before = from;
        }
        if roster.len_at(Height(0)) == 0 {
            return Err(refused("it has no founders"));
        }
        self.roster = roster;
        self.founding = foundation.founding;
        self.start = None;
        self.heights.clear();
        (self.certified, self.built_on) = (base, base);
        self.closed = self.first_round(base);
        self.chains = [(base, ChainDigest(foundation.chain))].into();
        let origins = |list: Vec<(u16, u64)>| list.into_iter().map(|(at, from)| (Origin(at), from));
        self.excluded = origins(foundation.excluded).collect();
        self.convicted = origins(foundation.convicted).collect();
        let roster_len = self.roster.len();
        for Past { height, active, exponent_next, audits, doubted, standing } in foundation.past {
            let ordered = |origins: &[u16]| {
                origins.windows(2).all(|pair| pair[0] < pair[1])
                    && origins.last().is_none_or(|&at| usize::from(at) < roster_len)
            };
            let scaled = (-60..=60).contains(&exponent_next);
            let counted = audits.iter().all(Sample::is_plausible);
            let stands = standing.is_plausible(roster_len);
            if !ordered(&active) || !ordered(&doubted) || !scaled || !counted || !stands {
                return Err(refused(
                    "a height's members are out of order, or its scale, audits or standing are impossible",
                ));
            }
            let active = active.into_iter().map(Origin).collect();
            let doubted = doubted.into_iter().map(Origin).collect();
            self.summaries
                .insert(height, Summary { active, exponent_next, audits, doubted, standing });
        }
        self.reconsider();
        for certified in foundation.heights {
            let height = certified.height;
            let params = self.params(height).filter(|_| height < base);
            let params =
                params.ok_or_else(|| refused("what its heights follow from is missing"))?;
            let quorum = self.manifest.quorum(params.roster_len);
            let Checked { ledger, controls, set, acks } = certified
                .check(&self.run, self.scheme, &self.roster, quorum, params.limits)
                .map_err(|error| refused(&error.to_string()))?;
            let mut state = HeightState::new(params.roster_len);
            state.ledger = ledger;
            state.controls = controls;
            state.acks.replace(acks.into_iter().collect());
            state.certified = Some(set);
            self.heights.insert(height, state);
            for round in self.first_round(height)..self.first_round(height + 1) {
                if let Some(values) = self.decode(round) {
                    self.values.insert(round, values.into());
                }
            }
        }
        self.open_heights();
        self.meet_model();
        Ok(())
    }

    /// Drops what neither later heights nor a foundation look back at.
    pub(super) fn forget_past(&mut self, oldest: u64) {
        let back = self.looked_back().max(WINDOW) + 2 + SPARE;
        self.summaries = self.summaries.split_off(&oldest.saturating_sub(back));
        self.chains = self.chains.split_off(&oldest.saturating_sub(SPARE));
    }
}
