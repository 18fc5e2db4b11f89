//! How long graphs take: `cargo bench -p rumormill-topology`. The unit is one whole file or graph.

use divan::Bencher;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::format::{Format, parse, write};

fn main() {
    divan::main();
}

/// A file of 10,000 nodes and 50,000 edges in each format that can be written.
#[divan::bench(args = Format::ALL.into_iter().filter(|f| *f != Format::Graph6), sample_count = 5)]
fn parse_10000_nodes_50000_edges(bencher: Bencher, format: Format) {
    let parameters = Parameters { degree: Some(10), ..Parameters::default() };
    let topology = generate(Family::RandomRegular, 10_000, parameters, 0).expect("a valid size");
    let text = write(&topology, format).expect("a format that can be written");
    bencher.bench(|| parse(&text, Some(format)).expect("what was written"));
}
