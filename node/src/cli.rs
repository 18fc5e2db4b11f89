//! The command line: what people type, exit codes, logs.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{control, init, local, node, topology};

/// Train one model on many machines by gossip, one byte at a time.
///
/// Exit codes: 0 fine; 1 failed; 2 usage; 3 honest nodes disagree or the end was not certified;
/// 4 no peer could be reached.
#[derive(Parser)]
#[command(name = "rumormill", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much is logged on stderr: error, warn, info, debug, trace, or by module
    #[arg(long, global = true, env = "RUMORMILL_LOG")]
    log: Option<String>,
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    Local(Box<local::LocalArgs>),
    Init(Box<init::InitArgs>),
    Node(Box<node::NodeArgs>),
    Id(node::IdArgs),
    Status(control::StatusArgs),
    Fault(control::FaultArgs),
    Topology(topology::TopologyArgs),
}

/// A mistake on the command line that the parser cannot see; ends with exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Fails with a usage error.
///
/// # Errors
/// Always.
pub fn usage(message: String) -> Result<()> {
    Err(Usage(message).into())
}

/// No peer could be reached; ends with exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

/// Writes a result on stdout. A reader that has closed the pipe has what it wanted: the program ends
/// quietly.
///
/// # Errors
/// Stdout cannot be written, for instance because the disk is full.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("cannot write to stdout"),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no mistakes; they go to stdout, in full.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            eprintln!("{}", mistake(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    let default = match cli.command {
        Command::Local(_) => "warn",
        _ => "info",
    };
    if let Err(problem) = start_log(cli.log.as_deref().unwrap_or(default), cli.log_format) {
        eprintln!("error: --log: {problem}");
        return ExitCode::from(2);
    }
    let result = match &cli.command {
        Command::Local(args) => local::run(args),
        Command::Init(args) => init::run(args),
        Command::Node(args) => node::run(args),
        Command::Id(args) => node::print_id(args),
        Command::Status(args) => control::status(args),
        Command::Fault(args) => control::fault(args),
        Command::Topology(args) => topology::run(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(match error {
                _ if error.is::<Usage>() => 2,
                _ if error.is::<Unreachable>() => 4,
                _ => 1,
            })
        }
    }
}

/// What the parser has to say of a mistake, in one line: without the usage, which `--help` shows.
fn mistake(rendered: &str) -> String {
    let told = rendered.split("\nUsage:").next().unwrap_or(rendered);
    let told = told.split("\nFor more information").next().unwrap_or(told);
    let lines: Vec<&str> = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ") + " (see --help)"
}

/// An error and its causes, in one line. Some errors name their cause themselves; it is not said
/// twice.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

fn start_log(level: &str, format: LogFormat) -> Result<(), String> {
    // A bare level is for this program; the libraries' own chatter is shown on request only.
    let directives = match level {
        "error" | "warn" | "info" | "debug" | "trace" => {
            format!("warn,libp2p=error,yamux=off,rumormill={level},rumormill_node={level}")
        }
        other => other.into(),
    };
    let filter = EnvFilter::try_new(directives).map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
