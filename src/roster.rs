//! The roster: who are members from which height on.
//!
//! Positions are given once: founders in their order, then joiners in the order in which certified
//! heights admit them. Roster, faults tolerated, scale exponent and the members expected to work at
//! height `h` are functions of the certified heights up to `h − 2`, so they are the same everywhere.

use std::collections::BTreeMap;

use crate::id::{Height, NodeId, Origin};
use crate::manifest::ROSTER_LEN_MAX;

/// All members ever admitted, with the height each counts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    members: Vec<Member>,
    by_id: BTreeMap<NodeId, Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: NodeId,
    from: Height,
}

impl Roster {
    /// The founders.
    pub fn new(founders: &[NodeId]) -> Roster {
        let mut roster = Roster { members: Vec::new(), by_id: BTreeMap::new() };
        for id in founders {
            roster.admit(*id, Height(0));
        }
        roster
    }

    /// Adds a member from a height on; `false` when it already is one or the roster is full.
    pub fn admit(&mut self, id: NodeId, from: Height) -> bool {
        if self.by_id.contains_key(&id) || self.members.len() >= ROSTER_LEN_MAX {
            return false;
        }
        self.by_id.insert(id, Origin(self.members.len() as u16));
        self.members.push(Member { id, from });
        true
    }

    /// Takes back the admission of members that count from `from` or later.
    pub fn retract(&mut self, from: Height) {
        self.members.truncate(self.len_at(Height(from.0.saturating_sub(1))));
        let len = self.members.len();
        self.by_id.retain(|_, origin| origin.index() < len);
    }

    /// The number of members at a height. Members are admitted in the order of heights.
    pub fn len_at(&self, height: Height) -> usize {
        self.members.partition_point(|member| member.from <= height)
    }

    /// All members ever admitted.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The identity of a member.
    pub fn id(&self, origin: Origin) -> Option<&NodeId> {
        self.members.get(origin.index()).map(|member| &member.id)
    }

    /// The height a member counts from.
    pub fn from(&self, origin: Origin) -> Option<Height> {
        self.members.get(origin.index()).map(|member| member.from)
    }

    /// The position of a node.
    pub fn origin(&self, id: &NodeId) -> Option<Origin> {
        self.by_id.get(id).copied()
    }

    /// All members in order.
    pub fn ids(&self) -> impl Iterator<Item = (Origin, &NodeId)> {
        self.members.iter().enumerate().map(|(at, member)| (Origin(at as u16), &member.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joiners_count_from_their_height_on() {
        let mut roster = Roster::new(&[NodeId([1; 32]), NodeId([2; 32])]);
        assert!(roster.admit(NodeId([3; 32]), Height(5)));
        assert!(!roster.admit(NodeId([3; 32]), Height(6)));
        assert_eq!((roster.len_at(Height(4)), roster.len_at(Height(5))), (2, 3));
        assert_eq!(roster.origin(&NodeId([3; 32])), Some(Origin(2)));
        roster.retract(Height(6));
        assert_eq!(roster.len(), 3);
        roster.retract(Height(5));
        assert_eq!((roster.len(), roster.origin(&NodeId([3; 32]))), (2, None));
    }
}
