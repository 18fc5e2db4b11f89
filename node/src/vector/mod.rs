//! `local --algorithm dadao | one-byte-dadao | acid | gossip | monna`: the rivals of the record set,
//! on exact gradients, over the same sockets.
//!
//! [`plan`] turns what people typed into the constants of an algorithm; [`daemon`] runs one node; here
//! all nodes are started, watched and summed up.

mod daemon;
mod plan;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use libp2p::Multiaddr;
use rumormill::objective::{Objective, Scratch, Split};
use rumormill::vector::peer::{FRAME_LEN_MAX, Peer};
use rumormill_topology::Topology;
use tokio::sync::watch;

pub(crate) use daemon::Work;
pub use plan::VectorArgs;

use crate::identity::Identity;
use crate::init::write_atomically;
use crate::local::{LocalArgs, identity};
use crate::net::NetworkConfig;
use crate::report::{EdgeEnd, NodeLine, Summary};
use daemon::{Outcome, Progress, VectorDaemon};
use plan::Plan;

/// Samples of a trace, about.
const TRACE_SAMPLES: f64 = 60.0;

/// Runs the command. The exit code is 0 when the run ended in its time with finite parameters.
pub(crate) fn run(args: &LocalArgs, topology: &Topology) -> Result<u8> {
    let identities: Vec<Identity> =
        (0..topology.node_count()).map(|index| identity(args.run.seed, index)).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan::new(args, topology, &identities, cores)?;
    plan.announce(topology);
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(topology.node_count()))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (outcomes, trace) = runtime.block_on(tasks(args, topology, identities, &plan))?;
    let seconds = started.elapsed().as_secs_f64();
    let summary = summarize(args, &plan, &outcomes, seconds);
    let text = if args.json { serde_json::to_string(&summary)? + "\n" } else { summary.to_text() };
    crate::cli::print(&text)?;
    summary.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    // After the result is out: a full disk costs the trace alone.
    if let (Some(path), Some(trace)) = (&args.vector.trace, &trace) {
        write_atomically(path, trace)?;
    }
    let failed = outcomes.iter().any(|outcome| outcome.diverged || !outcome.missing.is_empty());
    Ok(u8::from(failed))
}

/// All nodes as tasks of this process; what they hold at the end, and the trace if one is wanted.
async fn tasks(
    args: &LocalArgs,
    topology: &Topology,
    identities: Vec<Identity>,
    plan: &Plan,
) -> Result<(Vec<Outcome>, Option<String>)> {
    let listen: Multiaddr = match args.quic {
        true => "/ip4/127.0.0.1/udp/0/quic-v1".parse()?,
        false => "/ip4/127.0.0.1/tcp/0".parse()?,
    };
    let ids: Vec<_> = identities.iter().map(Identity::node_id).collect();
    let timeout = Duration::from_secs_f64(args.timeout);
    let traced = args.vector.trace.is_some();
    let (mut daemons, mut stops, mut progress) = (Vec::new(), Vec::new(), Vec::new());
    let mut addresses = Vec::new();
    for (index, identity) in identities.iter().enumerate() {
        let allow = topology.neighbors(index).into_iter().map(|at| ids[at]);
        let network = NetworkConfig {
            listen: vec![listen.clone()],
            allow: Some(allow.filter_map(crate::identity::peer_of).collect()),
            frame_len_max: FRAME_LEN_MAX,
            queue_bytes_max: 4 * FRAME_LEN_MAX,
            ..NetworkConfig::loopback()
        };
        let peer = Peer::new(plan.settings(topology, &ids, index))?;
        let (mut daemon, stop, watcher) =
            VectorDaemon::new(peer, identity, network, plan.work(index), timeout, traced)?;
        addresses.push(daemon.listening().await);
        daemons.push(daemon);
        stops.push(stop);
        progress.push(watcher);
    }
    let mut running = tokio::task::JoinSet::new();
    for (index, mut daemon) in daemons.into_iter().enumerate() {
        let neighbors = topology.neighbors(index).into_iter();
        let neighbors = neighbors.map(|at| (ids[at], addresses[at].clone())).collect();
        daemon.set_neighbors(neighbors);
        running.spawn(async move { (index, daemon.run().await) });
    }
    let bar = tokio::spawn(watch_progress(progress.clone(), plan.duration));
    let tracer = traced.then(|| {
        let objective = Arc::clone(&plan.objective);
        let all = plan.all_rows();
        tokio::spawn(trace(progress, objective, all, plan.duration))
    });
    let mut outcomes = BTreeMap::new();
    let mut interrupted = false;
    loop {
        tokio::select! {
            joined = running.join_next() => match joined {
                Some(joined) => {
                    let (index, outcome) = joined.context("a node's task failed")?;
                    outcomes.insert(index, outcome);
                }
                None => break,
            },
            _ = tokio::signal::ctrl_c() => {
                if interrupted {
                    std::process::exit(130);
                }
                interrupted = true;
                eprintln!("stopping (again to stop at once)");
                // A node that is about to end needs no second request.
                for stop in &stops {
                    let _ = stop.try_send(());
                }
            }
        }
    }
    bar.abort();
    let trace = match tracer {
        Some(tracer) => Some(tracer.await.context("the trace failed")?),
        None => None,
    };
    Ok((outcomes.into_values().collect(), trace))
}

/// Shows progress on stderr until it is aborted: a bar on a terminal, a line now and then elsewhere.
async fn watch_progress(nodes: Vec<watch::Receiver<Progress>>, duration: f64) {
    let terminal = std::io::stderr().is_terminal();
    let bar = match terminal {
        true => ProgressBar::new(duration as u64),
        false => ProgressBar::hidden(),
    };
    let style = "{bar:32} {pos}/{len} gradients a node  {msg}  {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
    let mut said = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let progress = nodes.iter().map(|node| node.borrow().clone());
        let (mut time, mut gradients, mut exchanges) = (f64::INFINITY, 0, 0);
        for node in progress {
            time = time.min(node.time);
            gradients += node.stats.gradients;
            exchanges += node.stats.exchanges;
        }
        let message = format!("{gradients} gradients, {exchanges} exchanges");
        bar.set_position(time as u64);
        bar.set_message(message.clone());
        if !terminal && said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            eprintln!("{time:.0}/{duration:.0}  {message}");
        }
    }
}

/// Samples all nodes until the first ends. One line a sample: time, gradients, exchanges, bytes, the
/// worst and the mean training loss, and the consensus distance.
async fn trace(
    mut nodes: Vec<watch::Receiver<Progress>>,
    objective: Arc<dyn Objective>,
    rows: Vec<u32>,
    duration: f64,
) -> String {
    let mut text =
        String::from("time,gradients,exchanges,bytes,loss_worst,loss_mean,consensus_distance\n");
    let mut next = 0.0;
    // A closed channel means that a node has ended.
    while nodes[0].changed().await.is_ok() {
        let all: Vec<Progress> = nodes.iter().map(|node| node.borrow().clone()).collect();
        let time = all.iter().map(|node| node.time).fold(f64::INFINITY, f64::min);
        if time < next || all.iter().any(|node| node.x.is_empty()) {
            continue;
        }
        next = time + duration / TRACE_SAMPLES;
        let sum = |of: fn(&Progress) -> u64| all.iter().map(of).sum::<u64>();
        let (gradients, exchanges) =
            (sum(|node| node.stats.gradients), sum(|node| node.stats.exchanges));
        let bytes = sum(|node| node.stats.bytes_sent);
        let (objective, rows) = (Arc::clone(&objective), rows.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let x: Vec<&[f64]> = all.iter().map(|node| &node.x[..]).collect();
            let losses = train_losses(&*objective, &rows, &x);
            (losses, consensus_distance(&x))
        });
        let Ok((losses, distance)) = measured.await else { break };
        let worst = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let cell = |value: f64| if value.is_finite() { value.to_string() } else { String::new() };
        text += &format!(
            "{time:.3},{gradients},{exchanges},{bytes},{},{},{}\n",
            cell(worst),
            cell(mean),
            cell(distance)
        );
    }
    text
}

/// The mean loss over all training rows at each of some parameters, with the model's penalty.
fn train_losses(objective: &dyn Objective, rows: &[u32], x: &[&[f64]]) -> Vec<f64> {
    let mut scratch = Scratch::default();
    let mut unused = vec![0.0; x[0].len()];
    x.iter().map(|x| objective.gradient(x, rows, &mut unused, &mut scratch)).collect()
}

/// The largest Euclidean distance of some parameters from their mean.
fn consensus_distance(x: &[&[f64]]) -> f64 {
    let mut mean = vec![0.0; x[0].len()];
    rumormill::vector::monna::average(x.iter().copied(), &mut mean);
    x.iter().map(|x| rumormill::vector::monna::distance(x, &mean)).fold(0.0, f64::max)
}

fn summarize(args: &LocalArgs, plan: &Plan, outcomes: &[Outcome], seconds: f64) -> Summary {
    let x: Vec<&[f64]> = outcomes.iter().map(|outcome| &outcome.x[..]).collect();
    let losses = train_losses(&*plan.objective, &plan.all_rows(), &x);
    let mut scratch = Scratch::default();
    let lines = outcomes.iter().zip(losses).enumerate().map(|(index, (outcome, train_loss))| {
        let view: Vec<f32> = outcome.x.iter().map(|&value| value as f32).collect();
        let test = plan.objective.evaluate(&view, Split::Test, &mut scratch);
        let stats = &outcome.stats;
        let running_s = stats.running.as_secs_f64();
        let busy = if running_s > 0.0 { stats.busy.as_secs_f64() / running_s } else { 0.0 };
        NodeLine {
            index,
            peer_id: outcome.peer_id.to_string(),
            faulty: false,
            fault: None,
            weights: Vec::new(),
            trust: Vec::new(),
            excluded: Vec::new(),
            audit_scores: Vec::new(),
            accuracy: test.accuracy,
            loss: test.loss,
            train_loss: Some(train_loss),
            probes: stats.gradients,
            round: outcome.time.round() as u64,
            digest: None,
            state_hash: None,
            bytes_in: stats.bytes_received,
            bytes_out: stats.bytes_sent,
            certified: None,
            idle_fraction: (1.0 - busy).clamp(0.0, 1.0),
            accepted: 0,
            dropped: 0,
            accepted_bytes: 0,
            transport_bytes_out: outcome.counters.transport_bytes_out,
            missing: outcome.missing.clone(),
            out_of_range: outcome.diverged,
            running_s,
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
    });
    let lines = lines.collect();
    let exchanges = outcomes.iter().map(|outcome| outcome.stats.exchanges).sum();
    let name = args.algorithm.name();
    Summary::of_vectors(
        name,
        plan.duration as u64,
        seconds,
        lines,
        exchanges,
        consensus_distance(&x),
    )
}
