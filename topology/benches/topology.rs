//! How long graphs take: `cargo bench -p rumormill-topology`. The unit is one whole file or graph.

use divan::Bencher;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::format::{Format, parse, write};
use rumormill_topology::{Topology, draw, rate, spectrum, structure};

fn main() {
    divan::main();
}

fn graph(family: Family, nodes: usize) -> Topology {
    generate(family, nodes, Parameters::default(), 1).expect("a valid size")
}

/// A file of 10,000 nodes and 50,000 edges in each format.
#[divan::bench(args = Format::ALL, sample_count = 5)]
fn parse_10000_nodes_50000_edges(bencher: Bencher, format: Format) {
    let parameters = Parameters { degree: Some(10), ..Parameters::default() };
    let topology = generate(Family::RandomRegular, 10_000, parameters, 0).expect("a valid size");
    let text = write(&topology, format).unwrap_or_else(|_| graph6(&topology));
    bencher.bench(|| parse(&text, Some(format)).expect("what was written"));
}

/// The format that the crate only reads.
fn graph6(topology: &Topology) -> String {
    let nodes = topology.node_count();
    let mut bits = vec![false; (nodes * (nodes - 1) / 2).next_multiple_of(6)];
    for edge in topology.edges() {
        bits[edge.b * (edge.b - 1) / 2 + edge.a] = true;
    }
    let six = |bits: &[bool]| bits.iter().fold(0, |number, &bit| number << 1 | u8::from(bit));
    let size = [nodes >> 12 & 63, nodes >> 6 & 63, nodes & 63].map(|digit| digit as u8);
    let data = bits.chunks(6).map(six);
    let letters = size.into_iter().chain(data).map(|number| char::from(number + 63));
    std::iter::once('~').chain(letters).collect()
}

/// λ₂ and χ₂ by the sparse methods.
#[divan::bench(
    args = [Family::RandomGeometric, Family::Ring, Family::Torus, Family::RandomRegular],
    sample_count = 2
)]
fn spectrum_of_10000_nodes(bencher: Bencher, family: Family) {
    let topology = graph(family, 10_000);
    bencher.bench(|| spectrum::uniform(&topology));
}

/// And by the dense ones, at their largest.
#[divan::bench(sample_count = 3)]
fn spectrum_of_512_nodes(bencher: Bencher) {
    let topology = graph(Family::RandomGeometric, spectrum::DENSE_NODES_MAX);
    bencher.bench(|| spectrum::uniform(&topology));
}

/// Optimal rates, to a tenth of a percent or the end of the steps.
#[divan::bench(
    args = [Family::Grid, Family::Barbell, Family::RandomGeometric, Family::ErdosRenyi],
    consts = [16, 256],
    sample_count = 1
)]
fn optimal_rates<const NODES: usize>(bencher: Bencher, family: Family) {
    let topology = graph(family, NODES);
    bencher.bench(|| rate::optimal(&topology));
}

/// Diameter and vertex connectivity, the slow parts of the shape.
#[divan::bench(args = [Family::RandomGeometric, Family::Torus, Family::ErdosRenyi], sample_count = 1)]
fn shape_of_10000_nodes(bencher: Bencher, family: Family) {
    let topology = graph(family, 10_000);
    bencher.bench(|| (structure::diameter(&topology), structure::vertex_connectivity(&topology)));
}

/// A picture by each layout.
#[divan::bench(args = [100, 1000, 10_000], sample_count = 2)]
fn draw_nodes(bencher: Bencher, nodes: usize) {
    let topology = graph(Family::RandomGeometric, nodes);
    bencher.bench(|| draw::svg(&topology));
}
