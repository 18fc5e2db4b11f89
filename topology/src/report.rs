//! What `rumormill topology check` says of a graph: as JSON for programs and in words for people.
//!
//! The JSON is a contract; [`Report`] serializes to exactly
//! `{nodes, edges, connected, diameter, lambda_2, chi_1, chi_2, rate_uniform, rate_optimal,
//! optimal_rates: [{a, b, probability}], vertex_connectivity, acid: {chi_1, chi_2, eta,
//! alpha_tilde}}`. λ₂, χ₁ and χ₂ are those of the Laplacian whose edge weights are uniform
//! probabilities 1/|E|, `acid` is at one averaging per gradient, `a` and `b` are names of nodes.
//! What does not exist or was not computed is null, and `optimal_rates` empty: of a graph that is
//! not connected, of optimal rates above [`OPTIMAL_NODES_MAX`] nodes, of a diameter that took too
//! long. `vertex_connectivity` is then the largest number that is certain.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::graph::Topology;
use crate::rate::{self, OPTIMAL_NODES_MAX, OptimalRates};
use crate::spectrum::{self, Acid, Spectrum};
use crate::structure::{self, Bounds};

/// Everything there is to say of one graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The names of the nodes.
    pub names: Vec<String>,
    /// The ends of the edges, as places in `names`.
    pub edges: Vec<(usize, usize)>,
    /// How many connected components there are.
    pub components: usize,
    /// How many nodes have each degree.
    pub degree_counts: BTreeMap<usize, usize>,
    /// Edges whose loss splits the network, as places in `edges`.
    pub bridges: Vec<usize>,
    /// Nodes whose loss splits the network.
    pub articulation_points: Vec<usize>,
    /// The largest distance; `None` if not connected.
    pub diameter: Option<Bounds>,
    /// The fewest nodes whose loss splits the network.
    pub vertex_connectivity: Bounds,
    /// The numbers of uniform rates; `None` if not connected or without edge.
    pub uniform: Option<Spectrum>,
    /// The best rates; `None` also above [`OPTIMAL_NODES_MAX`] nodes.
    pub optimal: Option<OptimalRates>,
    /// The constants of A2CiD2 at one averaging per gradient.
    pub acid: Option<Acid>,
}

impl Report {
    /// Computes all of it: milliseconds for tens of nodes, up to a minute for hundreds (most of
    /// it for the optimal rates) and for 10,000.
    pub fn new(topology: &Topology) -> Self {
        Self {
            names: topology.names().into_iter().map(str::to_owned).collect(),
            edges: topology.edges().iter().map(|edge| (edge.a, edge.b)).collect(),
            components: structure::components(topology).len(),
            degree_counts: structure::degree_counts(topology),
            bridges: structure::bridges(topology),
            articulation_points: structure::articulation_points(topology),
            diameter: structure::diameter(topology),
            vertex_connectivity: structure::vertex_connectivity(topology),
            uniform: spectrum::uniform(topology).ok(),
            optimal: rate::optimal(topology).ok(),
            acid: spectrum::acid(topology, 1.0).ok(),
        }
    }

    /// The contract as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, names and lists have a JSON form")
    }

    /// How many nodes may be faulty, whichever they are, with the others sure to stay connected.
    pub fn faults_survived(&self) -> usize {
        self.vertex_connectivity.lower.saturating_sub(1)
    }
}

#[derive(Serialize)]
struct Contract<'a> {
    nodes: usize,
    edges: usize,
    connected: bool,
    diameter: Option<usize>,
    lambda_2: Option<f64>,
    chi_1: Option<f64>,
    chi_2: Option<f64>,
    rate_uniform: Option<f64>,
    rate_optimal: Option<f64>,
    optimal_rates: Vec<EdgeProbability<'a>>,
    vertex_connectivity: usize,
    acid: Option<AcidConstants>,
}

#[derive(Serialize)]
struct EdgeProbability<'a> {
    a: &'a str,
    b: &'a str,
    probability: f64,
}

#[derive(Serialize)]
struct AcidConstants {
    chi_1: f64,
    chi_2: f64,
    eta: f64,
    alpha_tilde: f64,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let probabilities = self.optimal.iter().flat_map(|optimal| &optimal.probabilities);
        let optimal_rates = self.edges.iter().zip(probabilities).map(|(&(a, b), &probability)| {
            EdgeProbability { a: &self.names[a], b: &self.names[b], probability }
        });
        Contract {
            nodes: self.names.len(),
            edges: self.edges.len(),
            connected: self.components == 1,
            diameter: self.diameter.and_then(Bounds::exact),
            lambda_2: self.uniform.map(|uniform| uniform.lambda_2),
            chi_1: self.uniform.map(|uniform| uniform.chi_1),
            chi_2: self.uniform.map(|uniform| uniform.chi_2),
            rate_uniform: self.uniform.map(|uniform| uniform.rate_min()),
            rate_optimal: self.optimal.as_ref().map(|optimal| optimal.spectrum.rate_min()),
            optimal_rates: optimal_rates.collect(),
            vertex_connectivity: self.vertex_connectivity.lower,
            acid: self.acid.map(|Acid { chi_1, chi_2, eta, alpha_tilde }| AcidConstants {
                chi_1,
                chi_2,
                eta,
                alpha_tilde,
            }),
        }
        .serialize(serializer)
    }
}

/// In words, several lines, ending in a newline.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_shape(f)?;
        self.write_weak_points(f)?;
        match self.uniform {
            None if self.components > 1 => {
                writeln!(
                    f,
                    "\nNot connected: training would split into {} parts that never \
                            hear of each other. Join them before use.",
                    self.components
                )
            }
            None => writeln!(f, "\nA single node has nobody to exchange with."),
            Some(uniform) => self.write_spectrum(f, uniform),
        }
    }
}

impl Report {
    fn write_shape(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, edges) = (self.names.len(), self.edges.len());
        let connected = if self.components == 1 { "connected" } else { "not connected" };
        writeln!(f, "Graph          {nodes} nodes, {edges} edges, {connected}")?;
        let least = self.degree_counts.keys().next().unwrap_or(&0);
        let most = self.degree_counts.keys().next_back().unwrap_or(&0);
        let mean = 2.0 * edges as f64 / nodes as f64;
        writeln!(f, "Neighbors      {least} to {most} a node, {mean:.2} on average")?;
        match self.diameter {
            None => Ok(()),
            Some(Bounds { lower, upper }) if lower == upper => {
                writeln!(
                    f,
                    "Diameter       {lower}: news crosses the network in {lower} exchanges at best"
                )
            }
            Some(Bounds { lower, upper }) => {
                writeln!(
                    f,
                    "Diameter       between {lower} and {upper} (too long to compute exactly)"
                )
            }
        }
    }

    fn write_weak_points(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge_name = |&k: &usize| {
            let (a, b) = self.edges[k];
            format!("{} – {}", self.names[a], self.names[b])
        };
        match self.bridges.as_slice() {
            [] => writeln!(f, "Bridges        none: no single edge is indispensable")?,
            bridges => writeln!(
                f,
                "Bridges        {}: losing one of these edges splits the network: {}",
                bridges.len(),
                shortened(bridges.iter().map(edge_name))
            )?,
        }
        match self.articulation_points.as_slice() {
            [] => writeln!(f, "Cut nodes      none: no single node is indispensable")?,
            points => writeln!(
                f,
                "Cut nodes      {}: losing one of these nodes splits the network: {}",
                points.len(),
                shortened(points.iter().map(|&i| self.names[i].clone()))
            )?,
        }
        let Bounds { lower, upper } = self.vertex_connectivity;
        let certain = match lower == upper {
            true => format!("vertex connectivity {lower}"),
            false => format!("vertex connectivity between {lower} and {upper}"),
        };
        let sure = match self.faults_survived() {
            0 => "a single faulty node can cut the honest ones apart".to_owned(),
            1 => "1 faulty node, whichever it is, leaves the honest ones connected".to_owned(),
            faults => format!("{faults} faulty nodes, whichever, leave the honest ones connected"),
        };
        writeln!(f, "Faults         {sure} ({certain})")
    }

    fn write_spectrum(&self, f: &mut fmt::Formatter<'_>, uniform: Spectrum) -> fmt::Result {
        let Spectrum { lambda_2, chi_1, chi_2 } = uniform;
        let rate = uniform.rate_min();
        writeln!(f, "\nWith all edges equally often (weights 1/{}):", self.edges.len())?;
        writeln!(f, "lambda_2       {}", significant(lambda_2))?;
        writeln!(f, "chi_1          {}: how slowly the whole mixes", significant(chi_1))?;
        writeln!(f, "chi_2          {}: how much the worst edge is needed", significant(chi_2))?;
        writeln!(f, "\nExchanges DADAO needs while every node computes one gradient:")?;
        let per_node = 2.0 * rate / self.names.len() as f64;
        writeln!(f, "uniform rates  {rate:.3} in all, {per_node:.3} a node")?;
        match &self.optimal {
            None => writeln!(f, "optimal rates  not computed above {OPTIMAL_NODES_MAX} nodes")?,
            Some(optimal) => {
                let best = optimal.spectrum.rate_min();
                let gain = match rate / best {
                    gain if gain < 1.001 => "uniform rates are as good".to_owned(),
                    gain if gain < 1.5 => format!("{:.1} % fewer", 100.0 * (1.0 - 1.0 / gain)),
                    gain => format!("{gain:.2} times fewer"),
                };
                let per_node = 2.0 * best / self.names.len() as f64;
                writeln!(f, "optimal rates  {best:.3} in all, {per_node:.3} a node: {gain}")?;
            }
        }
        if let Some(Acid { eta, alpha_tilde, .. }) = self.acid {
            writeln!(
                f,
                "\nA2CiD2 at one averaging per gradient: eta {eta:.6}, alpha_tilde {alpha_tilde:.6}"
            )?;
        }
        Ok(())
    }
}

/// Six significant digits.
fn significant(value: f64) -> String {
    if (1e-3..1e6).contains(&value) {
        let decimals = 5 - value.log10().floor() as i32;
        format!("{value:.*}", decimals.max(0) as usize)
    } else {
        format!("{value:.5e}")
    }
}

/// The first few items.
fn shortened(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(ITEMS_SHOWN);
    let shown: Vec<_> = items.take(ITEMS_SHOWN).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

const ITEMS_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family, Parameters, generate};

    fn report(family: Family, nodes: usize) -> Report {
        Report::new(&generate(family, nodes, Parameters::default(), 0).unwrap())
    }

    #[test]
    fn json_has_the_keys_of_the_contract_and_no_others() {
        let json = report(Family::Star, 4).to_json();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let keys = |value: &serde_json::Value| {
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys(&value),
            "acid chi_1 chi_2 connected diameter edges lambda_2 nodes optimal_rates rate_optimal \
             rate_uniform vertex_connectivity"
        );
        assert_eq!(keys(&value["acid"]), "alpha_tilde chi_1 chi_2 eta");
        assert_eq!(keys(&value["optimal_rates"][0]), "a b probability");
        assert_eq!(value["optimal_rates"][2]["b"], "3");
        assert_eq!(value["vertex_connectivity"], 1);
        assert!((value["rate_uniform"].as_f64().unwrap() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_exist_is_null() {
        let split = Report::new(&Topology::from_edges(3, [(0, 1)]).unwrap());
        let value: serde_json::Value = serde_json::from_str(&split.to_json()).unwrap();
        assert_eq!(value["connected"], false);
        for key in
            ["diameter", "lambda_2", "chi_1", "chi_2", "rate_uniform", "rate_optimal", "acid"]
        {
            assert!(value[key].is_null(), "{key}");
        }
        assert_eq!(value["optimal_rates"], serde_json::json!([]));
        assert!(split.to_string().contains("split into 2 parts"));
        assert!(report(Family::Line, 1).to_string().contains("single node"));
    }

    #[test]
    fn words_name_the_weak_points_and_the_gain() {
        let text = report(Family::Barbell, 16).to_string();
        for words in
            ["16 nodes, 57 edges, connected", "7 – 8", "a single faulty node", "3.83 times fewer"]
        {
            assert!(text.contains(words), "{words} in\n{text}");
        }
        let text = report(Family::Line, 20).to_string();
        assert!(text.contains("and 11 more"), "{text}");
    }
}
