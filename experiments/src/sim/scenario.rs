//! A scenario file: nodes, graph, links, speeds, troubles, task and algorithm of a simulation.
//!
//! Every key has a default, so a file holds only what differs; unknown keys are refused. What the
//! file says is checked as a whole by [`Plan::new`](super::plan::Plan::new) before anything runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rumormill::data::shard::Shards;
use rumormill::data::source::DataFormat;
use rumormill::fault::FaultKind;
use rumormill::objective::ModelSpec;
use rumormill::selection::Rule;
use rumormill_topology::family::Family;
use rumormill_topology::rate::RateScheme;
use serde::{Deserialize, Deserializer};

use super::Usage;

/// A scenario as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What is claimed; goes into the result's README.
    pub claim: String,
    /// Number of nodes; default 8, or as many as `graph.file` has.
    pub nodes: Option<usize>,
    /// `rumormill`, `dadao`, `acid`, `gossip` (plain pairwise averaging) or `monna`.
    pub algorithm: Algorithm,
    /// Seeds, one run each; the command line's `--seeds` wins. A seed draws the graph (random
    /// families), base model, shards, speeds, clocks and links.
    pub seeds: Vec<u64>,
    /// Model seconds after which a run ends. Default: record sets end when every round is certified,
    /// vector algorithms after 100 gradient intervals (`vector.unit_ms`).
    pub time_s: Option<f64>,
    /// Model seconds between two samples of the trace. Default: a second for record sets, a
    /// hundredth of the run for vector algorithms.
    pub sample_s: Option<f64>,
    /// Who is whose neighbor.
    pub graph: Graph,
    /// How messages travel.
    pub link: Link,
    /// Times at which some nodes are cut off from the others.
    pub partition: Vec<Partition>,
    /// How fast nodes compute.
    pub compute: Compute,
    /// Nodes that compute more slowly.
    pub straggler: Vec<Straggler>,
    /// Nodes that come and go.
    pub churn: Vec<Churn>,
    /// What is learned.
    pub task: Task,
    /// Settings of `rumormill`.
    pub run: Run,
    /// Settings of the vector algorithms.
    pub vector: Vector,
    /// Nodes that lie.
    pub fault: Vec<Fault>,
}

impl Default for Scenario {
    fn default() -> Scenario {
        Scenario {
            claim: String::new(),
            nodes: None,
            algorithm: Algorithm::Rumormill,
            seeds: vec![1],
            time_s: None,
            sample_s: None,
            graph: Graph::default(),
            link: Link::default(),
            partition: Vec::new(),
            compute: Compute::default(),
            straggler: Vec::new(),
            churn: Vec::new(),
            task: Task::default(),
            run: Run::default(),
            vector: Vector::default(),
            fault: Vec::new(),
        }
    }
}

/// What the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The record set of one-byte projected gradients: the daemon's own protocol value.
    Rumormill,
    /// DADAO on exact gradients.
    Dadao,
    /// A2CiD2: accelerated asynchronous averaging of parameters.
    Acid,
    /// Plain asynchronous pairwise averaging of parameters.
    Gossip,
    /// MoNNA: momentum and the average of the nearest half steps, in rounds.
    Monna,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Rumormill => "rumormill",
            Algorithm::Dadao => "dadao",
            Algorithm::Acid => "acid",
            Algorithm::Gossip => "gossip",
            Algorithm::Monna => "monna",
        })
    }
}

/// Who is whose neighbor, and how often they exchange.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Graph {
    /// A family of graphs: ring, complete, grid, …. Default: ring; complete for `monna`.
    #[serde(deserialize_with = "some_text")]
    pub family: Option<Family>,
    /// Rows of a grid or torus.
    pub rows: Option<usize>,
    /// Neighbors of a node, for random-regular and small-world.
    pub degree: Option<usize>,
    /// Probability of an edge (erdos-renyi) or of rewiring one (small-world).
    pub probability: Option<f64>,
    /// Reach of a node in the unit square (random-geometric).
    pub radius: Option<f64>,
    /// Seed of the random families; default: the seed of the run.
    pub seed: Option<u64>,
    /// A graph file instead of a family; a relative path is looked up beside the scenario. Its
    /// latencies and losses are not used: `[link]` says how messages travel.
    pub file: Option<PathBuf>,
    /// Proportions of the edges' rates: `uniform` (default), `file` or `optimal`.
    #[serde(deserialize_with = "some_text")]
    pub rates: Option<RateScheme>,
}

/// How messages travel. Vector algorithms exchange at once: of this they know only `loss` (the
/// exchange does not happen), as their state machines have no message under way.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// One-way delay in milliseconds. Default: uniform from 1 to 2.
    pub latency_ms: Latency,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame arrives twice.
    pub duplication: f64,
    /// Probability that a frame overtakes the ones before it.
    pub reorder: f64,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            latency_ms: Latency::Uniform { min: 1.0, max: 2.0 },
            loss: 0.0,
            duplication: 0.0,
            reorder: 0.0,
        }
    }
}

/// A distribution of delays, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Latency {
    /// Always the same: `{ constant = 20 }`.
    Constant(f64),
    /// Evenly between two bounds: `{ uniform = { min = 5, max = 50 } }`.
    Uniform {
        /// The shortest.
        min: f64,
        /// The longest.
        max: f64,
    },
    /// The logarithm is normal: `{ lognormal = { median = 20, sigma = 0.5 } }`.
    Lognormal {
        /// Half of the delays are shorter.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
}

/// A time at which links between some nodes and the others carry nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// When it begins, in model seconds.
    pub from_s: f64,
    /// When it heals.
    pub to_s: f64,
    /// One side; all others are the other side.
    pub nodes: Vec<usize>,
}

/// How fast nodes compute.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// Milliseconds of a probe at a node of average speed (record sets; a vector algorithm's gradient
    /// takes `vector.unit_ms`).
    pub probe_ms: f64,
    /// Ratio of the fastest to the slowest node: speeds are drawn log-uniformly within it.
    pub spread: f64,
}

impl Default for Compute {
    fn default() -> Compute {
        Compute { probe_ms: 10.0, spread: 1.0 }
    }
}

/// A node that computes more slowly (or faster).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Straggler {
    /// The node.
    pub node: usize,
    /// Its time for a probe is multiplied by this.
    pub factor: f64,
}

/// Something that a node does at a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// When, in model seconds.
    pub at_s: f64,
    /// Who.
    pub node: usize,
    /// What.
    pub action: ChurnAction,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChurnAction {
    /// Stops without warning; its disk survives.
    Crash,
    /// Starts again from its disk.
    Restart,
    /// Starts for the first time: until then it is absent, and no founder of the run.
    Join,
    /// Stops for good: makes no more probes, and a second later it is gone.
    Leave,
}

/// What is learned.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Task {
    /// `digits` (built in), a folder of MNIST-style idx files, a .csv or a .libsvm file; a relative
    /// path is looked up beside the scenario.
    pub data: String,
    /// File of held-out rows; without it 20 % of the rows are held out.
    pub test: Option<PathBuf>,
    /// Format of the data file if the suffix does not tell: csv, libsvm, idx.
    #[serde(deserialize_with = "some_text")]
    pub format: Option<DataFormat>,
    /// softmax, logistic[:L2] or mlp:H[,H2…].
    #[serde(deserialize_with = "text")]
    pub model: ModelSpec,
    /// How the training rows are held: public, iid or dirichlet:ALPHA.
    #[serde(deserialize_with = "text")]
    pub shards: Shards,
    /// Rows in the minibatch of a probe (record sets; see `vector.batch`).
    pub batch: u32,
    /// ε = 2^`epsilon_log2`, the length of a probe.
    pub epsilon_log2: i32,
}

impl Default for Task {
    fn default() -> Task {
        Task {
            data: "digits".into(),
            test: None,
            format: None,
            model: ModelSpec::Mlp { hidden: vec![32] },
            shards: Shards::Public,
            batch: 64,
            epsilon_log2: -8,
        }
    }
}

/// Settings of the record-set algorithm; defaults are those of `rumormill local`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Number of rounds, rounded up to whole heights.
    pub rounds: u64,
    /// Step size: the sum of absolute coefficients of a round.
    pub step: f64,
    /// Selection rule: mean, median, nna, nnm, ….
    #[serde(deserialize_with = "text")]
    pub selection: Rule,
    /// Probes of others that a node repeats for every thousand of its own; needs public data.
    pub audit_permille: u16,
    /// How faulty nodes audit.
    pub auditors: Auditors,
    /// Rounds that the selection looks at.
    pub window: u32,
    /// m, probes that a node aims at in a round.
    pub probes_per_round: u32,
    /// r, probes per direction; default 1 with the rule mean, otherwise 3.
    pub redundancy: Option<f64>,
    /// E, rounds that are certified together.
    pub rounds_per_height: u32,
    /// S, rounds that a node may run beyond the ones it has closed.
    pub staleness: u32,
    /// Faulty members to tolerate; default: the most that R ≥ 3f + 1 allows.
    pub tolerate: Option<u16>,
    /// Exchanges of a node with its neighbors in the time of a round's probes.
    pub exchanges_per_round: f64,
    /// Own records that are signed together.
    pub block: usize,
    /// Model seconds that a round may wait for records before it is closed without them.
    pub patience_s: f64,
}

impl Default for Run {
    fn default() -> Run {
        Run {
            rounds: 200,
            step: 0.07,
            selection: Rule::Mean,
            audit_permille: 0,
            auditors: Auditors::Honest,
            window: 20,
            probes_per_round: 32,
            redundancy: None,
            rounds_per_height: 8,
            staleness: 2,
            tolerate: None,
            exchanges_per_round: 2.0,
            block: 64,
            patience_s: 3.0,
        }
    }
}

/// Settings of the vector algorithms.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vector {
    /// Milliseconds of a unit of model time, in which a node of average speed makes one gradient
    /// (a Poisson clock of rate 1; for `monna` a round).
    pub unit_ms: f64,
    /// Exchanges of an average node per unit of time. Default: 1; for `dadao` the least that its
    /// theory allows on the graph.
    pub rate: Option<f64>,
    /// Step size of `acid`, `gossip` and `monna`.
    pub step: f64,
    /// Momentum of `acid` and `gossip`: the step goes along v ← momentum · v + gradient.
    pub momentum: f64,
    /// Momentum factor of `monna`: m ← β m + (1 − β) gradient.
    pub beta: f64,
    /// Margin of `dadao`, at least 1: tolerates rates lower by it.
    pub margin: f64,
    /// A penalty of mu/2 · |x|² added to every node's loss, which makes it strongly convex, as `dadao`
    /// needs it.
    pub mu: f64,
    /// Faulty nodes that `monna` tolerates; default: as many as `[[fault]]` makes.
    pub faulty: Option<usize>,
    /// Rows of a gradient's minibatch; 0 takes all rows of the node, the exact gradient.
    pub batch: usize,
}

impl Default for Vector {
    fn default() -> Vector {
        Vector {
            unit_ms: 1000.0,
            rate: None,
            step: 0.1,
            momentum: 0.0,
            beta: 0.9,
            margin: 1.0,
            mu: 0.0,
            faulty: None,
            batch: 0,
        }
    }
}

/// Nodes that lie.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which nodes.
    #[serde(default)]
    pub nodes: Vec<usize>,
    /// Instead of `nodes`: so many, from the highest number down.
    pub count: Option<usize>,
    /// What they do.
    pub kind: FaultKind,
    /// Strength; see [`rumormill::fault::value::Lie::new`].
    pub factor: Option<f64>,
}

/// How faulty nodes repeat the probes of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Auditors {
    /// As they should.
    Honest,
    /// They clear each other and find the contrary of what honest nodes told.
    Accuse,
    /// They repeat what was told, without measuring.
    Copy,
    /// They find the contrary of what one honest node told, the same for all of them, and copy
    /// of all others.
    Frame,
}

/// A value that is written as text.
fn text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn some_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text(deserializer).map(Some)
}

impl Scenario {
    /// Reads a file. Paths in it are taken from beside it.
    ///
    /// # Errors
    /// [`Usage`], with file, line and what is wrong.
    pub fn read(path: &Path) -> Result<Scenario, Usage> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Usage(format!("cannot read scenario {shown}: {error}")))?;
        let mut scenario: Scenario =
            toml::from_str(&text).map_err(|error| Usage(format!("{shown}: {error}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some(file) = &mut scenario.graph.file {
            *file = folder.join(&*file);
        }
        if let Some(test) = &mut scenario.task.test {
            *test = folder.join(&*test);
        }
        if scenario.task.data != rumormill::data::source::DIGITS {
            scenario.task.data = folder.join(&scenario.task.data).to_string_lossy().into_owned();
        }
        Ok(scenario)
    }
}
