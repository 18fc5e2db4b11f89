//! Faults injected into real nodes: who misbehaves, and how a node carries it out.
//!
//! `local --faulty` casts nodes ([`cast`]); `node` takes its own fault from `run.toml` or over its
//! control socket. Only runs whose manifest says `lab = true` have a [`Lab`], so that no other node
//! can be told to misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rumormill::data::Dataset;
use rumormill::fault::value::{Crowd, Liar, Lie, Moment};
use rumormill::fault::{Fault, FaultKind};
use rumormill::id::{NodeId, Round, Slot};
use rumormill::manifest::Manifest;
use rumormill::objective::{ModelSpec, Objective, build};
use rumormill::protocol::Probe;
use rumormill::spsa::projected_gradient;
use rumormill_topology::Topology;

/// Honest nodes whose minibatches a liar measures. Each costs a probe: with more, it is so slow that
/// its lies count for little.
pub const WITNESSES_MAX: usize = 8;

/// Directions of which the honest values are remembered: colluders meet at the same ones.
const REMEMBERED_MAX: usize = 1 << 14;

/// One entry of `--faulty`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Role {
    /// How many nodes, or which one.
    pub nodes: Nodes,
    /// What they do.
    pub fault: Fault,
}

/// Whom a [`Role`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// So many, chosen from the highest index down.
    Count(usize),
    /// The one with this index.
    At(usize),
}

impl std::str::FromStr for Role {
    type Err = String;
    /// `COUNT:KIND[:FACTOR]` or `@INDEX:KIND[:FACTOR]`.
    fn from_str(text: &str) -> Result<Role, String> {
        let form = || format!("'{text}' is not COUNT:KIND[:FACTOR] or @INDEX:KIND[:FACTOR]");
        let (nodes, fault) = text.split_once(':').ok_or_else(form)?;
        let fault: Fault = fault.parse().map_err(|error| format!("{error}"))?;
        let nodes = match nodes.strip_prefix('@') {
            Some(index) => Nodes::At(index.parse().map_err(|_| form())?),
            None => Nodes::Count(nodes.parse().ok().filter(|&n| n > 0).ok_or_else(form)?),
        };
        Ok(Role { nodes, fault })
    }
}

/// What every node of a graph does: nodes named by index first, then counted ones from the highest
/// index down, passing over those without which the honest part would fall apart.
///
/// # Errors
/// Why it cannot be, in words.
pub fn cast(
    roles: &[Role],
    topology: &Topology,
    manifest: &Manifest,
) -> Result<Vec<Option<Fault>>, String> {
    let nodes = topology.node_count();
    let mut faults: Vec<Option<Fault>> = vec![None; nodes];
    let named = |role: &Role| match role.nodes {
        Nodes::At(index) => Some((index, role.fault)),
        Nodes::Count(_) => None,
    };
    for (index, fault) in roles.iter().filter_map(named) {
        let place = faults.get_mut(index);
        let place = place.ok_or_else(|| {
            format!("--faulty @{index}: there is no such node, the last one is {}", nodes - 1)
        })?;
        if place.replace(fault).is_some() {
            return Err(format!("--faulty @{index} is named twice; a node has one fault"));
        }
    }
    if !is_connected(topology, &faults) {
        return Err("--faulty: the honest nodes are not connected without the faulty ones, which \
                    need not pass on anything; choose other nodes or another --family"
            .into());
    }
    let counted = roles.iter().map(|role| match role.nodes {
        Nodes::Count(count) => (count, role.fault),
        Nodes::At(_) => (0, role.fault),
    });
    let asked = counted.clone().fold(0_usize, |sum, (count, _)| sum.saturating_add(count));
    let free = faults.iter().filter(|fault| fault.is_none()).count();
    if free <= asked {
        return Err(format!(
            "--faulty makes {} of {nodes} nodes faulty; one at least must be honest",
            asked.saturating_add(nodes - free)
        ));
    }
    for (count, fault) in counted {
        for _ in 0..count {
            // A connected graph has a node that may be taken away, as long as two are left.
            let free = (0..nodes).rev().find(|&node| {
                let mut tried = faults.clone();
                tried[node].is_none() && {
                    tried[node] = Some(fault);
                    is_connected(topology, &tried)
                }
            });
            let free = free.ok_or("--faulty: no node can be spared from the graph")?;
            faults[free] = Some(fault);
        }
    }
    let breaking = faults.iter().flatten().filter(|fault| !fault.kind.is_value()).count();
    let tolerated = manifest.faulty_of(nodes);
    if breaking > tolerated {
        return Err(format!(
            "--faulty: {breaking} of {nodes} nodes break the protocol, but {nodes} members tolerate \
             {tolerated} (R ≥ 3f + 1): have at least {} nodes",
            3 * breaking + 1
        ));
    }
    Ok(faults)
}

/// Whether the nodes without a fault reach each other through themselves; at least one is.
fn is_connected(topology: &Topology, faults: &[Option<Fault>]) -> bool {
    let honest = faults.iter().filter(|fault| fault.is_none()).count();
    let Some(first) = faults.iter().position(Option::is_none) else { return false };
    let (mut reached, mut todo) = (BTreeSet::from([first]), vec![first]);
    while let Some(node) = todo.pop() {
        for next in topology.neighbors(node) {
            if faults[next].is_none() && reached.insert(next) {
                todo.push(next);
            }
        }
    }
    reached.len() == honest
}

/// What the faulty nodes of one process know together.
pub type Crowds = Arc<Mutex<BTreeMap<(Round, Slot), Crowd>>>;

/// What a node of a lab run may need to misbehave.
#[derive(Clone)]
pub struct Lab {
    /// What it does from the start.
    pub fault: Option<Fault>,
    /// Those that are known to be faulty, itself among them, if it is.
    pub colluders: Vec<NodeId>,
    /// What they have measured.
    pub crowds: Crowds,
    /// The data, for flipped labels.
    pub dataset: Arc<Dataset>,
    /// The model, for flipped labels.
    pub spec: ModelSpec,
    /// The same on the data as they are.
    pub objective: Arc<dyn Objective>,
}

impl Lab {
    /// The model on data whose class `c` is called `C − 1 − c` in training.
    ///
    /// # Errors
    /// The model does not fit the data.
    pub fn flipped(&self) -> Result<Arc<dyn Objective>> {
        if let Some(flipped) = self.objective.with_flipped_labels() {
            return Ok(flipped);
        }
        let dataset = Arc::new(self.dataset.with_flipped_labels());
        Ok(Arc::from(build(&self.spec, dataset).context("cannot flip the labels")?))
    }
}

/// An honest node whose minibatches are measured.
pub struct Witness {
    /// The node.
    pub id: NodeId,
    /// Its rows; `None` means all.
    pub rows: Option<Arc<Vec<u32>>>,
}

/// A lie as the evaluator tells it.
pub struct Deceit {
    /// How it lies.
    pub liar: Liar,
    /// Honest nodes, at most [`WITNESSES_MAX`].
    pub witnesses: Vec<Witness>,
    /// Honest nodes in all.
    pub honest: usize,
    /// Faulty nodes.
    pub faulty: usize,
    /// Rounds of the run.
    pub rounds: u64,
    /// The model on flipped labels, if they are.
    pub flipped: Option<Arc<dyn Objective>>,
    /// What the faulty have measured so far.
    pub crowds: Crowds,
}

impl Deceit {
    /// How it lies.
    pub fn lie(&self) -> Lie {
        self.liar.lie
    }

    /// The losses that are told. `measure` is asked for those on the node's own minibatch (`None`) and
    /// on those of witnesses.
    pub fn losses(
        &mut self,
        probe: Probe,
        epsilon_log2: i32,
        mut measure: impl FnMut(Option<&Witness>) -> (f32, f32),
    ) -> (f32, f32) {
        let mut value = |whose: Option<&Witness>| {
            let (plus, minus) = measure(whose);
            projected_gradient(plus, minus, epsilon_log2)
        };
        let (own, crowd) = if self.lie().needs_crowd() && !self.witnesses.is_empty() {
            let key = (probe.round, probe.slot);
            // A poisoned lock guards no invariant: values are inserted whole.
            let known =
                self.crowds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
            let crowd = known.unwrap_or_else(|| {
                let values: Vec<f64> =
                    self.witnesses.iter().map(|node| value(Some(node))).collect();
                Crowd::new(values.into_iter(), self.honest, self.faulty)
            });
            let mut crowds = self.crowds.lock().unwrap_or_else(PoisonError::into_inner);
            crowds.insert(key, crowd);
            if crowds.len() > REMEMBERED_MAX {
                crowds.pop_first();
            }
            (0.0, crowd)
        } else {
            (value(None), Crowd::new(std::iter::empty(), self.honest, self.faulty))
        };
        let moment = Moment { round: probe.round.0, rounds: self.rounds };
        self.liar.losses(own, &crowd, moment, epsilon_log2)
    }
}

/// Whether a node with this fault sends frames longer than any that is allowed.
pub fn sends_too_much(fault: Option<Fault>) -> bool {
    fault.is_some_and(|fault| matches!(fault.kind, FaultKind::Oversize | FaultKind::Malformed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill_topology::family::{Family, Parameters, generate};

    fn graph(family: Family, nodes: usize) -> Topology {
        generate(family, nodes, Parameters::default(), 1).unwrap()
    }

    fn faulty(spec: &str, topology: &Topology) -> Result<Vec<usize>, String> {
        let roles: Result<Vec<Role>, String> = spec.split(',').map(str::parse).collect();
        let faults = cast(&roles?, topology, &Manifest::template())?;
        Ok((0..faults.len()).filter(|&node| faults[node].is_some()).collect())
    }

    #[test]
    fn counted_nodes_are_the_highest_that_the_graph_can_spare() {
        assert_eq!(faulty("2:alie,1:silent", &graph(Family::Complete, 7)), Ok(vec![4, 5, 6]));
        assert_eq!(faulty("3:alie", &graph(Family::Ring, 8)), Ok(vec![5, 6, 7]));
        assert_eq!(faulty("1:alie,@2:zero", &graph(Family::Complete, 4)), Ok(vec![2, 3]));
        // From a line with its last node gone the next one may go, and so on.
        assert_eq!(faulty("2:alie", &graph(Family::Line, 5)), Ok(vec![3, 4]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let ring = graph(Family::Ring, 8);
        for (spec, says) in [
            ("3", "COUNT:KIND"),
            ("0:alie", "COUNT:KIND"),
            ("1:elie", "known: sign-flip"),
            ("1:alie:x", "factor"),
            ("8:alie", "8 of 8 nodes"),
            ("99999999999999999999:alie", "COUNT:KIND"),
            ("@8:alie", "the last one is 7"),
            ("@3:alie,@3:zero", "named twice"),
            ("@1:alie,@4:zero", "not connected"),
            ("3:silent", "R ≥ 3f + 1"),
        ] {
            let error = faulty(spec, &ring).unwrap_err();
            assert!(error.contains(says), "{spec}: {error}");
        }
    }

    #[test]
    fn liars_ask_the_witnesses_once_for_all() {
        let crowds = Crowds::default();
        let deceit = |kind| {
            let rng = rumormill::sample::KeyedRng::from_seed("rumormill v1 test", 1, 0);
            let witness = |id| Witness { id: NodeId([id; 32]), rows: None };
            Deceit {
                liar: Liar::new(Lie::new(kind, None), rng),
                witnesses: vec![witness(1), witness(2)],
                honest: 2,
                faulty: 2,
                rounds: 8,
                flipped: None,
                crowds: Arc::clone(&crowds),
            }
        };
        let probe = Probe { round: Round(1), slot: Slot(2), of: NodeId([0; 32]) };
        let mut asked = Vec::new();
        let mut told = |deceit: &mut Deceit| {
            let (plus, minus) = deceit.losses(probe, 0, |whose| {
                asked.push(whose.map(|node| node.id.0[0]));
                whose.map_or((5.0, -5.0), |node| (f32::from(node.id.0[0]), 0.0))
            });
            projected_gradient(plus, minus, 0)
        };
        // The witnesses' values are 1/2 and 1, half of the difference of the losses each.
        assert_eq!(told(&mut deceit(FaultKind::Foe)), -0.375);
        assert_eq!(told(&mut deceit(FaultKind::Mimic)), 0.5);
        assert_eq!(told(&mut deceit(FaultKind::SignFlip)), -5.0);
        assert_eq!(asked, [Some(1), Some(2), None]);
    }
}
