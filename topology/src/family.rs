//! Graph families: the shapes people name instead of drawing them.
//!
//! Every family gives a connected graph or an error that says what to change. The random ones
//! draw from ChaCha8 under a seed and are drawn again, up to [`ATTEMPTS_MAX`] times, until the
//! graph is connected; the whole is a function of family, size, parameters and seed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::graph::{EDGES_MAX, NODES_MAX, Topology, TopologyError};
use crate::random::Random;

/// A shape of graph; its text form is the name in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Every node joined to every other (`complete`).
    Complete,
    /// One closed chain (`ring`), at least three nodes.
    Ring,
    /// One open chain (`line`).
    Line,
    /// All nodes joined to the first (`star`).
    Star,
    /// Rows and columns (`grid`), near-square unless [`Parameters::rows`] says otherwise.
    Grid,
    /// A grid whose rows and columns close to rings (`torus`), each at least three long.
    Torus,
    /// 2ᵏ nodes, joined if their numbers differ in one bit (`hypercube`).
    Hypercube,
    /// Node `i` joined to `i ± 2ᵏ` modulo `n` (`exponential`).
    Exponential,
    /// Two complete halves joined by one edge (`barbell`).
    Barbell,
    /// A random graph in which all nodes have [`Parameters::degree`] neighbors
    /// (`random-regular`).
    RandomRegular,
    /// Each pair joined with [`Parameters::probability`] (`erdos-renyi`).
    ErdosRenyi,
    /// Points in the unit square, joined when closer than [`Parameters::radius`]
    /// (`random-geometric`).
    RandomGeometric,
    /// Watts and Strogatz: a ring of [`Parameters::degree`] neighbors whose edges are rewired
    /// with [`Parameters::probability`] (`small-world`).
    SmallWorld,
}

/// What some families need beside their size; what is `None` has the default named here.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Parameters {
    /// Rows of a grid or torus. Default: the largest divisor of `n` up to √n.
    pub rows: Option<usize>,
    /// Neighbors of each node, for random regular and (even) small world. Default: 4, a guess.
    pub degree: Option<usize>,
    /// Probability of an edge (Erdős–Rényi; default `1.5 (⌊log₂ n⌋ + 1) / n`, twice the
    /// threshold of connectedness) or of rewiring it (small world; default 0.1, a guess).
    pub probability: Option<f64>,
    /// Reach of a random geometric node in the unit square. Default:
    /// `√(0.45 (⌊log₂ n⌋ + 1) / n)`, in area twice the threshold of connectedness.
    pub radius: Option<f64>,
}

/// Makes a connected graph of `nodes` nodes, named by their numbers.
///
/// `seed` matters to the random families only.
///
/// # Errors
///
/// A size or parameter the family cannot have, too large a graph, or no connected graph within
/// [`ATTEMPTS_MAX`] draws.
///
/// ```
/// use rumormill_topology::family::{Family, Parameters, generate};
///
/// let cube = generate(Family::Hypercube, 8, Parameters::default(), 0).unwrap();
/// assert_eq!(cube.edges().len(), 12);
/// ```
pub fn generate(
    family: Family,
    nodes: usize,
    parameters: Parameters,
    seed: u64,
) -> Result<Topology, FamilyError> {
    refuse_foreign(family, parameters)?;
    if nodes == 0 {
        return Err(FamilyError::Size { family, nodes, expected: "at least one node" });
    }
    if nodes > NODES_MAX {
        return Err(TopologyError::TooManyNodes { max: NODES_MAX }.into());
    }
    let edges = match family {
        Family::Complete => complete(nodes)?,
        Family::Ring => ring(nodes)?,
        Family::Line => (1..nodes).map(|i| (i - 1, i)).collect(),
        Family::Star => (1..nodes).map(|i| (0, i)).collect(),
        Family::Grid => grid(nodes, rows(family, nodes, parameters)?),
        Family::Torus => torus(nodes, rows(family, nodes, parameters)?)?,
        Family::Hypercube => hypercube(nodes)?,
        Family::Exponential => exponential(nodes),
        Family::Barbell => barbell(nodes)?,
        Family::RandomRegular => return random_regular(nodes, parameters, seed),
        Family::ErdosRenyi => return erdos_renyi(nodes, parameters, seed),
        Family::RandomGeometric => return random_geometric(nodes, parameters, seed),
        Family::SmallWorld => return small_world(nodes, parameters, seed),
    };
    // An offset of half the ring joins the same pair from both sides.
    let edges: BTreeSet<_> = edges.into_iter().map(sorted).collect();
    Ok(Topology::from_edges(nodes, edges)?)
}

type Edges = Vec<(usize, usize)>;

fn refuse_foreign(family: Family, parameters: Parameters) -> Result<(), FamilyError> {
    use Family::*;
    let Parameters { rows, degree, probability, radius } = parameters;
    let foreign = [
        ("rows", rows.is_some(), matches!(family, Grid | Torus)),
        ("degree", degree.is_some(), matches!(family, RandomRegular | SmallWorld)),
        ("probability", probability.is_some(), matches!(family, ErdosRenyi | SmallWorld)),
        ("radius", radius.is_some(), matches!(family, RandomGeometric)),
    ];
    match foreign.into_iter().find(|&(_, given, meant)| given && !meant) {
        Some((parameter, ..)) => Err(FamilyError::Foreign { family, parameter }),
        None => Ok(()),
    }
}

fn complete(nodes: usize) -> Result<Edges, FamilyError> {
    require_edges(nodes * (nodes - 1) / 2)?;
    Ok((0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| (a, b))).collect())
}

fn ring(nodes: usize) -> Result<Edges, FamilyError> {
    if nodes < 3 {
        let expected = "at least 3 nodes; use line for fewer";
        return Err(FamilyError::Size { family: Family::Ring, nodes, expected });
    }
    Ok((0..nodes).map(|i| (i, (i + 1) % nodes)).collect())
}

fn rows(family: Family, nodes: usize, parameters: Parameters) -> Result<usize, FamilyError> {
    match parameters.rows {
        Some(rows) if rows == 0 || !nodes.is_multiple_of(rows) => {
            Err(FamilyError::Rows { family, nodes, rows })
        }
        Some(rows) => Ok(rows),
        None => Ok((1..=nodes.isqrt()).rev().find(|rows| nodes.is_multiple_of(*rows)).unwrap_or(1)),
    }
}

fn grid(nodes: usize, rows: usize) -> Edges {
    let columns = nodes / rows;
    let right = (0..nodes).filter(|i| (i + 1) % columns != 0).map(|i| (i, i + 1));
    let down = (0..nodes - columns).map(|i| (i, i + columns));
    right.chain(down).collect()
}

fn torus(nodes: usize, rows: usize) -> Result<Edges, FamilyError> {
    let columns = nodes / rows;
    if rows < 3 || columns < 3 {
        let expected = "rows and columns of at least 3, such as 9, 12, 16 or 100 nodes; use ring \
                        or grid otherwise";
        return Err(FamilyError::Size { family: Family::Torus, nodes, expected });
    }
    let right = (0..nodes).map(|i| (i, i / columns * columns + (i + 1) % columns));
    let down = (0..nodes).map(|i| (i, (i + columns) % nodes));
    Ok(right.chain(down).collect())
}

fn hypercube(nodes: usize) -> Result<Edges, FamilyError> {
    if !nodes.is_power_of_two() {
        let expected = "a power of two: 2, 4, 8, 16, …";
        return Err(FamilyError::Size { family: Family::Hypercube, nodes, expected });
    }
    let bits = nodes.ilog2();
    let flips = |i: usize| (0..bits).map(move |bit| (i, i ^ (1 << bit)));
    Ok((0..nodes).flat_map(flips).filter(|(a, b)| a < b).collect())
}

fn exponential(nodes: usize) -> Edges {
    let offsets = (0..).map(|k| 1 << k).take_while(|&offset| offset < nodes);
    offsets.flat_map(|offset| (0..nodes).map(move |i| (i, (i + offset) % nodes))).collect()
}

fn barbell(nodes: usize) -> Result<Edges, FamilyError> {
    if !nodes.is_multiple_of(2) {
        let expected = "an even number of nodes, half for each bell";
        return Err(FamilyError::Size { family: Family::Barbell, nodes, expected });
    }
    let half = nodes / 2;
    let bell = complete(half)?;
    require_edges(2 * bell.len() + 1)?;
    let other = bell.iter().map(|&(a, b)| (a + half, b + half));
    Ok(bell.iter().copied().chain(other).chain([(half - 1, half)]).collect())
}

/// A circulant graph of the degree, shaken by swaps of edge pairs: each swap keeps all degrees,
/// and ten tries per edge forget the start (Cooper, Dyer and Greenhill 2007 prove that the
/// chain mixes; the count is the customary one, not theirs).
fn random_regular(
    nodes: usize,
    parameters: Parameters,
    seed: u64,
) -> Result<Topology, FamilyError> {
    let family = Family::RandomRegular;
    let degree = parameters.degree.unwrap_or(DEGREE_DEFAULT);
    if degree >= nodes || !(nodes * degree).is_multiple_of(2) || (degree < 2 && nodes > degree + 1)
    {
        let expected = "from 2 to nodes − 1, and nodes × degree even";
        return Err(FamilyError::Degree { family, nodes, degree, expected });
    }
    require_edges(nodes * degree / 2)?;
    let circulant: Edges = (0..nodes)
        .flat_map(|i| (1..=degree / 2).map(move |offset| (i, (i + offset) % nodes)))
        .chain((0..nodes / 2 * (degree % 2)).map(|i| (i, i + nodes / 2)))
        .map(sorted)
        .collect();
    draw_connected(family, nodes, seed, |random| shake(circulant.clone(), random))
}

fn shake(mut edges: Edges, random: &mut Random) -> Edges {
    let mut present: BTreeSet<_> = edges.iter().copied().collect();
    for _ in 0..10 * edges.len() {
        let (first, second) = (random.index(edges.len()), random.index(edges.len()));
        let ((a, b), (mut c, mut d)) = (edges[first], edges[second]);
        if random.index(2) == 1 {
            (c, d) = (d, c);
        }
        // a–b and c–d become a–d and c–b.
        let (new_first, new_second) = (sorted((a, d)), sorted((c, b)));
        let simple = a != d && c != b && a != c && b != d;
        if simple && !present.contains(&new_first) && !present.contains(&new_second) {
            present.remove(&edges[first]);
            present.remove(&edges[second]);
            present.extend([new_first, new_second]);
            (edges[first], edges[second]) = (new_first, new_second);
        }
    }
    edges
}

fn erdos_renyi(nodes: usize, parameters: Parameters, seed: u64) -> Result<Topology, FamilyError> {
    let family = Family::ErdosRenyi;
    let default = (1.5 * log2_above(nodes) / nodes as f64).min(1.0);
    let probability = check_probability(family, parameters.probability.unwrap_or(default))?;
    // Six standard deviations above the mean.
    let mean = probability * (nodes * (nodes - 1) / 2) as f64;
    require_edges((mean + 6.0 * mean.sqrt()) as usize)?;
    draw_connected(family, nodes, seed, |random| {
        let mut edges = Vec::new();
        for a in 0..nodes {
            edges.extend((a + 1..nodes).filter(|_| random.happens(probability)).map(|b| (a, b)));
        }
        edges
    })
}

fn random_geometric(
    nodes: usize,
    parameters: Parameters,
    seed: u64,
) -> Result<Topology, FamilyError> {
    let family = Family::RandomGeometric;
    let radius = parameters.radius.unwrap_or((0.45 * log2_above(nodes) / nodes as f64).sqrt());
    if !(radius > 0.0 && radius.is_finite()) {
        return Err(FamilyError::Radius { radius });
    }
    let area = (std::f64::consts::PI * radius * radius).min(1.0);
    require_edges((area * (nodes * (nodes - 1) / 2) as f64) as usize)?;
    draw_connected(family, nodes, seed, |random| {
        let points: Vec<_> = (0..nodes).map(|_| (random.unit(), random.unit())).collect();
        close_pairs(&points, radius)
    })
}

/// Pairs of points closer than `radius`, by looking into neighboring cells only.
fn close_pairs(points: &[(f64, f64)], radius: f64) -> Edges {
    // Cells at least as wide as the radius, and no more of them than points.
    let side = ((1.0 / radius) as usize).clamp(1, points.len().isqrt().max(1));
    let cell = |x: f64| ((x * side as f64) as usize).min(side - 1);
    let mut cells = vec![Vec::new(); side * side];
    for (i, &(x, y)) in points.iter().enumerate() {
        cells[cell(y) * side + cell(x)].push(i);
    }
    let mut edges = Vec::new();
    for (a, &(x, y)) in points.iter().enumerate() {
        let around = |c: usize| c.saturating_sub(1)..=(c + 1).min(side - 1);
        for row in around(cell(y)) {
            for column in around(cell(x)) {
                edges.extend(cells[row * side + column].iter().filter_map(|&b| {
                    let (dx, dy) = (points[b].0 - x, points[b].1 - y);
                    (a < b && dx * dx + dy * dy < radius * radius).then_some((a, b))
                }));
            }
        }
    }
    edges
}

fn small_world(nodes: usize, parameters: Parameters, seed: u64) -> Result<Topology, FamilyError> {
    let family = Family::SmallWorld;
    let degree = parameters.degree.unwrap_or(DEGREE_DEFAULT);
    if degree < 2 || degree >= nodes || !degree.is_multiple_of(2) {
        let expected = "even, from 2 to nodes − 1";
        return Err(FamilyError::Degree { family, nodes, degree, expected });
    }
    let probability = check_probability(family, parameters.probability.unwrap_or(0.1))?;
    require_edges(nodes * degree / 2)?;
    draw_connected(family, nodes, seed, |random| {
        let ring = |offset| (0..nodes).map(move |i| (i, (i + offset) % nodes));
        let mut edges: BTreeSet<_> = (1..=degree / 2).flat_map(ring).map(sorted).collect();
        let mut degrees = vec![degree; nodes];
        for (a, b) in (1..=degree / 2).flat_map(ring) {
            if !random.happens(probability) || degrees[a] == nodes - 1 {
                continue;
            }
            let to = random.index(nodes);
            // A taken or own place leaves the edge as it is, so no draw can loop forever.
            if to != a && !edges.contains(&sorted((a, to))) && edges.remove(&sorted((a, b))) {
                edges.insert(sorted((a, to)));
                degrees[b] -= 1;
                degrees[to] += 1;
            }
        }
        edges.into_iter().collect()
    })
}

/// Draws graphs from one stream until one is connected.
fn draw_connected(
    family: Family,
    nodes: usize,
    seed: u64,
    mut draw: impl FnMut(&mut Random) -> Edges,
) -> Result<Topology, FamilyError> {
    let mut random = Random::new(family.name(), seed);
    for _ in 0..ATTEMPTS_MAX {
        let topology = Topology::from_edges(nodes, draw(&mut random))?;
        if topology.is_connected() {
            return Ok(topology);
        }
    }
    let remedy = match family {
        Family::ErdosRenyi => "raise the probability above ln n / n",
        Family::RandomGeometric => "raise the radius above √(ln n / (π n))",
        _ => "raise the degree",
    };
    Err(FamilyError::Disconnected { family, nodes, attempts: ATTEMPTS_MAX, remedy })
}

fn check_probability(family: Family, probability: f64) -> Result<f64, FamilyError> {
    if (0.0..=1.0).contains(&probability) {
        Ok(probability)
    } else {
        Err(FamilyError::Probability { family, probability })
    }
}

fn require_edges(edges: usize) -> Result<(), FamilyError> {
    if edges > EDGES_MAX {
        return Err(TopologyError::TooManyEdges { max: EDGES_MAX }.into());
    }
    Ok(())
}

/// `⌊log₂ n⌋ + 1`, above `log₂ n ≥ 1.44 ln n`. An integer logarithm, because the last bit of
/// a floating one differs between machines and would change the graph of a seed.
fn log2_above(nodes: usize) -> f64 {
    f64::from(nodes.ilog2() + 1)
}

fn sorted((a, b): (usize, usize)) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Family {
    /// All families, in the order of their declaration.
    pub const ALL: [Self; 13] = [
        Self::Complete,
        Self::Ring,
        Self::Line,
        Self::Star,
        Self::Grid,
        Self::Torus,
        Self::Hypercube,
        Self::Exponential,
        Self::Barbell,
        Self::RandomRegular,
        Self::ErdosRenyi,
        Self::RandomGeometric,
        Self::SmallWorld,
    ];

    /// The name by which a person asks for the family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Ring => "ring",
            Self::Line => "line",
            Self::Star => "star",
            Self::Grid => "grid",
            Self::Torus => "torus",
            Self::Hypercube => "hypercube",
            Self::Exponential => "exponential",
            Self::Barbell => "barbell",
            Self::RandomRegular => "random-regular",
            Self::ErdosRenyi => "erdos-renyi",
            Self::RandomGeometric => "random-geometric",
            Self::SmallWorld => "small-world",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(name: &str) -> Result<Self, UnknownFamily> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == name)
            .ok_or_else(|| UnknownFamily { name: name.to_owned() })
    }
}

/// A name that is no family.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "no family is called {name:?}; expected complete, ring, line, star, grid, torus, hypercube, \
     exponential, barbell, random-regular, erdos-renyi, random-geometric or small-world"
)]
pub struct UnknownFamily {
    /// What came.
    pub name: String,
}

/// Why a graph of a family cannot be made.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FamilyError {
    /// A size the family does not come in.
    #[error("a {family} cannot have {nodes} nodes; expected {expected}")]
    Size {
        /// The family.
        family: Family,
        /// The size asked for.
        nodes: usize,
        /// The sizes it comes in.
        expected: &'static str,
    },
    /// Rows that do not divide the nodes.
    #[error("{nodes} nodes do not fill a {family} of {rows} rows; choose rows that divide {nodes}")]
    Rows {
        /// Grid or torus.
        family: Family,
        /// The size asked for.
        nodes: usize,
        /// The rows asked for.
        rows: usize,
    },
    /// A degree the family cannot have at this size.
    #[error("a {family} graph of {nodes} nodes cannot have degree {degree}; expected {expected}")]
    Degree {
        /// The family.
        family: Family,
        /// The size asked for.
        nodes: usize,
        /// The degree asked for or defaulted.
        degree: usize,
        /// The degrees it can have.
        expected: &'static str,
    },
    /// Not a probability.
    #[error("{family} with probability {probability}; expected a number from 0 to 1")]
    Probability {
        /// The family.
        family: Family,
        /// What came.
        probability: f64,
    },
    /// Not a radius.
    #[error("random-geometric with radius {radius}; expected a finite number above 0")]
    Radius {
        /// What came.
        radius: f64,
    },
    /// A parameter of another family.
    #[error("{family} has no parameter {parameter}; leave it out")]
    Foreign {
        /// The family.
        family: Family,
        /// The parameter it does not have.
        parameter: &'static str,
    },
    /// No draw was connected.
    #[error("no {family} graph of {nodes} nodes was connected in {attempts} draws; {remedy}")]
    Disconnected {
        /// The family.
        family: Family,
        /// The size asked for.
        nodes: usize,
        /// How often it was drawn.
        attempts: usize,
        /// What to change.
        remedy: &'static str,
    },
    /// The graph would break a bound.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// How often a random graph is drawn before giving up: at the threshold of connectedness, where
/// about one graph in three is connected, all fail with a probability below 1e-16.
pub const ATTEMPTS_MAX: usize = 100;
const DEGREE_DEFAULT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn make(family: Family, nodes: usize) -> Topology {
        generate(family, nodes, Parameters::default(), 3).unwrap()
    }

    #[test]
    fn every_family_of_16_is_connected_and_of_the_right_size() {
        let edges = [120, 16, 15, 15, 24, 32, 32, 56, 57, 32];
        for (family, edges) in Family::ALL.into_iter().zip(edges) {
            let topology = make(family, 16);
            topology.require_connected().unwrap();
            assert_eq!((topology.node_count(), topology.edge_count()), (16, edges), "{family}");
        }
        for family in &Family::ALL[10..] {
            make(*family, 16).require_connected().unwrap();
        }
    }

    #[test]
    fn names_parse_back() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        assert!("circle".parse::<Family>().is_err());
    }

    #[test]
    fn same_seed_gives_the_same_graph_and_another_seed_another() {
        for family in &Family::ALL[9..] {
            let draw = |seed| generate(*family, 40, Parameters::default(), seed).unwrap();
            assert_eq!(draw(5), draw(5), "{family}");
            assert_ne!(draw(5), draw(6), "{family}");
        }
    }

    #[test]
    fn random_regular_has_the_degree_asked_for() {
        for (nodes, degree) in [(10, 3), (16, 7), (9, 8), (50, 6), (2, 1), (12, 11)] {
            let parameters = Parameters { degree: Some(degree), ..Parameters::default() };
            let topology = generate(Family::RandomRegular, nodes, parameters, 1).unwrap();
            assert!((0..nodes).all(|i| topology.degree(i) == degree), "{nodes} {degree}");
        }
    }

    #[test]
    fn close_pairs_agree_with_all_pairs() {
        let mut random = Random::new("test", 9);
        let points: Vec<_> = (0..80).map(|_| (random.unit(), random.unit())).collect();
        for radius in [0.05, 0.2, 0.7, 2.0] {
            let near = |a: usize, b: usize| {
                let (dx, dy) = (points[a].0 - points[b].0, points[a].1 - points[b].1);
                dx * dx + dy * dy < radius * radius
            };
            let all: BTreeSet<_> = (0..80)
                .flat_map(|a| (a + 1..80).map(move |b| (a, b)))
                .filter(|&(a, b)| near(a, b))
                .collect();
            assert_eq!(close_pairs(&points, radius).into_iter().collect::<BTreeSet<_>>(), all);
        }
    }

    #[test]
    fn impossible_sizes_name_a_remedy() {
        let none = Parameters::default();
        let error = |family, nodes, parameters| {
            generate(family, nodes, parameters, 0).unwrap_err().to_string()
        };
        assert!(error(Family::Ring, 2, none).contains("use line"));
        assert!(error(Family::Hypercube, 12, none).contains("power of two"));
        assert!(error(Family::Torus, 14, none).contains("at least 3"));
        assert!(error(Family::Barbell, 7, none).contains("even"));
        let odd = Parameters { degree: Some(3), ..none };
        assert!(error(Family::RandomRegular, 7, odd).contains("even"));
        assert!(error(Family::Ring, 7, odd).contains("no parameter degree"));
        let rows = Parameters { rows: Some(5), ..none };
        assert!(error(Family::Grid, 16, rows).contains("divide 16"));
        let sparse = Parameters { probability: Some(0.001), ..none };
        assert!(error(Family::ErdosRenyi, 30, sparse).contains("raise the probability"));
        let nan = Parameters { radius: Some(f64::NAN), ..none };
        assert!(error(Family::RandomGeometric, 30, nan).contains("radius NaN"));
        assert!(error(Family::Complete, 100_000, none).contains("more than 5000000 edges"));
        assert!(error(Family::Line, 0, none).contains("at least one"));
    }

    #[test]
    fn smallest_sizes_work() {
        use Family::*;
        for family in [Complete, Line, Star, Grid, Hypercube, Exponential, ErdosRenyi] {
            assert_eq!(make(family, 1).edge_count(), 0, "{family}");
        }
        for family in [Complete, Line, Star, Grid, Hypercube, Exponential, Barbell] {
            assert_eq!(make(family, 2).edge_count(), 1, "{family}");
        }
    }
}
