//! `rumormill local`: a whole run on one machine, every node with its own swarm and sockets.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use libp2p::Multiaddr;
use rumormill::data::shard::Shards;
use rumormill::fault::Fault;
use rumormill::manifest::{Directions, Founders};
use rumormill::protocol::{Config, EdgeRate, GradientClock};
use rumormill::time::Time;
use rumormill_topology::Topology;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::rate::{RateScheme, probabilities};

use crate::catchup::ModelSource;
use crate::daemon::{Daemon, Handle, Neighbors, Outcome, Setup};
use crate::fault::{Crowds, Lab, Role, cast, sends_too_much};
use crate::identity::Identity;
use crate::init::AUDITS;
use crate::net::NetworkConfig;
use crate::node::{allow_oversized, network_limits};
use crate::report::{NodeLine, Summary};
use crate::run::{Prepared, RunArgs};
use crate::store::Store;
use crate::vector::VectorArgs;

/// The most nodes in one process: beyond it, the sockets of a complete graph run out of files.
const NODES_MAX: usize = 256;

/// Train on this machine: N nodes with their own sockets on the loopback interface.
#[derive(Clone, Debug, clap::Args)]
pub struct LocalArgs {
    /// Number of nodes (default 8, or as many as the topology file has)
    #[arg(long)]
    pub nodes: Option<usize>,
    /// Algorithm: rumormill; its ancestor justonebyte; or, on exact gradients and vectors, dadao,
    /// one-byte-dadao, acid, gossip, monna
    #[arg(long, default_value = "rumormill")]
    pub algorithm: AlgorithmName,
    /// Graph: complete, ring, line, star, grid, … (default: ring; complete for monna)
    #[arg(long, conflicts_with = "topology")]
    pub family: Option<Family>,
    /// Graph from a file: petgraph JSON, edge list, …
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Rates of the edges: uniform, file (the `rate` attributes of the file; as they are, unless
    /// --edge-rate says how fast an average edge is), optimal (fewest messages, after DADAO)
    #[arg(long, default_value = "uniform")]
    pub rates: RateScheme,
    /// Exchanges a second on an average edge (default: by the speed of the probes)
    #[arg(long)]
    pub edge_rate: Option<f64>,
    /// Probes a second and node (default: as fast as compute allows)
    #[arg(long)]
    pub probe_rate: Option<f64>,
    /// Exchanges of a node with its neighbors in the time of a round's probes
    #[arg(long, default_value_t = 2.0, conflicts_with = "edge_rate")]
    pub exchanges_per_round: f64,
    /// Own records that are signed together
    #[arg(long, default_value_t = 64)]
    pub block: usize,
    /// Use QUIC instead of TCP
    #[arg(long)]
    pub quic: bool,
    /// Make nodes misbehave: COUNT:KIND[:FACTOR] for the highest indices that the graph can spare, or
    /// @INDEX:KIND[:FACTOR]; kinds are sign-flip, alie, label-flip, equivocation, silent, …
    #[arg(long, value_name = "SPEC", value_delimiter = ',')]
    pub faulty: Vec<Role>,
    /// Run without faults first, for comparison
    #[arg(long, requires = "faulty")]
    pub baseline: bool,
    /// Start real child processes instead of tasks
    #[arg(long)]
    pub processes: bool,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 900.0)]
    pub timeout: f64,
    /// Write the tuned weights of a language model to a new folder
    #[arg(long, value_name = "FOLDER", requires = "weights", conflicts_with = "processes")]
    pub export: Option<PathBuf>,
    /// Print one JSON object on stdout and nothing else there
    #[arg(long)]
    pub json: bool,
    /// What to train.
    #[command(flatten)]
    pub run: RunArgs,
    /// What only the vector algorithms take.
    #[command(flatten)]
    pub vector: VectorArgs,
}

/// What the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlgorithmName {
    /// The record set: one-byte gradients along shared directions.
    Rumormill,
    /// *Just One Byte*: one-byte gradients along directions of each node's own, a barrier a round.
    Justonebyte,
    /// DADAO.
    Dadao,
    /// DADAO along shared directions, one byte each way an exchange.
    OneByteDadao,
    /// A2CiD2.
    Acid,
    /// Plain asynchronous pairwise averaging.
    Gossip,
    /// MoNNA.
    Monna,
}

impl AlgorithmName {
    const ALL: [AlgorithmName; 7] = [
        AlgorithmName::Rumormill,
        AlgorithmName::Justonebyte,
        AlgorithmName::Dadao,
        AlgorithmName::OneByteDadao,
        AlgorithmName::Acid,
        AlgorithmName::Gossip,
        AlgorithmName::Monna,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            AlgorithmName::Rumormill => "rumormill",
            AlgorithmName::Justonebyte => "justonebyte",
            AlgorithmName::Dadao => "dadao",
            AlgorithmName::OneByteDadao => "one-byte-dadao",
            AlgorithmName::Acid => "acid",
            AlgorithmName::Gossip => "gossip",
            AlgorithmName::Monna => "monna",
        }
    }

    /// Whether it is DADAO in one of its forms.
    pub fn is_dadao(self) -> bool {
        matches!(self, AlgorithmName::Dadao | AlgorithmName::OneByteDadao)
    }

    /// Whether nodes agree on a record set, and so hold the identical model.
    pub fn is_record_set(self) -> bool {
        matches!(self, AlgorithmName::Rumormill | AlgorithmName::Justonebyte)
    }
}

impl std::str::FromStr for AlgorithmName {
    type Err = String;
    fn from_str(name: &str) -> Result<AlgorithmName, String> {
        let known = AlgorithmName::ALL;
        known.into_iter().find(|algorithm| algorithm.name() == name).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|algorithm| algorithm.name()).collect();
            format!("unknown algorithm '{name}' (known: {})", known.join(", "))
        })
    }
}

fn family(args: &LocalArgs) -> Family {
    args.family.unwrap_or(match args.algorithm {
        AlgorithmName::Monna => Family::Complete,
        _ => Family::Ring,
    })
}

/// The graph that the arguments ask for.
pub fn topology(args: &LocalArgs) -> Result<Topology> {
    let topology = match &args.topology {
        Some(path) => {
            let topology = crate::topology::read(path, None)?;
            let nodes = topology.node_count();
            if let Some(asked) = args.nodes.filter(|&asked| asked != nodes) {
                crate::cli::usage(format!(
                    "--nodes {asked} does not agree with {}, which has {nodes} nodes; leave \
                     --nodes out",
                    path.display()
                ))?;
            }
            topology
        }
        None => {
            let nodes = args.nodes.unwrap_or(8);
            if nodes == 0 {
                crate::cli::usage("--nodes is 0, at least one node is needed".into())?;
            }
            let family = family(args);
            match generate(family, nodes, Parameters::default(), args.run.seed) {
                // A ring or grid of one or two nodes is what people mean by a small run.
                Err(_) if nodes <= 2 => generate(Family::Line, nodes, Parameters::default(), 0)?,
                made => made.with_context(|| format!("--family {family} --nodes {nodes}"))?,
            }
        }
    };
    topology.require_connected().with_context(|| match &args.topology {
        Some(path) => format!("topology {}", path.display()),
        None => format!("--family {}", family(args)),
    })?;
    if topology.node_count() > NODES_MAX {
        bail!(
            "{} nodes are too many for one machine's sockets; at most {NODES_MAX}",
            topology.node_count()
        );
    }
    Ok(topology)
}

/// The identity of a local node: from the run's seed, so that runs can be repeated.
pub fn identity(seed: u64, index: usize) -> Identity {
    let mut input = seed.to_le_bytes().to_vec();
    input.extend((index as u64).to_le_bytes());
    Identity::from_seed(blake3::derive_key("rumormill v1 local identity", &input))
}

/// The rate of every edge beside that of an average edge, in the topology's order.
pub fn edge_shares(args: &LocalArgs, topology: &Topology) -> Result<Vec<f64>> {
    if topology.edge_count() == 0 {
        return Ok(Vec::new());
    }
    let shares = probabilities(topology, args.rates).with_context(|| {
        format!("--rates {} on a graph of {} nodes", args.rates, topology.node_count())
    })?;
    let as_they_are = args.rates == RateScheme::File && args.edge_rate.is_none();
    let mean: f64 = topology.edges().iter().filter_map(|edge| edge.rate).sum::<f64>()
        / topology.edge_count() as f64;
    let scale = topology.edge_count() as f64 * if as_they_are { mean } else { 1.0 };
    Ok(shares.into_iter().map(|share| share * scale).collect())
}

/// Settings of a local node's protocol.
pub fn config(args: &LocalArgs, index: usize) -> Config {
    let as_they_are = args.rates == RateScheme::File && args.edge_rate.is_none();
    let automatic = match as_they_are {
        true => EdgeRate::PerSecond(1.0),
        false => EdgeRate::PerRound(args.exchanges_per_round),
    };
    let mut seed = args.run.seed.to_le_bytes().to_vec();
    seed.extend((index as u64).to_le_bytes());
    Config {
        clock_seed: blake3::derive_key("rumormill v1 local clock", &seed),
        gradient: args.probe_rate.map_or(GradientClock::Auto, GradientClock::PerSecond),
        edge_rate: args.edge_rate.map_or(automatic, EdgeRate::PerSecond),
        block: args.block.max(1),
        patience: Time::from_millis(3_000),
        ..Config::default()
    }
}

/// Runs the command. The exit code is 0 when all honest nodes agree, 3 otherwise.
pub fn run(args: &LocalArgs) -> Result<u8> {
    for (name, rate) in [("--edge-rate", args.edge_rate), ("--probe-rate", args.probe_rate)] {
        if rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            crate::cli::usage(format!("{name} must be a positive number"))?;
        }
    }
    if !(args.timeout > 0.0 && args.timeout < 1e9 && args.exchanges_per_round > 0.0) {
        crate::cli::usage("--timeout and --exchanges-per-round must be positive".into())?;
    }
    let topology = topology(args)?;
    if !args.algorithm.is_record_set() {
        if !args.faulty.is_empty() {
            crate::cli::usage(
                "--faulty is for record sets; see `rumormill-lab sim` for faults of \
                               the vector algorithms"
                    .into(),
            )?;
        }
        return crate::vector::run(args, &topology);
    }
    if args.vector.trace.is_some() {
        crate::cli::usage("--trace is for the vector algorithms; see --algorithm".into())?;
    }
    let identities: Vec<Identity> =
        (0..topology.node_count()).map(|index| identity(args.run.seed, index)).collect();
    let founders = Founders::Members(identities.iter().map(Identity::node_id).collect());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let directions = match args.algorithm {
        AlgorithmName::Justonebyte => Directions::Private,
        _ => Directions::Shared,
    };
    let mut settings = args.run.clone();
    let lies = args.faulty.iter().any(|cast| cast.fault.kind.is_value());
    if lies && settings.shards == Shards::Public && identities.len() >= 4 {
        settings.audits = settings.audits.or(Some(AUDITS));
    }
    let mut prepared = settings.prepare(founders, cores, directions)?;
    let faults = match cast(&args.faulty, &topology, &prepared.manifest) {
        Ok(faults) => faults,
        Err(problem) => return crate::cli::usage(problem).map(|()| 2),
    };
    prepared.manifest.lab = !args.faulty.is_empty();
    prepared.task.threads = (cores / topology.node_count()).max(1);
    let shares = edge_shares(args, &topology)?;
    let rounds = prepared.manifest.rounds_total();
    announce(args, &topology, &prepared);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(topology.node_count()))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let run = |faults: &[Option<Fault>]| {
        let nodes = Cast { args, topology: &topology, shares: &shares, faults };
        match args.processes {
            true => crate::processes::run(&nodes, &identities, &prepared),
            false => runtime.block_on(tasks(&nodes, &identities, &prepared)),
        }
    };
    let baseline = match args.baseline {
        true => {
            eprintln!("without faults first");
            let lines = run(&vec![None; identities.len()])?;
            let honest = || lines.iter().zip(&faults).filter(|(_, fault)| fault.is_none());
            let sum: f64 = honest().map(|(line, _)| line.accuracy).sum();
            Some(sum / honest().count() as f64)
        }
        false => None,
    };
    let started = Instant::now();
    let lines = run(&faults)?;
    let name = args.algorithm.name();
    let summary = Summary::new(name, rounds, started.elapsed().as_secs_f64(), lines);
    let summary = Summary { baseline_accuracy: baseline, ..summary };
    if args.json {
        crate::cli::print(&(serde_json::to_string(&summary)? + "\n"))?;
    } else {
        crate::cli::print(&summary.to_text())?;
    }
    for warning in summary.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(if summary.agreement.identical == Some(true) { 0 } else { 3 })
}

fn announce(args: &LocalArgs, topology: &Topology, prepared: &Prepared) {
    let manifest = &prepared.manifest;
    eprintln!(
        "{} nodes, {} edges; {} on {} ({} parameters, {} rows to train on, {} held out, {} shards); \
         {} rounds of {} directions",
        topology.node_count(),
        topology.edge_count(),
        manifest.model,
        manifest.data,
        prepared.task.base.layout().dim(),
        prepared.dataset.train.rows(),
        prepared.dataset.test.rows(),
        args.run.shards,
        manifest.rounds_total(),
        rumormill::round::directions(manifest, topology.node_count()),
    );
    prepared.task.objective.notes().iter().for_each(|note| eprintln!("{note}"));
}

/// The neighbors of a node, with the relative rates of the edges to them.
pub(crate) fn shares_of(
    topology: &Topology,
    shares: &[f64],
    index: usize,
) -> impl Iterator<Item = (usize, f64)> {
    topology.edges().iter().zip(shares).filter_map(move |(edge, &share)| match index {
        _ if edge.a == index => Some((edge.b, share)),
        _ if edge.b == index => Some((edge.a, share)),
        _ => None,
    })
}

/// The nodes of a run: their graph, and who misbehaves.
#[derive(Clone, Copy)]
pub(crate) struct Cast<'a> {
    pub(crate) args: &'a LocalArgs,
    pub(crate) topology: &'a Topology,
    pub(crate) shares: &'a [f64],
    pub(crate) faults: &'a [Option<Fault>],
}

/// All nodes as tasks of this process.
async fn tasks(
    cast: &Cast<'_>,
    identities: &[Identity],
    prepared: &Prepared,
) -> Result<Vec<NodeLine>> {
    let &Cast { args, topology, shares, faults } = cast;
    let nodes = identities.len();
    let listen: Multiaddr = match args.quic {
        true => "/ip4/127.0.0.1/udp/0/quic-v1".parse()?,
        false => "/ip4/127.0.0.1/tcp/0".parse()?,
    };
    let labels = Arc::new(prepared.dataset.train.labels.clone());
    let ids: Vec<_> = identities.iter().map(Identity::node_id).collect();
    let faulty = ids.iter().zip(faults).filter(|(_, fault)| fault.is_some());
    let lab = Lab {
        fault: None,
        colluders: faulty.map(|(id, _)| *id).collect(),
        crowds: Crowds::default(),
        dataset: Arc::clone(&prepared.dataset),
        spec: prepared.spec.clone(),
        objective: Arc::clone(&prepared.task.objective),
    };
    let mut daemons = Vec::with_capacity(nodes);
    let mut handles = Vec::with_capacity(nodes);
    let mut addresses = Vec::with_capacity(nodes);
    for (index, identity) in identities.iter().enumerate() {
        let fault = faults[index];
        let allow = topology.neighbors(index).into_iter().map(|at| ids[at]);
        let allow = allow.filter_map(crate::identity::peer_of).collect();
        let mut network = NetworkConfig {
            listen: vec![listen.clone()],
            allow: Some(allow),
            ..network_limits(NetworkConfig::loopback())
        };
        if sends_too_much(fault) {
            allow_oversized(&mut network);
        }
        let mut task = prepared.task.clone();
        task.keep =
            args.export.is_some() && fault.is_none() && faults[..index].iter().all(Option::is_some);
        let setup = Setup {
            manifest: prepared.manifest.clone(),
            identity: Identity::from_seed(*identity.seed()),
            config: Config {
                edge_shares: shares_of(topology, shares, index)
                    .map(|(at, share)| (ids[at], share))
                    .collect(),
                ..config(args, index)
            },
            network,
            neighbors: Neighbors::Only(BTreeMap::new()),
            task,
            shards: prepared.shards,
            labels: Arc::clone(&labels),
            store: Store::memory(),
            entries: Vec::new(),
            going_on_from: Vec::new(),
            waits: false,
            checkpoints: None,
            catch_up: ModelSource::History,
            retain_heights: 0,
            doubt: false,
            timeout: Some(Duration::from_secs_f64(args.timeout)),
            stay: false,
            lab: fault.map(|fault| Lab { fault: Some(fault), ..lab.clone() }),
        };
        let (mut daemon, handle) = Daemon::new(setup)?;
        addresses.push(daemon.listening().await);
        daemons.push(daemon);
        handles.push(handle);
    }
    let mut running = tokio::task::JoinSet::new();
    for (index, mut daemon) in daemons.into_iter().enumerate() {
        let neighbors = topology.neighbors(index).into_iter();
        let neighbors = neighbors.map(|at| (ids[at], addresses[at].clone())).collect();
        daemon.set_neighbors(Neighbors::Only(neighbors));
        running.spawn(async move { (index, daemon.run().await) });
    }
    let honest = faults.iter().zip(&handles).filter(|(fault, _)| fault.is_none());
    let honest: Vec<Handle> = honest.map(|(_, handle)| handle.clone()).collect();
    let watcher = tokio::spawn(watch(honest.clone(), prepared.manifest.rounds_total()));
    let ender = faults
        .iter()
        .any(Option::is_some)
        .then(|| tokio::spawn(end_together(honest, handles.clone())));
    let mut outcomes: Vec<Option<Outcome>> = vec![None; nodes];
    let mut interrupted = false;
    loop {
        tokio::select! {
            joined = running.join_next() => match joined {
                Some(joined) => {
                    let (index, outcome) = joined.context("a node's task failed")?;
                    outcomes[index] = Some(outcome?);
                }
                None => break,
            },
            _ = tokio::signal::ctrl_c() => {
                if interrupted {
                    std::process::exit(130);
                }
                interrupted = true;
                eprintln!("stopping (again to stop at once)");
                handles.iter().for_each(Handle::stop);
            }
        }
    }
    watcher.abort();
    if let Some(ender) = ender {
        ender.abort();
    }
    let state = outcomes.iter().flatten().find_map(|outcome| outcome.report.state.as_deref());
    if let (Some(folder), Some(state)) = (&args.export, state) {
        crate::language::export(args.run.language.weights.as_deref(), state, folder)?;
    }
    let lines = outcomes.iter().enumerate().map(|(index, outcome)| {
        NodeLine::new(index, outcome.as_ref().expect("every task was joined"))
    });
    Ok(lines.collect())
}

/// Stops all nodes once the honest ones hold the same certified end: a faulty one may never reach
/// it, and they would wait for it in vain.
async fn end_together(honest: Vec<Handle>, all: Vec<Handle>) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let ends: std::collections::BTreeSet<Option<String>> =
            honest.iter().map(|handle| handle.progress.borrow().finished.clone()).collect();
        if ends.len() == 1 && !ends.contains(&None) {
            all.iter().for_each(Handle::stop);
            return;
        }
    }
}

/// Shows progress on stderr until it is aborted: a bar on a terminal, a line now and then elsewhere.
async fn watch(handles: Vec<Handle>, rounds: u64) {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(rounds) } else { ProgressBar::hidden() };
    let style = "{bar:32} round {pos}/{len}  {msg}  {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
    let started = Instant::now();
    let mut said = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let progress: Vec<_> =
            handles.iter().map(|handle| handle.progress.borrow().clone()).collect();
        let round = progress.iter().map(|node| node.round).min().unwrap_or(0);
        let probes: u64 = progress.iter().map(|node| node.probes).sum();
        let rate = probes as f64 / started.elapsed().as_secs_f64();
        let waiting = progress.iter().filter(|node| node.waits_for.is_some()).count();
        let mut message = format!("{probes} probes ({rate:.0}/s)");
        if waiting > 0 {
            message += &format!(", {waiting} nodes wait");
        }
        bar.set_position(round);
        bar.set_message(message.clone());
        if !terminal && said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            eprintln!("round {round}/{rounds}  {message}");
        }
    }
}
