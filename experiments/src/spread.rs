//! How fast news spreads: uniform against optimal edge rates at equal traffic.
//!
//! One record starts at a random node at time 0. Every edge has a Poisson clock; when it fires, both
//! ends hold what either held. Rates add up to one exchange a node and unit time (an exchange has two
//! ends, so the total is n/2). Reported: the time until 99 % of the nodes, and until all, hold it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use rumormill::clock::PoissonClock;
use rumormill::sample::KeyedRng;
use rumormill_topology::Topology;
use rumormill_topology::family::{Family, Parameters, generate};
use rumormill_topology::rate::{RateScheme, edge_rates};

/// Mean and standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Mean over the trials.
    pub mean: f64,
    /// Standard error of the mean.
    pub error: f64,
}

impl Estimate {
    fn of(samples: &[f64]) -> Estimate {
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Estimate { mean, error: (variance / n).sqrt() }
    }
}

/// Times of one trial, in unit times: until 99 % of the nodes, and until all, hold the record.
pub fn trial(topology: &Topology, rates: &[f64], seed: u64) -> (f64, f64) {
    let nodes = topology.node_count();
    let mut rng = KeyedRng::from_seed("rumormill v1 spread", seed, nodes as u64);
    let key: [u8; 32] = std::array::from_fn(|_| rng.next_u32() as u8);
    let mut holds = vec![false; nodes];
    holds[rng.index(nodes as u32) as usize] = true;
    let mut holders = 1;
    let wanted = (nodes * 99).div_ceil(100);
    let mut queue = BTreeMap::new();
    let mut clocks: Vec<PoissonClock> =
        (0..rates.len()).map(|edge| PoissonClock::new(&key, edge as u64)).collect();
    for (edge, clock) in clocks.iter_mut().enumerate() {
        queue.insert((clock.wait(rates[edge]), edge), ());
    }
    let mut most = if holders >= wanted { Some(0.0) } else { None };
    while holders < nodes {
        let ((time, edge), ()) = queue.pop_first().expect("every edge has a next event");
        queue.insert((time + clocks[edge].wait(rates[edge]), edge), ());
        let ends = topology.edges()[edge];
        if holds[ends.a] != holds[ends.b] {
            (holds[ends.a], holds[ends.b]) = (true, true);
            holders += 1;
            if holders == wanted {
                most = Some(time.as_secs_f64());
            }
            if holders == nodes {
                return (most.unwrap_or(0.0), time.as_secs_f64());
            }
        }
    }
    (0.0, 0.0)
}

/// The comparison as CSV, with the command in its first line.
///
/// # Errors
/// A graph cannot be made.
pub fn table(trials: u64) -> Result<String> {
    let mut csv = format!(
        "# rumormill-lab spread --trials {trials}: unit times until 99 % and all of the nodes hold a \
         record, one exchange a node and unit time\n\
         family,nodes,uniform_99,uniform_99_error,optimal_99,optimal_99_error,ratio_99,uniform_all,\
         optimal_all,ratio_all\n"
    );
    for family in [Family::Ring, Family::Grid, Family::Barbell, Family::RandomGeometric] {
        for nodes in [16, 64] {
            let topology = generate(family, nodes, Parameters::default(), 1)?;
            let [uniform, optimal] = [RateScheme::Uniform, RateScheme::Optimal].map(|scheme| {
                let rates = edge_rates(&topology, scheme, 1.0)?;
                let times: Vec<(f64, f64)> =
                    (0..trials).map(|seed| trial(&topology, &rates, seed)).collect();
                let column = |of: fn(&(f64, f64)) -> f64| {
                    Estimate::of(&times.iter().map(of).collect::<Vec<_>>())
                };
                anyhow::Ok((column(|t| t.0), column(|t| t.1)))
            });
            let (uniform, optimal) = (uniform?, optimal?);
            writeln!(
                csv,
                "{family},{nodes},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3}",
                uniform.0.mean,
                uniform.0.error,
                optimal.0.mean,
                optimal.0.error,
                optimal.0.mean / uniform.0.mean,
                uniform.1.mean,
                optimal.1.mean,
                optimal.1.mean / uniform.1.mean,
            )?;
        }
    }
    Ok(csv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_wait_for_one_exponential_time() {
        let pair = Topology::from_edges(2, [(0, 1)]).unwrap();
        let times: Vec<f64> = (0..4000).map(|seed| trial(&pair, &[2.0], seed).1).collect();
        let estimate = Estimate::of(&times);
        // Mean 1/2; five standard errors of 0.5/√4000.
        assert!((estimate.mean - 0.5).abs() < 0.04, "{estimate:?}");
    }

    #[test]
    fn a_path_takes_the_sum_of_its_edges_on_average() {
        let line = Topology::from_edges(3, [(0, 1), (1, 2)]).unwrap();
        // From an end both edges in turn (mean 2), from the middle the later of two (mean 1.5).
        let times: Vec<f64> = (0..6000).map(|seed| trial(&line, &[1.0, 1.0], seed).1).collect();
        let expected = (2.0 + 2.0 + 1.5) / 3.0;
        assert!((Estimate::of(&times).mean - expected).abs() < 0.1);
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        let ring = generate(Family::Ring, 16, Parameters::default(), 1).unwrap();
        let rates = edge_rates(&ring, RateScheme::Uniform, 1.0).unwrap();
        assert_eq!(trial(&ring, &rates, 7), trial(&ring, &rates, 7));
        assert_ne!(trial(&ring, &rates, 7), trial(&ring, &rates, 8));
    }
}
