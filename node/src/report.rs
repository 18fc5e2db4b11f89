//! Results: the table for people and the JSON object for programs.

use rumormill::fault::{Fault, FaultKind};
use serde::{Deserialize, Serialize};

use crate::daemon::{Ending, Outcome};
use crate::run::hex;

/// Smallest, mean and largest of a quantity over the honest nodes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Largest.
    pub max: f64,
}

/// Do the honest nodes hold the identical model? `None` for vector algorithms, which agree only in
/// the limit.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// All digests and state hashes are equal, and the end is certified everywhere.
    pub identical: Option<bool>,
    /// Digest chain after the last height, of the first honest node.
    pub digest: Option<String>,
    /// BLAKE3 of the parameters, of the first honest node.
    pub state_hash: Option<String>,
}

/// Bytes on all links together, divided by the records that nodes accepted from others for the
/// first time (abstentions and duplicates do not count). `None` when there was no such record.
/// For vector algorithms: divided by the gradients of all nodes; no payload is told apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Wire {
    /// Bytes of the records themselves.
    pub payload_bytes_per_gradient: Option<f64>,
    /// Bytes of all frames of the exchange protocol.
    pub application_bytes_per_gradient: Option<f64>,
    /// Bytes that the sockets carried.
    pub transport_bytes_per_gradient: Option<f64>,
}

/// One node's line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeLine {
    /// Position in the topology.
    pub index: usize,
    /// libp2p name.
    pub peer_id: String,
    /// Whether it was told to misbehave.
    pub faulty: bool,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Mean weight of every node in the rounds that this one closed, by roster position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// Mean trust of every node in the same rounds; empty where the rule compares nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<f64>,
    /// Roster positions of those whose records counted for nothing in the end, with the round from
    /// which on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<(usize, u64)>,
    /// What audits said of every node in the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audit_scores: Vec<Option<f64>>,
    /// Share of held-out rows classified rightly.
    pub accuracy: f64,
    /// Mean held-out loss.
    pub loss: f64,
    /// Vector algorithms: mean loss over all training rows, with the model's penalty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Probes measured, or gradients made.
    pub probes: u64,
    /// Rounds closed, or units of time.
    pub round: u64,
    /// Digest chain, of a record set.
    pub digest: Option<String>,
    /// BLAKE3 of the parameters, of a record set.
    pub state_hash: Option<String>,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// The end is certified here; `None` where nothing is.
    pub certified: Option<bool>,
    /// Time without anything to measure, as a share of the run.
    pub idle_fraction: f64,
    /// Records of others accepted for the first time.
    pub accepted: u64,
    /// Bytes of these records.
    pub accepted_bytes: u64,
    /// Own records that came too late to be certified: nobody counts them.
    #[serde(default)]
    pub dropped: u64,
    /// Bytes that the sockets wrote.
    pub transport_bytes_out: u64,
    /// What was missing at the end, if anything.
    pub missing: String,
    /// A parameter is about to leave the range of its integer: the run has diverged.
    pub out_of_range: bool,
    /// How long the run took at this node.
    pub running_s: f64,
    /// Its ends of edges.
    pub edges: Vec<EdgeEnd>,
}

/// One end of an edge: this node's half of its clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EdgeEnd {
    /// libp2p name of the neighbor.
    pub peer_id: String,
    /// How often the clock fired.
    pub fired: u64,
    /// Exchanges completed.
    pub completed: u64,
}

/// How an edge's clock did.
#[derive(Clone, Debug, Serialize)]
pub struct EdgeLine {
    /// The lower end.
    pub a: usize,
    /// The upper end.
    pub b: usize,
    /// Exchanges a second that the clocks of both ends asked for.
    pub planned_per_s: f64,
    /// Exchanges a second that were completed.
    pub realised_per_s: f64,
}

/// A realised rate below this share of the planned one is warned about: DADAO's constants hold for
/// the rate that is realised.
pub const REALISED_MIN: f64 = 0.85;

/// What became of a node that was told to misbehave.
#[derive(Clone, Debug, Serialize)]
pub struct FaultyLine {
    /// Position in the topology.
    pub index: usize,
    /// What it did.
    pub kind: FaultKind,
    /// How strongly, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Mean weight of its records in closed rounds, beside that of the honest nodes' records.
    pub selected_fraction: f64,
    /// How far its values agree with the others' (`src/selection/trust.rs`), as the honest nodes see it:
    /// a correlation, mean over rounds; null where the rule compares nobody.
    pub trust: Option<f64>,
    /// Correlation of its bytes with their repetitions, in the end; null without audits.
    pub audit_score: Option<f64>,
    /// The round from which on its records counted for nothing; null if they always counted.
    pub excluded_from_round: Option<u64>,
}

/// The result of a run, as `local --json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What the nodes ran.
    pub algorithm: String,
    /// Nodes.
    pub nodes: usize,
    /// Nodes that were not told to misbehave.
    pub honest: usize,
    /// Rounds of the run.
    pub rounds: u64,
    /// From the first node's start to the last one's end.
    pub seconds: f64,
    /// Probes of all nodes.
    pub probes: u64,
    /// Held-out accuracy of the honest nodes.
    pub accuracy: Spread,
    /// Held-out loss of the honest nodes.
    pub loss: Loss,
    /// Whether they agree.
    pub agreement: Agreement,
    /// Vector algorithms: the largest distance of a node's parameters from the mean of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consensus_distance: Option<f64>,
    /// Vector algorithms: exchanges of all edges together (MoNNA: half steps used).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchanges: Option<u64>,
    /// Bytes per gradient.
    pub wire: Wire,
    /// Mean share of time without anything to measure.
    pub idle_fraction: f64,
    /// The nodes that were told to misbehave.
    pub faulty: Vec<FaultyLine>,
    /// Share of the honest nodes whose records counted for nothing in the end.
    pub honest_excluded_fraction: f64,
    /// Mean held-out accuracy of the same nodes in the same run without faults, if one was made.
    pub baseline_accuracy: Option<f64>,
    /// A line a node.
    pub per_node: Vec<NodeLine>,
    /// A line an edge.
    pub edges: Vec<EdgeLine>,
}

/// Both ends of each edge together. An end that saw its neighbor leave first is missing.
fn edge_lines(nodes: &[NodeLine]) -> Vec<EdgeLine> {
    let mut sums = std::collections::BTreeMap::<(usize, usize), (f64, f64)>::new();
    for node in nodes {
        for end in &node.edges {
            let Some(other) = nodes.iter().find(|other| other.peer_id == end.peer_id) else {
                continue;
            };
            let key = (node.index.min(other.index), node.index.max(other.index));
            let (planned, realised) = sums.entry(key).or_default();
            let seconds = node.running_s.max(1e-9);
            *planned += end.fired as f64 / seconds;
            *realised += end.completed as f64 / seconds;
        }
    }
    let line = |((a, b), (planned_per_s, realised_per_s))| EdgeLine {
        a,
        b,
        planned_per_s,
        realised_per_s,
    };
    sums.into_iter().map(line).collect()
}

/// What the honest nodes made of the faulty ones. The roster is in the order of the nodes.
fn faulty_lines(nodes: &[NodeLine]) -> Vec<FaultyLine> {
    let honest: Vec<&NodeLine> = nodes.iter().filter(|node| !node.faulty).collect();
    let count = honest.len().max(1) as f64;
    let weight = |index: usize| {
        honest.iter().filter_map(|node| node.weights.get(index)).sum::<f64>() / count
    };
    let trust = |index: usize| {
        let seen: Vec<f64> =
            honest.iter().filter_map(|node| node.trust.get(index)).copied().collect();
        (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64)
    };
    let usual = honest.iter().map(|node| weight(node.index)).sum::<f64>() / count;
    let line = |node: &NodeLine| {
        let Fault { kind, factor } = node.fault?;
        let share = if usual > 0.0 { weight(node.index) / usual } else { 0.0 };
        let index = node.index;
        let first = honest.first();
        let excluded = first.and_then(|of| of.excluded.iter().find(|(at, _)| *at == index));
        Some(FaultyLine {
            index,
            kind,
            factor,
            selected_fraction: share,
            trust: trust(index),
            audit_score: first.and_then(|of| *of.audit_scores.get(index)?),
            excluded_from_round: excluded.map(|(_, round)| *round),
        })
    };
    nodes.iter().filter_map(line).collect()
}

fn excluded_fraction(nodes: &[NodeLine]) -> f64 {
    let honest: Vec<&NodeLine> = nodes.iter().filter(|node| !node.faulty).collect();
    let Some(first) = honest.first() else { return 0.0 };
    let excluded =
        honest.iter().filter(|node| first.excluded.iter().any(|(at, _)| *at == node.index)).count();
    excluded as f64 / honest.len() as f64
}

/// Held-out loss.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loss {
    /// Mean over the honest nodes.
    pub mean: f64,
}

impl NodeLine {
    /// The line of a node that has ended.
    pub fn new(index: usize, outcome: &Outcome) -> NodeLine {
        let stats = &outcome.stats;
        let running = stats.running.as_secs_f64();
        let idle = stats.idle.as_secs_f64();
        NodeLine {
            index,
            peer_id: outcome.peer_id.to_string(),
            faulty: outcome.fault.is_some(),
            fault: outcome.fault,
            weights: outcome.weights.clone(),
            trust: outcome.trust.clone(),
            excluded: outcome
                .excluded
                .iter()
                .map(|(origin, from)| (origin.index(), *from))
                .collect(),
            audit_scores: outcome.audit_scores.clone(),
            accuracy: outcome.report.test.accuracy,
            loss: outcome.report.test.loss,
            train_loss: None,
            probes: stats.probes,
            round: outcome.round,
            digest: Some(outcome.digest.clone()),
            state_hash: Some(hex(&outcome.report.state_hash)),
            bytes_in: stats.bytes_received,
            bytes_out: stats.bytes_sent,
            certified: Some(outcome.ending == Ending::Certified),
            idle_fraction: if running > 0.0 { (idle / running).min(1.0) } else { 0.0 },
            accepted: stats.accepted,
            accepted_bytes: stats.accepted_bytes,
            dropped: stats.dropped,
            transport_bytes_out: outcome.counters.transport_bytes_out,
            missing: outcome.missing.clone(),
            out_of_range: outcome.report.out_of_range,
            running_s: running,
            edges: outcome
                .edges
                .iter()
                .map(|&(peer, fired, completed)| EdgeEnd {
                    peer_id: peer.to_string(),
                    fired,
                    completed,
                })
                .collect(),
        }
    }
}

impl Summary {
    /// Sums up the nodes of a record set's run; at least one is honest.
    pub fn new(algorithm: &str, rounds: u64, seconds: f64, per_node: Vec<NodeLine>) -> Summary {
        let honest: Vec<&NodeLine> = per_node.iter().filter(|node| !node.faulty).collect();
        let first = honest.first().expect("a run has an honest node");
        let identical = honest.iter().all(|node| {
            let agrees = node.digest == first.digest && node.state_hash == first.state_hash;
            node.certified == Some(true) && agrees
        });
        let agreement = Agreement {
            identical: Some(identical),
            digest: first.digest.clone(),
            state_hash: first.state_hash.clone(),
        };
        let total = |of: fn(&NodeLine) -> u64| per_node.iter().map(of).sum::<u64>();
        let accepted = total(|node| node.accepted);
        let each = |bytes: u64| (accepted > 0).then(|| bytes as f64 / accepted as f64);
        let wire = Wire {
            payload_bytes_per_gradient: each(total(|node| node.accepted_bytes)),
            application_bytes_per_gradient: each(total(|node| node.bytes_out)),
            transport_bytes_per_gradient: each(total(|node| node.transport_bytes_out)),
        };
        Summary::with(algorithm, rounds, seconds, per_node, agreement, wire)
    }

    /// Sums up the nodes of a vector algorithm's run.
    pub fn of_vectors(
        algorithm: &str,
        rounds: u64,
        seconds: f64,
        per_node: Vec<NodeLine>,
        exchanges: u64,
        consensus_distance: f64,
    ) -> Summary {
        let total = |of: fn(&NodeLine) -> u64| per_node.iter().map(of).sum::<u64>();
        let gradients = total(|node| node.probes);
        let each = |bytes: u64| (gradients > 0).then(|| bytes as f64 / gradients as f64);
        let wire = Wire {
            payload_bytes_per_gradient: None,
            application_bytes_per_gradient: each(total(|node| node.bytes_out)),
            transport_bytes_per_gradient: each(total(|node| node.transport_bytes_out)),
        };
        let agreement = Agreement { identical: None, digest: None, state_hash: None };
        Summary {
            consensus_distance: Some(consensus_distance),
            exchanges: Some(exchanges),
            ..Summary::with(algorithm, rounds, seconds, per_node, agreement, wire)
        }
    }

    fn with(
        algorithm: &str,
        rounds: u64,
        seconds: f64,
        per_node: Vec<NodeLine>,
        agreement: Agreement,
        wire: Wire,
    ) -> Summary {
        let honest: Vec<&NodeLine> = per_node.iter().filter(|node| !node.faulty).collect();
        let total = |of: fn(&NodeLine) -> u64| per_node.iter().map(of).sum::<u64>();
        let mean = |of: fn(&NodeLine) -> f64| {
            honest.iter().map(|node| of(node)).sum::<f64>() / honest.len() as f64
        };
        let accuracies = || honest.iter().map(|node| node.accuracy);
        Summary {
            algorithm: algorithm.into(),
            consensus_distance: None,
            exchanges: None,
            nodes: per_node.len(),
            honest: honest.len(),
            rounds,
            seconds,
            probes: total(|node| node.probes),
            accuracy: Spread {
                min: accuracies().fold(f64::INFINITY, f64::min),
                mean: mean(|node| node.accuracy),
                max: accuracies().fold(f64::NEG_INFINITY, f64::max),
            },
            loss: Loss { mean: mean(|node| node.loss) },
            agreement,
            wire,
            idle_fraction: mean(|node| node.idle_fraction),
            faulty: faulty_lines(&per_node),
            honest_excluded_fraction: excluded_fraction(&per_node),
            baseline_accuracy: None,
            edges: edge_lines(&per_node),
            per_node,
        }
    }

    /// What people should know beside the result.
    pub fn warnings(&self) -> Vec<String> {
        let mut honest = self.per_node.iter().filter(|node| !node.faulty);
        let diverged = honest.any(|node| node.out_of_range || !node.loss.is_finite());
        let diverged = diverged.then(|| {
            "the model has diverged: a parameter or the loss left its range; choose a smaller --step"
                .into()
        });
        diverged.into_iter().chain(self.slow_edges()).collect()
    }

    /// Edges that realised too little of their rate.
    fn slow_edges(&self) -> Option<String> {
        let share = |edge: &EdgeLine| edge.realised_per_s / edge.planned_per_s;
        let mut slow: Vec<&EdgeLine> =
            self.edges.iter().filter(|edge| share(edge) < REALISED_MIN).collect();
        slow.sort_by(|a, b| share(a).total_cmp(&share(b)));
        let worst = slow.first()?;
        Some(format!(
            "{} of {} edges realised less than {:.0} % of their rate, edge {}–{} {:.1} of {:.1} \
             exchanges a second ({:.0} %): machines or links cannot keep up, choose a {}",
            slow.len(),
            self.edges.len(),
            100.0 * REALISED_MIN,
            worst.a,
            worst.b,
            worst.realised_per_s,
            worst.planned_per_s,
            100.0 * share(worst),
            if self.exchanges.is_some() { "larger --unit-ms" } else { "lower --edge-rate" }
        ))
    }

    /// The table and the verdict.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{:>4}  {:<14} {:>8} {:>8} {:>9} {:>10} {:>10}  {}\n",
            "node", "peer", "accuracy", "loss", "probes", "bytes in", "bytes out", "digest"
        );
        for node in &self.per_node {
            let peer: String = node
                .peer_id
                .chars()
                .skip(node.peer_id.chars().count().saturating_sub(12))
                .collect();
            text += &format!(
                "{:>4}  …{:<13} {:>7.2}% {:>8} {:>9} {:>10} {:>10}  {}{}\n",
                node.index,
                peer,
                100.0 * node.accuracy,
                finite(node.loss),
                node.probes,
                node.bytes_in,
                node.bytes_out,
                node.digest.as_ref().map_or("-", |digest| &digest[..16.min(digest.len())]),
                if node.certified == Some(false) { "  (not certified)" } else { "" },
            );
        }
        let rate = self.probes as f64 / self.seconds;
        let what = if self.exchanges.is_some() { "gradients" } else { "probes" };
        text += &format!(
            "\n{} rounds, {} {what} in {:.1} s ({:.0} a second), {:.1} % of the time idle\n",
            self.rounds,
            self.probes,
            self.seconds,
            rate,
            100.0 * self.idle_fraction
        );
        text += &self.faults_to_text();
        text + &self.verdict() + "\n"
    }

    /// What the faulty nodes did and what became of it; nothing where all are honest.
    fn faults_to_text(&self) -> String {
        if self.faulty.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "\n{:>4}  {:<20} {:>8} {:>6} {:>6}  {}\n",
            "node", "fault", "selected", "trust", "audits", "excluded"
        );
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        for line in &self.faulty {
            let fault = Fault { kind: line.kind, factor: line.factor }.to_string();
            text += &format!(
                "{:>4}  {fault:<20} {:>7.0}% {:>6} {:>6}  {}\n",
                line.index,
                100.0 * line.selected_fraction,
                number(line.trust),
                number(line.audit_score),
                line.excluded_from_round
                    .map_or("no".into(), |round| format!("from round {round} on"))
            );
        }
        text += &format!("accuracy of the honest nodes {:.2} %", 100.0 * self.accuracy.mean);
        if let Some(baseline) = self.baseline_accuracy {
            text += &format!(", without faults {:.2} %", 100.0 * baseline);
        }
        text + &format!("; {:.0} % of them excluded\n\n", 100.0 * self.honest_excluded_fraction)
    }

    /// What a vector algorithm reached, in one line.
    fn closeness(&self, distance: f64) -> String {
        let diverged = self.per_node.iter().any(|node| node.out_of_range);
        let early = self.per_node.iter().find(|node| !node.missing.is_empty());
        let losses = self.per_node.iter().filter_map(|node| node.train_loss);
        let worst = losses.fold(f64::NEG_INFINITY, f64::max);
        let head = match (diverged, early) {
            (true, _) => "DIVERGED: parameters are no longer finite".into(),
            (_, Some(node)) => format!("UNFINISHED: node {} lacked {}", node.index, node.missing),
            _ => format!(
                "CLOSE to {distance:.3e}: the largest distance of a node from the mean of all {}; \
                 training loss {worst:.6} at the worst node",
                self.nodes
            ),
        };
        let exchanges = self.exchanges.unwrap_or(0);
        match (self.wire.application_bytes_per_gradient, self.wire.transport_bytes_per_gradient) {
            (Some(application), Some(transport)) => format!(
                "{head}; {exchanges} exchanges, {application:.0} bytes a gradient in frames, \
                 {transport:.0} at the sockets"
            ),
            _ => head,
        }
    }

    /// One line: agreement and bytes.
    pub fn verdict(&self) -> String {
        if let Some(distance) = self.consensus_distance {
            return self.closeness(distance);
        }
        let agreement = if self.agreement.identical == Some(true) {
            format!("IDENTICAL: all {} honest nodes hold the same model bit for bit", self.honest)
        } else {
            let missing =
                self.per_node.iter().find(|node| node.certified != Some(true) && !node.faulty);
            let why = missing.map_or("their digests differ".into(), |node| {
                format!("node {} still waited for {}", node.index, node.missing)
            });
            format!("NOT IDENTICAL: {why}")
        };
        let wire = &self.wire;
        match (
            wire.payload_bytes_per_gradient,
            wire.application_bytes_per_gradient,
            wire.transport_bytes_per_gradient,
        ) {
            (Some(payload), Some(application), Some(transport)) => format!(
                "{agreement}; {payload:.0} byte a gradient and link in payload, \
                 {application:.2} with all frames, {transport:.2} at the sockets"
            ),
            _ => format!("{agreement}; nothing crossed a link"),
        }
    }
}

/// A number for a table; a dash where there is none.
fn finite(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "-".into() }
}
