//! A picture of a graph as SVG.
//!
//! Rings, complete and tiny graphs stand on a circle. Up to [`STRESS_NODES_MAX`] nodes the layout
//! makes distances in the picture follow distances in the graph (stress, by the stochastic
//! descent of Zheng, Pawar and Goodman, arXiv 1710.04626); larger graphs are projected from a few
//! pivots (Brandes and Pich 2006). One graph gives one picture. Edges are as thick as their
//! rates, where they have any.

use std::fmt::Write;

use nalgebra::DMatrix;

use crate::format::escape_xml;
use crate::graph::{Edge, Topology};
use crate::random::Random;
use crate::structure;

/// The picture as an SVG document.
///
/// Up to [`LABELED_NODES_MAX`] nodes the names are written beside them; names in full, rates,
/// latencies and losses are shown by a viewer that shows titles.
pub fn svg(topology: &Topology) -> String {
    let nodes = topology.node_count();
    // Space for each node, within what a screen can show.
    let side = (90.0 * (nodes as f64).sqrt()).clamp(320.0, 4000.0);
    let radius = (0.12 * side / (nodes as f64).sqrt()).clamp(1.5, 12.0);
    let margin = 40.0;
    let places = fit(layout(topology), margin, side - margin);
    let rate_max = topology.edges().iter().filter_map(|edge| edge.rate).fold(0.0, f64::max);

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side:.0} {side:.0}\" \
         width=\"{side:.0}\" height=\"{side:.0}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <g stroke=\"#5b6b7b\" stroke-linecap=\"round\">\n"
    );
    for edge in topology.edges() {
        let ((x1, y1), (x2, y2)) = (places[edge.a], places[edge.b]);
        let width = match edge.rate {
            Some(rate) => 0.5 + 0.5 * radius * rate / rate_max,
            None => (0.15 * radius).max(0.5),
        };
        let title = edge_title(topology, edge);
        add(
            &mut text,
            format_args!(
                "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" \
             stroke-width=\"{width:.2}\"><title>{title}</title></line>\n"
            ),
        );
    }
    text += "</g>\n<g fill=\"#1f6fb2\" stroke=\"white\">\n";
    for (&(x, y), name) in places.iter().zip(topology.names()) {
        let title = escape_xml(name);
        add(
            &mut text,
            format_args!(
                "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius:.2}\"><title>{title}</title></circle>\n"
            ),
        );
    }
    text += "</g>\n";
    if nodes <= LABELED_NODES_MAX {
        // A white rim keeps names readable where they cross edges.
        text += "<g font-size=\"12\" fill=\"#111\" stroke=\"white\" stroke-width=\"3\" \
                 paint-order=\"stroke\">\n";
        for (&(x, y), name) in places.iter().zip(topology.names()) {
            let (x, y) = (x + radius + 2.0, y - radius);
            let label = escape_xml(&shortened(name));
            add(&mut text, format_args!("<text x=\"{x:.2}\" y=\"{y:.2}\">{label}</text>\n"));
        }
        text += "</g>\n";
    }
    text + "</svg>\n"
}

/// The most nodes whose names are written beside them.
pub const LABELED_NODES_MAX: usize = 150;
const LABEL_LEN_MAX: usize = 16;

fn add(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}

fn shortened(name: &str) -> String {
    match name.chars().nth(LABEL_LEN_MAX) {
        None => name.to_owned(),
        Some(_) => name.chars().take(LABEL_LEN_MAX - 1).chain(['…']).collect(),
    }
}

fn edge_title(topology: &Topology, edge: &Edge) -> String {
    let mut title = format!("{} – {}", topology.name(edge.a), topology.name(edge.b));
    for (name, value) in edge.attributes().known() {
        add(&mut title, format_args!(", {name} {value}"));
    }
    escape_xml(&title)
}

type Places = Vec<(f64, f64)>;

fn layout(topology: &Topology) -> Places {
    let nodes = topology.node_count();
    let every_degree_is = |degree| (0..nodes).all(|i| topology.degree(i) == degree);
    if nodes <= 4 || every_degree_is(nodes - 1) {
        return circle((0..nodes).collect());
    }
    if every_degree_is(2) && topology.is_connected() {
        return circle(around_the_ring(topology));
    }
    if nodes <= STRESS_NODES_MAX { stress(topology) } else { pivots(topology) }
}

/// The most nodes for the layout that looks at all pairs.
pub const STRESS_NODES_MAX: usize = 1000;

/// The nodes in this order on a circle, the first on top.
fn circle(order: Vec<usize>) -> Places {
    let mut places = vec![(0.0, 0.0); order.len()];
    for (at, &node) in order.iter().enumerate() {
        let angle = std::f64::consts::TAU * at as f64 / order.len() as f64;
        places[node] = (angle.sin(), -angle.cos());
    }
    places
}

fn around_the_ring(topology: &Topology) -> Vec<usize> {
    let mut order = vec![0];
    let (mut before, mut here) = (0, topology.neighbors(0)[0]);
    while here != 0 {
        order.push(here);
        let next = topology.neighbors(here).into_iter().find(|&next| next != before);
        (before, here) = (here, next.expect("a node of a ring has two neighbors"));
    }
    order
}

/// Moves pairs toward their distance in the graph, in random order, by ever smaller parts.
fn stress(topology: &Topology) -> Places {
    let nodes = topology.node_count();
    let distances: Vec<Vec<f64>> = (0..nodes).map(|i| spread(topology, i)).collect();
    let mut random = Random::new("layout", 0);
    let mut places: Places = (0..nodes).map(|_| (random.unit(), random.unit())).collect();
    let mut pairs: Vec<_> = (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| (a, b))).collect();
    let longest = distances.iter().flatten().copied().fold(1.0, f64::max);
    // From moving the farthest pairs all the way to a tenth for the nearest.
    let mut step = longest * longest;
    let shrink = (0.1 / step).powf(1.0 / STRESS_ROUNDS as f64);
    for _ in 0..STRESS_ROUNDS {
        for i in (1..pairs.len()).rev() {
            pairs.swap(i, random.index(i + 1));
        }
        for &(a, b) in &pairs {
            let wanted = distances[a][b];
            let (dx, dy) = (places[a].0 - places[b].0, places[a].1 - places[b].1);
            let length = (dx * dx + dy * dy).sqrt().max(1e-9);
            let part = (step / (wanted * wanted)).min(1.0) * 0.5 * (length - wanted) / length;
            places[a].0 -= part * dx;
            places[a].1 -= part * dy;
            places[b].0 += part * dx;
            places[b].1 += part * dy;
        }
        step *= shrink;
    }
    places
}

const STRESS_ROUNDS: usize = 40;

/// Distances from a node; parts that cannot be reached stand a little beyond the farthest.
fn spread(topology: &Topology, from: usize) -> Vec<f64> {
    let distances = structure::distances(topology, from);
    let farthest = distances.iter().flatten().max().copied().unwrap_or(0);
    distances.into_iter().map(|d| d.unwrap_or(farthest + 2) as f64).collect()
}

/// The plane in which the distances from a few far-apart nodes differ most.
fn pivots(topology: &Topology) -> Places {
    let nodes = topology.node_count();
    let mut columns: Vec<Vec<f64>> = Vec::new();
    let mut nearest = vec![f64::INFINITY; nodes];
    let mut pivot = 0;
    for _ in 0..PIVOTS.min(nodes) {
        let distances = spread(topology, pivot);
        for (nearest, distance) in nearest.iter_mut().zip(&distances) {
            *nearest = nearest.min(*distance);
        }
        columns.push(distances);
        pivot = (0..nodes).rev().max_by(|&a, &b| nearest[a].total_cmp(&nearest[b])).unwrap_or(0);
    }
    let mut centered = DMatrix::from_fn(nodes, columns.len(), |i, j| columns[j][i].powi(2));
    let mean = centered.mean();
    let (rows, means) = (centered.column_mean(), centered.row_mean());
    for j in 0..centered.ncols() {
        for i in 0..nodes {
            centered[(i, j)] = -0.5 * (centered[(i, j)] - rows[i] - means[j] + mean);
        }
    }
    let eigen = (centered.transpose() * &centered).symmetric_eigen();
    let mut order: Vec<_> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let x = &centered * eigen.eigenvectors.column(order[0]);
    let y = &centered * eigen.eigenvectors.column(order[1]);
    // A little noise, because nodes with equal distances to all pivots would hide each other.
    let mut random = Random::new("jitter", 0);
    let noise = 0.01 * x.amax().max(y.amax());
    let mut place =
        |i: usize| (x[i] + noise * (random.unit() - 0.5), y[i] + noise * (random.unit() - 0.5));
    (0..nodes).map(&mut place).collect()
}

const PIVOTS: usize = 40;

/// Shifts and scales to a square, without distortion.
fn fit(places: Places, low: f64, high: f64) -> Places {
    let bounds = |pick: fn(&(f64, f64)) -> f64| {
        let values = places.iter().map(pick);
        let (least, most) = (
            values.clone().fold(f64::INFINITY, f64::min),
            values.fold(f64::NEG_INFINITY, f64::max),
        );
        ((least + most) / 2.0, most - least)
    };
    let ((x_mid, width), (y_mid, height)) = (bounds(|place| place.0), bounds(|place| place.1));
    let extent = width.max(height);
    let scale = if extent > 0.0 { (high - low) / extent } else { 0.0 };
    let mid = (low + high) / 2.0;
    places.iter().map(|(x, y)| (mid + scale * (x - x_mid), mid + scale * (y - y_mid))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family, Parameters, generate};
    use crate::graph::{Attributes, TopologyBuilder};

    #[test]
    fn picture_is_well_formed_and_the_same_every_time() {
        for family in Family::ALL {
            let topology = generate(family, 64, Parameters::default(), 0).unwrap();
            let picture = svg(&topology);
            assert_eq!(picture, svg(&topology), "{family}");
            let document = roxmltree::Document::parse(&picture).unwrap();
            let count = |tag| {
                document
                    .descendants()
                    .filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", tag)))
                    .count()
            };
            assert_eq!((count("circle"), count("line")), (64, topology.edge_count()), "{family}");
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{family}");
        }
    }

    #[test]
    fn names_cannot_inject_markup_and_rates_set_the_width() {
        let mut builder = TopologyBuilder::new();
        let evil = builder.add_node("<script>\"&'").unwrap();
        let (a, b) = (builder.add_node("a").unwrap(), builder.add_node("b").unwrap());
        for (to, rate) in [(a, 1.0), (b, 4.0)] {
            builder
                .add_edge(evil, to, Attributes { rate: Some(rate), ..Attributes::default() })
                .unwrap();
        }
        let picture = svg(&builder.finish().unwrap().0);
        assert!(!picture.contains("<script>"));
        let document = roxmltree::Document::parse(&picture).unwrap();
        let widths: Vec<f64> = document
            .descendants()
            .filter_map(|node| {
                node.attribute("stroke-width").filter(|_| node.tag_name().name() == "line")
            })
            .map(|width| width.parse().unwrap())
            .collect();
        assert!(widths[1] > 2.0 * widths[0], "{widths:?}");
    }

    #[test]
    fn large_split_and_single_graphs_have_pictures() {
        let large = generate(Family::RandomGeometric, 2000, Parameters::default(), 0).unwrap();
        assert!(!svg(&large).contains("NaN"));
        let split = Topology::from_edges(6, [(0, 1), (2, 3)]).unwrap();
        assert!(!svg(&split).contains("NaN"));
        assert!(!svg(&Topology::from_edges(1, []).unwrap()).contains("NaN"));
        let many = Topology::from_edges(STRESS_NODES_MAX + 1, []).unwrap();
        assert!(!svg(&many).contains("NaN"));
    }

    #[test]
    fn layout_of_a_line_keeps_its_order() {
        let line = generate(Family::Line, 30, Parameters::default(), 0).unwrap();
        let places = stress(&line);
        let distance = |a: usize, b: usize| {
            ((places[a].0 - places[b].0).powi(2) + (places[a].1 - places[b].1).powi(2)).sqrt()
        };
        assert!((1..30).all(|i| distance(0, i) > distance(0, i - 1)));
    }
}
