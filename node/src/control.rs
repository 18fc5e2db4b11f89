//! The local interface of a running node: a Unix domain socket, `control`, in its data directory.
//!
//! One connection carries one line of JSON with a [`Request`] and one with its [`Answer`]. Only who may
//! write to the socket (mode 0600) is heard; nothing of it is reachable from the network.

use anyhow::Result;
use rumormill::fault::{Fault, FaultKind};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "control";

/// The longest request or answer, in bytes: room for a roster's worth of identities.
const LINE_LEN_MAX: u64 = 1 << 20;

/// What a running node can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Misbehave from now on.
    FaultSet {
        /// How.
        fault: Fault,
    },
    /// Behave from now on.
    FaultClear,
    /// Say how it goes.
    Status,
    /// Say what is known of every member.
    Peers,
    /// Write a checkpoint into the data directory.
    Checkpoint,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done,
    /// It was not done.
    Refused {
        /// Why.
        reason: String,
    },
    /// How it goes.
    Status(Box<Status>),
    /// The checkpoint is written.
    Checkpoint {
        /// Heights in it.
        height: u64,
        /// The first round that is not in it.
        round: u64,
    },
    /// What is known of every member.
    Peers {
        /// A line each, by roster position.
        members: Vec<MemberLine>,
    },
}

/// What a node holds of a member of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberLine {
    /// Its libp2p name.
    pub node: String,
    /// Whether it is a neighbor now.
    pub connected: bool,
    /// Mean weight of its records in the rounds closed here, beside the mean over all members.
    pub weight: Option<f64>,
    /// Mean trust in the same rounds, in [−1, 1]; `None` where the selection rule compares nobody.
    pub trust: Option<f64>,
    /// Correlation of its bytes with their repetitions by auditors; `None` while these are few.
    pub audit_score: Option<f64>,
    /// Whether audits speak against it, too little for a verdict: its records have no weight as long.
    pub doubted: bool,
    /// The round from which on its records count for nothing.
    pub excluded_from_round: Option<u64>,
    /// Why.
    pub cause: Option<Cause>,
}

/// Why a member is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its bytes do not fit what auditors measured in the same places.
    Audits,
    /// It signed two statements that cannot both be honest.
    Equivocation,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cause::Audits => "audits",
            Cause::Equivocation => "equivocation",
        })
    }
}

/// How a node is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The run's identity.
    pub run: String,
    /// This node.
    pub node: String,
    /// Rounds closed.
    pub round: u64,
    /// Rounds of the run.
    pub rounds: u64,
    /// Heights certified.
    pub certified: u64,
    /// Heights of the run.
    pub heights: u64,
    /// Probes measured here.
    pub probes: u64,
    /// What was counted since the node was started.
    #[serde(default)]
    pub counts: Counts,
    /// Members.
    pub members: usize,
    /// libp2p names of the neighbors.
    pub peers: Vec<String>,
    /// What is waited for.
    pub stalled: Option<String>,
    /// Nodes whose records count for nothing.
    pub excluded: Vec<String>,
    /// The fault that was injected.
    pub fault: Option<Fault>,
}

/// What a node counts; see [`rumormill::protocol::Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Records of others accepted for the first time.
    pub accepted: u64,
    /// Records received again.
    pub duplicates: u64,
    /// Bytes of frames sent.
    pub bytes_sent: u64,
    /// Bytes of frames received.
    pub bytes_received: u64,
    /// Exchanges begun.
    pub exchanges: u64,
    /// Rounds closed for lack of patience.
    pub impatient: u64,
    /// Frames and statements of others that broke the protocol.
    pub offences: u64,
    /// Acks signed.
    pub acks: u64,
    /// Records that came too late to be certified.
    pub dropped: u64,
    /// Probes of others that were repeated.
    pub audits: u64,
}

impl Counts {
    /// Of a protocol's numbers.
    pub fn new(stats: &rumormill::protocol::Stats) -> Counts {
        Counts {
            accepted: stats.accepted,
            duplicates: stats.duplicates,
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            exchanges: stats.exchanges,
            impatient: stats.impatient,
            offences: stats.offences,
            acks: stats.acks,
            dropped: stats.dropped,
            audits: stats.audits,
        }
    }
}

/// A request on its way to the node's loop.
pub struct Command {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// Change how a running node of a lab run behaves.
#[derive(Clone, Debug, clap::Args)]
pub struct FaultArgs {
    #[command(subcommand)]
    command: FaultCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum FaultCommand {
    /// Misbehave from now on
    Set {
        /// What to do: sign-flip, alie, silent, equivocation, …
        kind: FaultKind,
        /// How strongly
        #[arg(long)]
        factor: Option<f64>,
        /// The node's data directory
        #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
        data_dir: std::path::PathBuf,
    },
    /// Behave from now on
    Clear {
        /// The node's data directory
        #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
        data_dir: std::path::PathBuf,
    },
}

/// Say how a running node is doing.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: std::path::PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Say what a running node holds of the other members: weight, trust, audit score, exclusion.
#[derive(Clone, Debug, clap::Args)]
pub struct PeersArgs {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "RUMORMILL_DATA_DIR")]
    pub data_dir: std::path::PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs `rumormill peers`.
pub fn peers(args: &PeersArgs) -> Result<u8> {
    let members = match ask(&args.data_dir, &Request::Peers)? {
        Answer::Peers { members } => members,
        Answer::Refused { reason } => anyhow::bail!("{reason}"),
        _ => anyhow::bail!("the node gave no list of members; is it of another version?"),
    };
    let text = match args.json {
        true => serde_json::to_string(&serde_json::json!({ "members": members }))? + "\n",
        false => members_to_text(&members),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn members_to_text(members: &[MemberLine]) -> String {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let mut text = format!(
        "{:<54} {:<9} {:>6} {:>6} {:>6}  {}\n",
        "node", "neighbor", "weight", "trust", "audits", "excluded"
    );
    for line in members {
        let excluded = match (line.excluded_from_round, line.cause) {
            (Some(round), Some(cause)) => format!("from round {round} on, by {cause}"),
            _ if line.doubted => "in doubt: no weight for the time being".into(),
            _ => "no".into(),
        };
        text += &format!(
            "{:<54} {:<9} {:>6} {:>6} {:>6}  {excluded}\n",
            line.node,
            if line.connected { "yes" } else { "no" },
            number(line.weight),
            number(line.trust),
            number(line.audit_score),
        );
    }
    text
}

/// Runs `rumormill fault`.
pub fn fault(args: &FaultArgs) -> Result<u8> {
    let (request, directory) = match &args.command {
        FaultCommand::Set { kind, factor, data_dir } => {
            let fault = match Fault::new(*kind, *factor) {
                Ok(fault) => fault,
                Err(error) => return crate::cli::usage(error.to_string()).map(|()| 2),
            };
            (Request::FaultSet { fault }, data_dir)
        }
        FaultCommand::Clear { data_dir } => (Request::FaultClear, data_dir),
    };
    match ask(directory, &request)? {
        Answer::Refused { reason } => anyhow::bail!("{reason}"),
        _ => Ok(0),
    }
}

/// Runs `rumormill status`.
pub fn status(args: &StatusArgs) -> Result<u8> {
    let status = match ask(&args.data_dir, &Request::Status)? {
        Answer::Status(status) => status,
        Answer::Refused { reason } => anyhow::bail!("{reason}"),
        _ => anyhow::bail!("the node gave no status; is it of another version?"),
    };
    if args.json {
        crate::cli::print(&(serde_json::to_string(&status)? + "\n"))?;
    } else {
        crate::cli::print(&status.to_text())?;
    }
    Ok(0)
}

impl Status {
    fn to_text(&self) -> String {
        let mut text = format!(
            "run       {}\nnode      {}\nround     {} of {}\ncertified {} of {} heights\nprobes    \
             {}\nmembers   {}\npeers     {}\n",
            self.run,
            self.node,
            self.round,
            self.rounds,
            self.certified,
            self.heights,
            self.probes,
            self.members,
            self.peers.len()
        );
        for peer in &self.peers {
            text += &format!("          {peer}\n");
        }
        if let Some(reason) = &self.stalled {
            text += &format!("waits     {reason}\n");
        }
        for node in &self.excluded {
            text += &format!("excluded  {node}\n");
        }
        if let Some(fault) = &self.fault {
            text += &format!("fault     {fault}\n");
        }
        text
    }
}

#[cfg(unix)]
pub use unix::{Socket, ask};

#[cfg(unix)]
mod unix {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use anyhow::{Context, Result};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::Semaphore;

    use super::{Answer, LINE_LEN_MAX, Request, SOCKET_NAME};
    use crate::daemon::Handle;

    /// Connections served at a time.
    const CONNECTIONS_MAX: usize = 8;

    /// How long one may take, and how long its answer.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// The socket of a running node; dropping it removes it.
    pub struct Socket {
        path: PathBuf,
        task: tokio::task::JoinHandle<()>,
    }

    impl Socket {
        /// Listens in a data directory whose lock is held.
        ///
        /// # Errors
        /// The system refused, for instance because the path is too long.
        pub fn open(directory: &Path, handle: Handle) -> std::io::Result<Socket> {
            let path = directory.join(SOCKET_NAME);
            // The lock is ours: whoever made it is gone.
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            let task = tokio::spawn(listen(listener, handle));
            let socket = Socket { path, task };
            std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(0o600))?;
            Ok(socket)
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            self.task.abort();
            let _ = std::fs::remove_file(&self.path);
        }
    }

    async fn listen(listener: UnixListener, handle: Handle) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        // Who is too slow, or hangs up, gets no answer.
                        let _ = tokio::time::timeout(PATIENCE, serve(stream, handle)).await;
                        drop(place);
                    });
                }
                // No more files, most likely: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn serve(stream: tokio::net::UnixStream, handle: Handle) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut line = Vec::new();
        let mut reader = tokio::io::BufReader::new(reader.take(LINE_LEN_MAX));
        reader.read_until(b'\n', &mut line).await?;
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => handle.ask(request).await,
            Err(error) => Some(Answer::Refused { reason: format!("no request: {error}") }),
        };
        let ended = || Answer::Refused { reason: "the node is ending".into() };
        let mut text = serde_json::to_vec(&answer.unwrap_or_else(ended))?;
        text.push(b'\n');
        writer.write_all(&text).await
    }

    /// Asks the node that runs with a data directory.
    ///
    /// # Errors
    /// No node runs there, or its answer cannot be read.
    pub fn ask(directory: &Path, request: &Request) -> Result<Answer> {
        let path = directory.join(SOCKET_NAME);
        let none = || format!("no node runs with data directory {}", directory.display());
        let mut stream = UnixStream::connect(&path).with_context(none)?;
        let broken = || format!("the node at {} does not answer", path.display());
        let (reading, writing) = (Some(2 * PATIENCE), Some(PATIENCE));
        stream.set_read_timeout(reading).with_context(broken)?;
        stream.set_write_timeout(writing).with_context(broken)?;
        let text = serde_json::to_string(request)? + "\n";
        stream.write_all(text.as_bytes()).with_context(broken)?;
        let mut line = String::new();
        let mut reader = BufReader::new(stream.take(LINE_LEN_MAX));
        reader.read_line(&mut line).with_context(broken)?;
        serde_json::from_str(&line).with_context(broken)
    }
}

/// Asks the node that runs with a data directory.
///
/// # Errors
/// Always: this system has no Unix domain sockets.
#[cfg(not(unix))]
pub fn ask(directory: &std::path::Path, _request: &Request) -> Result<Answer> {
    anyhow::bail!("{}: this system has no Unix domain sockets", directory.display())
}
