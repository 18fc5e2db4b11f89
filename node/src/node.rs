//! `rumormill node`: one node of a run, until the run is certified or it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libp2p::multiaddr::Protocol as AddressPart;
use libp2p::{Multiaddr, PeerId};
use rumormill::codec::{FRAME_LEN_MAX, RESPONSE_LEN_MAX};
use rumormill::id::{Height, NodeId, RunId};
use rumormill::keys::Scheme;
use rumormill::language::device::Device;
use rumormill::ledger::{Context as Statement, SegmentLimits};
use rumormill::manifest::{Founders, Manifest};
use rumormill::message::{Request, Response};
use rumormill::params::State;
use rumormill::protocol::{Config, EdgeRate, Entry, GradientClock};

use crate::catchup::ModelSource;
use crate::checkpoint::{self, Advance};
use crate::cli::Unreachable;
use crate::daemon::{Checkpoints, Daemon, Ending, Handle, Neighbors, Outcome, Setup};
use crate::fault::{Crowds, Lab};
use crate::identity::{DirectoryLock, FILE_NAME, Identity, node_of, peer_of};
use crate::init::{remove_parts, write_atomically};
use crate::net::{Network, NetworkConfig, NetworkEvent};
use crate::report::NodeLine;
use crate::resume::Logged;
use crate::run::{NodeSettings, RunFile};
use crate::store::{self, LOG_NAME, Store, StoreError, Sync};

/// Start a node: it finds the others, trains with them, and ends when the run is certified.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// The run
    #[arg(long, default_value = "run.toml", value_name = "FILE", env = "RUMORMILL_RUN")]
    pub run: PathBuf,
    /// Fetch the run from a node instead of a file
    #[arg(long, value_name = "MULTIADDR", conflicts_with = "run")]
    pub join: Option<Multiaddr>,
    /// Where identity and ledger are kept (default: a folder of the run below
    /// $XDG_DATA_HOME/rumormill)
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of a peer to begin with; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    pub peer: Vec<Multiaddr>,
    /// Talk to the peers named by --peer only
    #[arg(long)]
    pub only_peers: bool,
    /// Address to listen on, instead of those in the file; may be given several times
    #[arg(long, value_name = "MULTIADDR", env = "RUMORMILL_LISTEN", value_delimiter = ',')]
    pub listen: Vec<Multiaddr>,
    /// Do not look for peers on the local network
    #[arg(long)]
    pub no_mdns: bool,
    /// Data set, instead of the one in the file: `digits`, a folder or a file
    #[arg(long, env = "RUMORMILL_DATA")]
    pub data: Option<String>,
    /// Weights of a language model, instead of those in the file
    #[arg(long, value_name = "PATH", env = "RUMORMILL_WEIGHTS")]
    pub weights: Option<PathBuf>,
    /// Where a language model computes, instead of what the file says: cpu, or in a build with the feature
    /// `cuda` an NVIDIA card, cuda or cuda:N
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Device>,
    /// Write the tuned weights of a language model to a new folder at the end
    #[arg(long, value_name = "FOLDER")]
    pub export: Option<PathBuf>,
    /// Exchanges a second on an average edge
    #[arg(long)]
    pub edge_rate: Option<f64>,
    /// Exchanges on an edge in the time of a round's probes, where no rate is given
    #[arg(long, default_value_t = 2.0)]
    pub exchanges_per_round: f64,
    /// Probes a second
    #[arg(long)]
    pub probe_rate: Option<f64>,
    /// Own records that are signed together
    #[arg(long, default_value_t = 64)]
    pub block: usize,
    /// Go on from this checkpoint of the run once the certified history has come to it
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Where the model comes from when the node is far behind: history, checkpoint (a neighbor's), auto
    #[arg(long, value_name = "SOURCE")]
    pub catch_up: Option<ModelSource>,
    /// Certified heights of which the history is kept, at least; 0 keeps everything
    #[arg(long, value_name = "HEIGHTS")]
    pub retain_heights: Option<u64>,
    /// Drop a damaged ledger from the damage on, and fetch the rest from peers
    #[arg(long)]
    pub repair: bool,
    /// When the disk must have confirmed what was written: always, never
    #[arg(long)]
    pub sync: Option<Sync>,
    /// Give up after so many seconds
    #[arg(long)]
    pub timeout: Option<f64>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics, for instance 127.0.0.1:9184
    #[arg(long, value_name = "ADDRESS", env = "RUMORMILL_METRICS")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Stay after the run is certified and serve its history to late nodes, until Ctrl-C
    #[arg(long)]
    pub stay: bool,
    /// Print one JSON object on stdout at the end
    #[arg(long)]
    pub json: bool,
    /// Relative rate of the edge to a neighbor, as NODE=SHARE
    #[arg(long, hide = true, value_parser = edge_share)]
    pub edge_share: Vec<(NodeId, f64)>,
    /// Another node that is told to misbehave, by `local --processes`
    #[arg(long, hide = true)]
    pub colluder: Vec<NodeId>,
    /// Position in the table of `local --processes`
    #[arg(long, hide = true, default_value_t = 0)]
    pub index: usize,
}

/// Print a node's identity; it is made if there is none.
#[derive(Clone, Debug, clap::Args)]
pub struct IdArgs {
    /// Where the identity is kept
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn edge_share(text: &str) -> Result<(NodeId, f64), String> {
    let (node, share) = text.split_once('=').ok_or("expected NODE=SHARE")?;
    let node = node.parse().map_err(|error| format!("{error}"))?;
    let share = share.parse().map_err(|_| "the share is no number")?;
    Ok((node, share))
}

/// Frames and answers as long as the protocol may make them.
pub fn network_limits(config: NetworkConfig) -> NetworkConfig {
    NetworkConfig {
        frame_len_max: FRAME_LEN_MAX,
        queue_bytes_max: 2 * FRAME_LEN_MAX,
        response_len_max: RESPONSE_LEN_MAX,
        ..config
    }
}

/// Lets a node send frames that are longer than the protocol allows; those who get them judge.
pub fn allow_oversized(config: &mut NetworkConfig) {
    config.frame_len_max = 2 * FRAME_LEN_MAX;
    config.queue_bytes_max = 4 * FRAME_LEN_MAX;
}

/// Runs `rumormill id`.
pub fn print_id(args: &IdArgs) -> Result<u8> {
    let identity = Identity::load_or_create(&args.data_dir)?;
    let (peer, node) = (identity.peer_id(), identity.node_id());
    if args.json {
        let object = serde_json::json!({ "peer_id": peer.to_string(), "node_id": node });
        crate::cli::print(&format!("{object}\n"))?;
    } else {
        crate::cli::print(&format!("peer id  {peer}\nnode id  {node}\n"))?;
    }
    Ok(0)
}

/// Runs `rumormill node`.
pub fn run(args: &NodeArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(start(args))
}

async fn start(args: &NodeArgs) -> Result<u8> {
    let timeout = match args.timeout.map(Duration::try_from_secs_f64).transpose() {
        Ok(timeout) if timeout != Some(Duration::ZERO) => timeout,
        _ => return crate::cli::usage("--timeout must be a positive number".into()).map(|()| 2),
    };
    if !(args.exchanges_per_round > 0.0 && args.exchanges_per_round.is_finite()) {
        crate::cli::usage("--exchanges-per-round must be a positive number".into())?;
    }
    let mut file = match &args.join {
        Some(address) => {
            let (run, node) = (fetch(address).await?, NodeSettings::default());
            RunFile { run, node, faults: None }
        }
        None => RunFile::read(&args.run)?,
    };
    if let Some(data) = &args.data {
        file.node.data.clone_from(data);
    }
    if let Some(weights) = &args.weights {
        file.node.weights = weights.to_string_lossy().into_owned();
    }
    if let Some(device) = args.device {
        file.node.device = device.to_string();
    }
    let run = file.run.run_id();
    let directory = match &args.data_dir {
        Some(directory) => directory.clone(),
        None => default_directory(&file.run)?,
    };
    let _lock = DirectoryLock::acquire(&directory)?;
    remove_parts(&directory);
    // A key that is older than its log may have signed more than the log says.
    let known = Identity::exists(&directory);
    let identity = Identity::load_or_create(&directory)?;
    let mut prepared = file.prepare()?;
    prepared.task.threads = std::thread::available_parallelism().map_or(1, usize::from);
    prepared.task.keep = args.export.is_some();
    prepared.task.objective.notes().iter().for_each(|note| tracing::info!("{note}"));
    let sync = args.sync.unwrap_or(file.node.sync);
    if !directory.join(LOG_NAME).exists() {
        check_run_file(&directory, &file)?;
    }
    let (store, entries) = match Store::open(&directory, run, sync) {
        Err(StoreError::Damaged { path, offset, problem }) if args.repair => {
            let copy = store::cut_off(&path, offset)?;
            tracing::warn!(
                "{} was damaged at byte {offset} ({problem}): the rest is dropped and fetched from \
                 peers; {} is the whole",
                path.display(),
                copy.display()
            );
            Store::open(&directory, run, sync)?
        }
        opened => opened?,
    };
    check_owner(&directory, &entries, &file.run, &identity)?;
    check_run_file(&directory, &file)?;
    keep_run_file(&directory, &file)?;
    let checkpoints = checkpoints_of(args, &directory, run, &prepared.task.base)?;
    let every = match file.node.checkpoint_s {
        0.0 => None,
        seconds => Some(Duration::try_from_secs_f64(seconds).context("node.checkpoint_s")?),
    };
    tracing::info!(
        "run {} ({} on {}), peer id {}, data directory {}",
        &run.to_string()[..12],
        file.run.model,
        file.run.data,
        identity.peer_id(),
        directory.display()
    );
    let metrics = match args.metrics {
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address);
            let listener = listener.await.with_context(|| format!("--metrics {address}"))?;
            tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
            Some(listener)
        }
        None => None,
    };
    let mut peers = args.peer.clone();
    peers.extend(parse_addresses("node.peers", &file.node.peers)?);
    peers.extend(args.join.clone());
    let lab = file.run.lab.then(|| Lab {
        fault: file.faults,
        colluders: colluders(args, &identity),
        crowds: Crowds::default(),
        dataset: Arc::clone(&prepared.dataset),
        spec: prepared.spec.clone(),
        objective: Arc::clone(&prepared.task.objective),
    });
    let setup = Setup {
        config: protocol_config(args, &file.node, &identity)?,
        network: network_config(args, &file.node, &peers, file.run.lab)?,
        neighbors: neighbors(args, &file.node, peers)?,
        manifest: prepared.manifest,
        identity,
        task: prepared.task,
        shards: prepared.shards,
        labels: Arc::new(prepared.dataset.train.labels.clone()),
        store,
        doubt: known,
        entries,
        going_on_from: checkpoints,
        waits: args.resume.is_some(),
        checkpoints: Some(Checkpoints {
            path: checkpoint::path_in(&directory),
            every,
            directory: directory.clone(),
        }),
        catch_up: args.catch_up.unwrap_or(file.node.catch_up),
        retain_heights: args.retain_heights.unwrap_or(file.node.retain_heights),
        timeout,
        stay: args.stay,
        lab,
    };
    let rounds = setup.manifest.rounds_total();
    let (mut daemon, handle) = Daemon::new(setup)?;
    write_addresses(&directory, &daemon.listening().await);
    #[cfg(unix)]
    let _socket = crate::control::Socket::open(&directory, handle.clone())
        .inspect_err(|error| tracing::warn!(%error, "no local interface"))
        .ok();
    if let Some(listener) = metrics {
        tokio::spawn(crate::metrics::serve(listener, handle.clone()));
    }
    let watcher = tokio::spawn(watch(handle.clone(), rounds));
    tokio::spawn(stop_on_signal(handle));
    let outcome = daemon.run().await?;
    watcher.abort();
    if let (Some(folder), Some(state)) = (&args.export, &outcome.report.state) {
        crate::language::export(Some(Path::new(&file.node.weights)), state, folder)?;
    }
    finish(args, &outcome)
}

/// The checkpoints to go on from, the first that fits. One's own is of use only: the log has everything,
/// too, but for what is before [`checkpoint::read_base`].
fn checkpoints_of(
    args: &NodeArgs,
    directory: &Path,
    run: RunId,
    base: &State,
) -> Result<Vec<Advance>> {
    if let Some(path) = &args.resume {
        let named = checkpoint::read(path, run, base)?.beyond(base);
        let older = checkpoint::read_base(directory, run, base)?;
        return Ok(std::iter::once(named).chain(older).collect());
    }
    let own = checkpoint::path_in(directory);
    let own = own.exists().then(|| checkpoint::read(&own, run, base));
    let own = own.map(|read| read.map(|read| read.beyond(base)));
    let usable = |read: Result<Advance>| {
        read.inspect_err(|error| tracing::warn!("{error:#}; the model is replayed without it")).ok()
    };
    let older = checkpoint::read_base(directory, run, base).transpose();
    Ok(own.into_iter().chain(older).filter_map(usable).collect())
}

/// Those that are known to misbehave, this node among them.
fn colluders(args: &NodeArgs, identity: &Identity) -> Vec<NodeId> {
    let own = std::iter::once(identity.node_id());
    let mut all: Vec<NodeId> = own.chain(args.colluder.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn finish(args: &NodeArgs, outcome: &Outcome) -> Result<u8> {
    let line = NodeLine::new(args.index, outcome);
    if args.json {
        crate::cli::print(&(serde_json::to_string(&line)? + "\n"))?;
    } else if outcome.ending == Ending::Certified {
        crate::cli::print(&format!(
            "certified: {} rounds, {} members, digest {}\nmodel {}, held-out accuracy {:.2} %, loss \
             {:.4}, {} probes made here\n",
            outcome.round,
            outcome.members,
            outcome.digest,
            line.state_hash.as_deref().unwrap_or_default(),
            100.0 * line.accuracy,
            line.loss,
            line.probes
        ))?;
    }
    match outcome.ending {
        Ending::Certified => Ok(0),
        Ending::Stopped => {
            tracing::info!(
                "stopped after {} certified heights; the same command goes on from there",
                outcome.certified
            );
            Ok(0)
        }
        Ending::TimedOut if outcome.counters.frames_in == 0 && outcome.members != 1 => {
            Err(Unreachable(
                "no peer was reached in time: are the others running, with the same run.toml, on \
                 the same network? --peer MULTIADDR names one"
                    .into(),
            )
            .into())
        }
        Ending::TimedOut => {
            eprintln!("error: time is up; still missing: {}", outcome.missing);
            Ok(3)
        }
    }
}

fn protocol_config(
    args: &NodeArgs,
    settings: &NodeSettings,
    identity: &Identity,
) -> Result<Config> {
    let rate = |flag: Option<f64>, file: f64, name: &str| -> Result<Option<f64>> {
        let rate = flag.unwrap_or(file);
        if !(rate >= 0.0 && rate.is_finite()) {
            bail!("{name} is {rate}, must be 0 or a positive number");
        }
        Ok((rate > 0.0).then_some(rate))
    };
    let edge_rate = rate(args.edge_rate, settings.edge_rate_per_s, "edge rate")?;
    let probe_rate = rate(args.probe_rate, settings.probe_rate_per_s, "probe rate")?;
    // Clocks need not be repeatable here, only different from other nodes' and other starts'.
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = started.unwrap_or_default().as_nanos().to_le_bytes();
    let seed = [&identity.seed()[..], &nanos].concat();
    Ok(Config {
        clock_seed: blake3::derive_key("rumormill v1 node clock", &seed),
        gradient: probe_rate.map_or(GradientClock::Auto, GradientClock::PerSecond),
        edge_rate: edge_rate
            .map_or(EdgeRate::PerRound(args.exchanges_per_round), EdgeRate::PerSecond),
        edge_shares: args.edge_share.iter().copied().collect(),
        block: args.block.max(1),
        ..Config::default()
    })
}

fn network_config(
    args: &NodeArgs,
    settings: &NodeSettings,
    peers: &[Multiaddr],
    lab: bool,
) -> Result<NetworkConfig> {
    let listen = match args.listen.is_empty() {
        true => parse_addresses("node.listen", &settings.listen)?,
        false => args.listen.clone(),
    };
    let allow = args.only_peers.then(|| peers.iter().filter_map(peer_in).collect::<BTreeSet<_>>());
    let mut config = network_limits(NetworkConfig {
        listen,
        mdns: settings.mdns && !args.no_mdns && !args.only_peers,
        kad: settings.kad && !args.only_peers,
        nat: settings.nat,
        allow,
        ..NetworkConfig::default()
    });
    if lab {
        allow_oversized(&mut config);
    }
    Ok(config)
}

fn neighbors(
    args: &NodeArgs,
    settings: &NodeSettings,
    addresses: Vec<Multiaddr>,
) -> Result<Neighbors> {
    if !args.only_peers {
        return Ok(Neighbors::Found { target: settings.neighbors, addresses });
    }
    let mut neighbors: BTreeMap<NodeId, Vec<Multiaddr>> = BTreeMap::new();
    for address in addresses {
        let node = peer_in(&address).and_then(node_of);
        let node = node.with_context(|| {
            format!("--only-peers needs addresses with /p2p/PEER-ID, but got {address}")
        })?;
        neighbors.entry(node).or_default().push(address);
    }
    Ok(Neighbors::Only(neighbors))
}

fn peer_in(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| match part {
        AddressPart::P2p(peer) => Some(peer),
        _ => None,
    })
}

fn parse_addresses(key: &str, texts: &[String]) -> Result<Vec<Multiaddr>> {
    let parse =
        |text: &String| text.parse().with_context(|| format!("{key}: '{text}' is no multiaddress"));
    texts.iter().map(parse).collect()
}

/// Asks a node for the manifest of its run.
async fn fetch(address: &Multiaddr) -> Result<Manifest> {
    let config = NetworkConfig { dns: true, ..NetworkConfig::loopback() };
    let config = network_limits(NetworkConfig { listen: Vec::new(), ..config });
    let mut network = Network::new(Identity::generate().to_keypair(), config)?;
    network.want_address(address.clone());
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut problem = String::from("no answer");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(event) = tokio::time::timeout(left, network.next_event()).await else {
            let text = format!("cannot fetch the run from {address}: {problem}");
            return Err(Unreachable(text).into());
        };
        match event {
            NetworkEvent::Connected { peer, .. } => {
                network.request(peer, Request::Manifest.encode());
            }
            NetworkEvent::Response { result: Ok(bytes), .. } => match Response::decode(&bytes) {
                Ok(Response::Manifest(manifest)) => {
                    manifest.check()?;
                    network.close(Duration::from_secs(1)).await;
                    return Ok(*manifest);
                }
                Ok(_) => problem = "the node has no manifest".into(),
                Err(error) => problem = error.to_string(),
            },
            NetworkEvent::Response { result: Err(error), .. } => problem = error.to_string(),
            NetworkEvent::DialFailed { reason, hint, .. } => problem = format!("{reason} ({hint})"),
            _ => {}
        }
    }
}

fn default_directory(manifest: &Manifest) -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME")) {
        (Some(data), _) if !data.is_empty() => PathBuf::from(data),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".local/share"),
        _ => bail!("neither XDG_DATA_HOME nor HOME is set; name a folder with --data-dir"),
    };
    let run = manifest.run_id().to_string();
    Ok(base.join("rumormill").join(&run[..12]))
}

/// Refuses a ledger that another node wrote: whoever goes on from it signs what it did not measure.
fn check_owner(
    directory: &Path,
    entries: &[Logged],
    manifest: &Manifest,
    identity: &Identity,
) -> Result<()> {
    let me = identity.node_id();
    let run = manifest.run_id();
    let mut members = match &manifest.founders {
        Founders::Members(members) => members.clone(),
        Founders::Minimum(_) => Vec::new(),
    };
    let name = |node: NodeId| peer_of(node).map_or(node.to_string(), |peer| peer.to_string());
    let refuse = |owner: Option<NodeId>| {
        bail!(
            "{} was written by {}, but {} is the key of {}: put the two that belong together into one \
             directory",
            directory.join(LOG_NAME).display(),
            owner.map_or("another node".into(), name),
            directory.join(FILE_NAME).display(),
            name(me)
        )
    };
    for Logged { entry, .. } in entries {
        match entry {
            Entry::Vote(vote) if vote.voter != me => return refuse(Some(vote.voter)),
            Entry::Founded(votes) => members.extend(votes.iter().map(|vote| vote.voter)),
            Entry::Own { height, segment } => {
                let limits = SegmentLimits { rounds: 0, bytes_per_round: 0, audits: 0 };
                let height = Height(*height);
                let context = Statement { run: &run, height, scheme: Scheme::Ed25519, limits };
                let signed_by = |node: &NodeId| segment.is_signed_by(&context, node);
                return match signed_by(&me) {
                    true => Ok(()),
                    false => refuse(members.into_iter().find(signed_by)),
                };
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a directory whose run file is of another run. One that cannot be read is written again.
fn check_run_file(directory: &Path, file: &RunFile) -> Result<()> {
    let path = directory.join("run.toml");
    if !path.exists() {
        return Ok(());
    }
    match RunFile::read(&path) {
        Ok(kept) if kept.run.run_id() == file.run.run_id() => {}
        Ok(kept) => bail!(
            "{} is of run {}, this is run {}; use another data directory",
            path.display(),
            kept.run.run_id(),
            file.run.run_id()
        ),
        Err(error) => {
            tracing::warn!("{error:#}; it is written again");
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Keeps the run beside its ledger, so that the directory explains itself.
fn keep_run_file(directory: &Path, file: &RunFile) -> Result<()> {
    let path = directory.join("run.toml");
    if path.exists() {
        return Ok(());
    }
    write_atomically(&path, &file.render()?)
}

/// Writes where the node listens, for scripts; a failure costs nothing else.
fn write_addresses(directory: &Path, addresses: &[Multiaddr]) {
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    if let Err(error) = write_atomically(&directory.join("addresses"), &text) {
        tracing::warn!("the addresses are not written down: {error:#}");
    }
}

/// The first signal stops the node cleanly, the second at once.
async fn stop_on_signal(handle: Handle) {
    let mut asked = false;
    loop {
        let signal = async {
            #[cfg(unix)]
            {
                use tokio::signal::unix::{SignalKind, signal};
                let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                    return tokio::signal::ctrl_c().await.is_ok();
                };
                tokio::select! {
                    caught = tokio::signal::ctrl_c() => caught.is_ok(),
                    caught = terminate.recv() => caught.is_some(),
                }
            }
            #[cfg(not(unix))]
            tokio::signal::ctrl_c().await.is_ok()
        };
        if !signal.await {
            return;
        }
        if asked {
            std::process::exit(130);
        }
        asked = true;
        eprintln!("stopping (again to stop at once)");
        handle.stop();
    }
}

/// A line in the log now and then.
async fn watch(handle: Handle, rounds: u64) {
    let mut before = None;
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let progress = handle.progress.borrow().clone();
        let state = (progress.round, progress.probes, progress.peers);
        if before.replace(state) == Some(state) && progress.round > 0 {
            continue;
        }
        match (progress.gathering, progress.waits_for) {
            (Some((present, needed)), _) => tracing::info!(
                "waiting for founders: {present} of {needed} are here, {} connected",
                progress.peers
            ),
            (None, Some(reason)) => {
                tracing::info!(round = progress.round, peers = progress.peers, "waits: {reason}");
            }
            (None, None) => tracing::info!(
                "round {} of {rounds}, {} heights certified, {} probes here, {} peers",
                progress.round,
                progress.certified,
                progress.probes,
                progress.peers
            ),
        }
    }
}
