//! `rumormill topology`: check, generate, convert and draw communication graphs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rumormill_topology::Topology;
use rumormill_topology::draw::svg;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::format::{Format, parse, write};
use rumormill_topology::report::Report;

use crate::init::write_atomically;

/// The longest graph file, as long as the parser takes.
const FILE_LEN_MAX: u64 = rumormill_topology::format::CONTENT_LEN_MAX as u64;

/// Work with communication graphs.
#[derive(Clone, Debug, clap::Args)]
pub struct TopologyArgs {
    #[command(subcommand)]
    command: TopologyCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum TopologyCommand {
    /// What a graph means for training: connection, spectrum, rates, faults it survives
    Check {
        /// The graph
        file: PathBuf,
        /// Format of the file, overriding what suffix and content say
        #[arg(long)]
        format: Option<Format>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a graph of a family
    Generate(GenerateArgs),
    /// Read a graph in one format and write it in another
    Convert {
        /// The graph to read
        input: PathBuf,
        /// The file to write; its suffix says the format
        output: PathBuf,
        /// Format of the input
        #[arg(long)]
        from: Option<Format>,
        /// Format of the output
        #[arg(long)]
        to: Option<Format>,
    },
    /// Draw a graph as SVG, edges weighted by rate
    Draw {
        /// The graph
        file: PathBuf,
        /// The picture
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Format of the file
        #[arg(long)]
        format: Option<Format>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct GenerateArgs {
    /// complete, ring, line, star, grid, torus, hypercube, exponential, barbell, random-regular,
    /// erdos-renyi, random-geometric, small-world
    family: Family,
    /// Number of nodes
    #[arg(long)]
    nodes: usize,
    /// Rows of a grid or torus
    #[arg(long)]
    rows: Option<usize>,
    /// Neighbors of a node, for random-regular and small-world
    #[arg(long)]
    degree: Option<usize>,
    /// Probability of an edge (erdos-renyi) or of rewiring one (small-world)
    #[arg(long)]
    probability: Option<f64>,
    /// Reach of a node in the unit square (random-geometric)
    #[arg(long)]
    radius: Option<f64>,
    /// Seed of the random families
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file to write (default: stdout)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Format (default: by the file's suffix, otherwise petgraph)
    #[arg(long)]
    format: Option<Format>,
}

/// Reads a graph from a file; warnings go to stderr.
pub fn read(path: &Path, format: Option<Format>) -> Result<Topology> {
    let name = || format!("cannot read topology {}", path.display());
    let len = std::fs::metadata(path).with_context(name)?.len();
    if len > FILE_LEN_MAX {
        anyhow::bail!("topology {} has {len} bytes, at most {FILE_LEN_MAX}", path.display());
    }
    let bytes = std::fs::read(path).with_context(name)?;
    let text = String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("topology {} is not text (UTF-8)", path.display()))?;
    let format = format.or_else(|| Format::from_path_suffix(&path.to_string_lossy()));
    let parsed = parse(&text, format).with_context(|| format!("topology {}", path.display()))?;
    for warning in &parsed.warnings {
        eprintln!("warning: {}: {warning}", path.display());
    }
    Ok(parsed.topology)
}

/// Runs the command.
pub fn run(args: &TopologyArgs) -> Result<u8> {
    match &args.command {
        TopologyCommand::Check { file, format, json } => {
            let topology = read(file, *format)?;
            let report = Report::new(&topology);
            if *json {
                crate::cli::print(&(report.to_json() + "\n"))?;
            } else {
                crate::cli::print(&report.to_string())?;
            }
            Ok(u8::from(!topology.is_connected()))
        }
        TopologyCommand::Generate(args) => make(args),
        TopologyCommand::Convert { input, output, from, to } => {
            let topology = read(input, *from)?;
            save(&topology, output, *to)?;
            Ok(0)
        }
        TopologyCommand::Draw { file, out, format } => {
            let topology = read(file, *format)?;
            write_atomically(out, svg(&topology))?;
            Ok(0)
        }
    }
}

fn make(args: &GenerateArgs) -> Result<u8> {
    let parameters = Parameters {
        rows: args.rows,
        degree: args.degree,
        probability: args.probability,
        radius: args.radius,
    };
    let topology = generate(args.family, args.nodes, parameters, args.seed)?;
    match &args.out {
        Some(out) => save(&topology, out, args.format)?,
        None => {
            let format = args.format.unwrap_or(Format::PetgraphJson);
            crate::cli::print(&write(&topology, format)?)?;
        }
    }
    Ok(0)
}

fn save(topology: &Topology, path: &Path, format: Option<Format>) -> Result<()> {
    let format = format.or_else(|| Format::from_path_suffix(&path.to_string_lossy()));
    let format = format.with_context(|| {
        let known: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
        format!(
            "the suffix of {} says no format; choose one of {}",
            path.display(),
            known.join(", ")
        )
    })?;
    write_atomically(path, &write(topology, format)?)
}
