//! `local --processes`: the same run with a child process for every node.

use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rumormill::protocol::EdgeRate;

use crate::identity::Identity;
use crate::local::{Cast, config, shares_of};
use crate::report::NodeLine;
use crate::run::{NodeSettings, Prepared, RunFile};

/// Children that are killed when they are no longer wanted.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that have ended already cannot be killed again.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a child for every node and collects their results.
pub(crate) fn run(
    cast: &Cast<'_>,
    identities: &[Identity],
    prepared: &Prepared,
) -> Result<Vec<NodeLine>> {
    let folder = std::env::temp_dir().join(format!("rumormill-local-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let lines = spawn(cast, identities, prepared, &folder);
    // Results are in hand, or the error says more than the folder would.
    let _ = std::fs::remove_dir_all(&folder);
    lines
}

fn spawn(
    cast: &Cast<'_>,
    identities: &[Identity],
    prepared: &Prepared,
    folder: &std::path::Path,
) -> Result<Vec<NodeLine>> {
    let &Cast { args, topology, shares, faults } = cast;
    let node = NodeSettings {
        data: args.run.data.clone(),
        test: args.run.test.as_ref().map(|t| t.display().to_string()).unwrap_or_default(),
        format: args.run.format.map(|format| format.to_string()).unwrap_or_default(),
        weights: args
            .run
            .language
            .weights
            .as_ref()
            .map(|w| w.display().to_string())
            .unwrap_or_default(),
        device: args.run.language.named_device(),
        text_column: args.run.language.text_column.clone().unwrap_or_default(),
        label_column: args.run.language.label_column.clone().unwrap_or_default(),
        ..NodeSettings::default()
    };
    let addresses = free_addresses(identities.len(), args.quic)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut children = Children(Vec::new());
    for (index, identity) in identities.iter().enumerate() {
        let directory = folder.join(index.to_string());
        identity.save(&directory)?;
        let (run, node) = (prepared.manifest.clone(), node.clone());
        let file = RunFile { run, node, faults: faults[index] };
        let run_file = folder.join(format!("{index}.toml"));
        crate::init::write_atomically(&run_file, &file.render()?)?;
        let mut command = Command::new(&program);
        command
            .args(["node", "--json", "--only-peers", "--sync", "never", "--log", "warn"])
            .arg("--run")
            .arg(&run_file)
            .arg("--data-dir")
            .arg(&directory)
            .args(["--listen", &addresses[index], "--index", &index.to_string()])
            .args(["--timeout", &args.timeout.to_string(), "--block", &args.block.to_string()])
            .args(["--exchanges-per-round", &args.exchanges_per_round.to_string()])
            .stdout(Stdio::piped())
            .stdin(Stdio::null());
        let edge_rate = match config(args, index).edge_rate {
            EdgeRate::PerSecond(rate) => Some(rate),
            EdgeRate::PerRound(_) => None,
        };
        for (name, rate) in [("--edge-rate", edge_rate), ("--probe-rate", args.probe_rate)] {
            if let Some(rate) = rate {
                command.args([name, &rate.to_string()]);
            }
        }
        if faults[index].is_some() {
            let others = identities.iter().zip(faults).filter(|(_, fault)| fault.is_some());
            for (other, _) in others {
                command.args(["--colluder", &other.node_id().to_string()]);
            }
        }
        for (at, share) in shares_of(topology, shares, index) {
            let peer = identities[at].peer_id();
            command.args(["--peer", &format!("{}/p2p/{peer}", addresses[at])]);
            command.args(["--edge-share", &format!("{}={share}", identities[at].node_id())]);
        }
        children.0.push(command.spawn().context("cannot start a child process")?);
    }
    let mut lines = Vec::new();
    for (index, child) in children.0.iter_mut().enumerate() {
        let mut text = String::new();
        let mut stdout = child.stdout.take().expect("stdout is piped");
        std::io::Read::read_to_string(&mut stdout, &mut text)
            .with_context(|| format!("cannot read the result of node {index}"))?;
        let status = child.wait().with_context(|| format!("cannot wait for node {index}"))?;
        if text.trim().is_empty() {
            bail!("node {index} ended without a result ({status}); its log is above");
        }
        let line = serde_json::from_str(text.trim())
            .with_context(|| format!("the result of node {index} cannot be read"))?;
        lines.push(line);
    }
    Ok(lines)
}

/// Loopback addresses with ports that are free now.
fn free_addresses(nodes: usize, quic: bool) -> Result<Vec<String>> {
    let busy = "no free port on 127.0.0.1";
    // All are held until all are known, so that none is given twice.
    if quic {
        let sockets: Vec<UdpSocket> = (0..nodes)
            .map(|_| UdpSocket::bind("127.0.0.1:0").context(busy))
            .collect::<Result<_>>()?;
        return sockets
            .iter()
            .map(|socket| Ok(format!("/ip4/127.0.0.1/udp/{}/quic-v1", socket.local_addr()?.port())))
            .collect();
    }
    let sockets: Vec<TcpListener> = (0..nodes)
        .map(|_| TcpListener::bind("127.0.0.1:0").context(busy))
        .collect::<Result<_>>()?;
    sockets
        .iter()
        .map(|socket| Ok(format!("/ip4/127.0.0.1/tcp/{}", socket.local_addr()?.port())))
        .collect()
}
