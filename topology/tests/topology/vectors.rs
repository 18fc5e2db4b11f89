//! The numbers of the shared vectors, which were made with NumPy and with Clarabel's and cvxpy's
//! solvers. Without the shared folder these tests say so and pass; closed forms are tested beside
//! the code.

use std::path::PathBuf;

use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::{Topology, TopologyError, rate, spectrum};
use serde_json::Value;

fn vectors() -> Option<Value> {
    let shared = std::env::var_os("RUMORMILL_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vectors/dadao.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(error) => {
            eprintln!("skipped: {}: {error}", path.display());
            None
        }
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn close(got: f64, expected: &Value, what: &str) {
    let expected = number(expected);
    assert!((got / expected - 1.0).abs() < 1e-9, "{what}: {got} is not {expected}");
}

fn graph(value: &Value) -> Result<Topology, TopologyError> {
    let index = |value: &Value| value.as_u64().unwrap() as usize;
    let edges = value["edges"].as_array().unwrap();
    Topology::from_edges(
        index(&value["n"]),
        edges.iter().map(|edge| (index(&edge[0]), index(&edge[1]))),
    )
}

#[test]
fn uniform_numbers_of_every_graph_are_met_to_a_billionth() {
    let Some(vectors) = vectors() else { return };
    for case in vectors["graphs"].as_array().unwrap() {
        let got = spectrum::uniform(&graph(case).unwrap()).unwrap();
        let what = case["graph"].as_str().unwrap();
        close(got.chi_1, &case["uniform"]["chi1"], what);
        close(got.chi_2, &case["uniform"]["chi2"], what);
        close(got.rate_min(), &case["uniform"]["rate"], what);
    }
}

#[test]
fn optimal_rate_of_every_graph_is_met_within_half_a_percent() {
    let Some(vectors) = vectors() else { return };
    for case in vectors["graphs"].as_array().unwrap() {
        let best = rate::optimal(&graph(case).unwrap()).unwrap();
        let rate = best.spectrum.rate_min();
        for oracle in ["sdp", "eg"] {
            let expected = number(&case[oracle]["rate"]);
            assert!(
                rate < expected * 1.005,
                "{} {oracle}: {rate} is not {expected}",
                case["graph"]
            );
        }
        let solver = number(&case["sdp"]["rate"]);
        assert!(rate > solver * 0.995, "{}: {rate} is below {solver}", case["graph"]);
        assert!(rate <= best.uniform.rate_min());
    }
}

#[test]
fn constants_of_acid_are_met_to_a_billionth() {
    let Some(vectors) = vectors() else { return };
    for (name, expected) in vectors["acid_constants"].as_object().unwrap() {
        let (kind, rest) = name.split_once('_').unwrap();
        let (nodes, rate) = rest.split_once("_rate").unwrap();
        let (nodes, rate): (usize, f64) = (nodes.parse().unwrap(), rate.parse().unwrap());
        let (chi_1, chi_2) = match kind {
            "cycle" => {
                let ring = generate(Family::Ring, nodes, Parameters::default(), 0).unwrap();
                let got = spectrum::acid(&ring, rate).unwrap();
                close(got.eta, &expected["eta"], name);
                close(got.alpha_tilde, &expected["alpha_tilde"], name);
                (got.chi_1, got.chi_2)
            }
            // There offsets ±2ᵏ are a multiset: half the ring counts twice.
            "exponential" => {
                let graph = generate(Family::Exponential, nodes, Parameters::default(), 0).unwrap();
                let degree = 2.0 * f64::from((nodes - 1).ilog2() + 1);
                let twice = |offset| if 2 * offset == nodes { 2.0 } else { 1.0 };
                let weights: Vec<_> = graph
                    .edges()
                    .iter()
                    .map(|edge| rate * twice(edge.b - edge.a) / degree)
                    .collect();
                let got = spectrum::weighted(&graph, &weights).unwrap();
                (got.chi_1, got.chi_2)
            }
            other => panic!("unknown graph {other}"),
        };
        close(chi_1, &expected["chi1"], name);
        close(chi_2, &expected["chi2"], name);
    }
}
