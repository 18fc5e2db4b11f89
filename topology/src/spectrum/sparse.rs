//! λ₂ and χ₂ of large sparse graphs without a dense matrix.
//!
//! All rests on solving `Λ x = b` by conjugate gradients, preconditioned by an approximate
//! elimination (Gao, Kyng and Spielman, "Robust and Practical Solution of Laplacian Equations
//! by Approximate Elimination", arXiv 2303.00709): nodes are eliminated one by one, and the
//! clique that each would leave behind is replaced by a random tree of the same mean. A few dozen
//! iterations suffice for rings, grids and expanders alike. The draws have a fixed seed.
//!
//! λ₂ is one over the largest eigenvalue of Λ⁺, by Lanczos on solves.
//!
//! χ₂ needs the largest resistance over the edges. A bridge has exactly 1/w, the upper bound of
//! every edge, so where the best exact value reaches an edge's 1/w the edge need not be looked at.
//! For the others the resistances are estimated from random projections (Spielman and
//! Srivastava 2008, theorem 2), sharpened by exact first terms: with `Λ = D − A`, `P = D⁻¹A`,
//! `x = e_i − e_j`, inserting `Λ⁺ = D⁻¹ + P Λ⁺` twice gives
//!
//! ```text
//! xᵀΛ⁺x = xᵀD⁻¹x + xᵀD⁻¹AD⁻¹x + (Pᵀx)ᵀ Λ⁺ (Pᵀx)
//! ```
//!
//! and so on for `Pᵀx`; only the last, smaller term is projected. The edges with the largest
//! estimates are then solved exactly. The result is never above χ₂.

use std::collections::BTreeSet;

use nalgebra::DMatrix;

use super::Spectrum;
use crate::graph::Topology;
use crate::random::Random;
use crate::structure;

/// The numbers of a connected graph with at least one edge and positive weights.
pub(super) fn spectrum(topology: &Topology, weights: &[f64]) -> Spectrum {
    let laplacian = Laplacian::new(topology, weights);
    let solver = Solver { elimination: Elimination::new(&laplacian), laplacian };
    Spectrum::new(lambda_2(&solver), resistance_max(&solver, topology, weights))
}

/// Lanczos on Λ⁺ with full reorthogonalization, until the largest eigenvalue of the tridiagonal
/// matrix stands still.
fn lambda_2(solver: &Solver) -> f64 {
    let n = solver.laplacian.degrees.len();
    let mut random = Random::new("lanczos", 0);
    let mut vector: Vec<f64> = (0..n).map(|_| random.unit() - 0.5).collect();
    center(&mut vector);
    normalize(&mut vector);
    let mut basis = vec![vector];
    let (mut diagonal, mut off_diagonal) = (Vec::new(), Vec::new());
    let mut largest = 0.0;
    for step in 0..LANCZOS_STEPS_MAX.min(n - 1) {
        let mut next = solver.solve(&basis[step], TOLERANCE_EXACT);
        diagonal.push(dot(&next, &basis[step]));
        // Twice is enough to be orthogonal to rounding.
        for _ in 0..2 {
            for earlier in &basis {
                let overlap = dot(&next, earlier);
                add_scaled(&mut next, -overlap, earlier);
            }
            center(&mut next);
        }
        let previous = largest;
        largest = largest_eigenvalue(&diagonal, &off_diagonal);
        let norm = normalize(&mut next);
        if (largest - previous) < LANCZOS_TOLERANCE * largest || norm < 1e-13 * largest {
            break;
        }
        off_diagonal.push(norm);
        basis.push(next);
    }
    1.0 / largest
}

const LANCZOS_STEPS_MAX: usize = 80;
/// Lanczos converges geometrically, so what is still missing is of the order of the last step.
const LANCZOS_TOLERANCE: f64 = 1e-9;

fn largest_eigenvalue(diagonal: &[f64], off_diagonal: &[f64]) -> f64 {
    let mut tridiagonal = DMatrix::zeros(diagonal.len(), diagonal.len());
    for (i, &entry) in diagonal.iter().enumerate() {
        tridiagonal[(i, i)] = entry;
    }
    for (i, &entry) in off_diagonal.iter().enumerate().take(diagonal.len().saturating_sub(1)) {
        tridiagonal[(i, i + 1)] = entry;
        tridiagonal[(i + 1, i)] = entry;
    }
    tridiagonal.symmetric_eigenvalues().max()
}

/// The largest resistance over the edges, from below.
fn resistance_max(solver: &Solver, topology: &Topology, weights: &[f64]) -> f64 {
    let bound = |k: usize| 1.0 / weights[k];
    let bridges = structure::bridges(topology);
    let mut largest = bridges.iter().map(|&k| bound(k)).fold(0.0, f64::max);
    let mut is_bridge = vec![false; weights.len()];
    bridges.iter().for_each(|&k| is_bridge[k] = true);
    let mut open: Vec<_> =
        (0..weights.len()).filter(|&k| !is_bridge[k] && bound(k) > largest).collect();
    if open.is_empty() {
        return largest;
    }

    let estimates = estimate_resistances(solver, topology, weights);
    // No estimate may pass the bound, or noise would hide edges that nearly reach it.
    open.sort_by(|&k, &l| {
        estimates[l].min(bound(l)).total_cmp(&estimates[k].min(bound(k))).then(k.cmp(&l))
    });
    for &k in open.iter().take(EXACT_EDGES_MAX) {
        if bound(k) > largest {
            let edge = topology.edges()[k];
            largest = largest.max(solver.resistance(edge.a, edge.b));
        }
    }
    largest
}

/// Solves of single edges after the estimates. Measured on 72 random graphs of 1500 nodes
/// (geometric, Erdős–Rényi, small world, regular of degree 4 to 10): χ₂ is exact on all.
const EXACT_EDGES_MAX: usize = 200;
/// Projections; the projected part of an estimate has a relative deviation of √(2/96) = 14 %.
const PROJECTIONS: usize = 96;

fn estimate_resistances(solver: &Solver, topology: &Topology, weights: &[f64]) -> Vec<f64> {
    let nodes = topology.node_count();
    let edges = || topology.edges().iter().zip(weights);
    let depth = expansion_depth(nodes, weights.len());
    let mut expansion = Expansion::new(nodes);
    let mut estimates: Vec<f64> =
        edges().map(|(edge, _)| expansion.sum(&solver.laplacian, edge.a, edge.b, depth)).collect();
    let mut random = Random::new("projection", 0);
    for _ in 0..PROJECTIONS {
        let mut right = vec![0.0; nodes];
        for (edge, weight) in edges() {
            let flow = random.sign() * weight.sqrt();
            right[edge.a] += flow;
            right[edge.b] -= flow;
        }
        let mut mean = solver.solve(&right, TOLERANCE_ESTIMATE);
        for _ in 0..depth {
            mean = solver.laplacian.neighbor_mean(&mean);
        }
        for ((edge, _), estimate) in edges().zip(&mut estimates) {
            *estimate += (mean[edge.a] - mean[edge.b]).powi(2) / PROJECTIONS as f64;
        }
    }
    estimates
}

/// How many terms are computed exactly: as many as the growth of neighborhoods allows.
fn expansion_depth(nodes: usize, edges: usize) -> usize {
    let growth = 2 * edges / nodes;
    let mut cost = 2 * edges;
    (1..EXPANSION_DEPTH_MAX)
        .take_while(|_| {
            cost = cost.saturating_mul(growth);
            cost < EXPANSION_WORK_MAX
        })
        .count()
        .max(1)
}

const EXPANSION_DEPTH_MAX: usize = 6;
/// Visits of neighbors, a few seconds.
const EXPANSION_WORK_MAX: usize = 100_000_000;

/// The exact terms of the resistance of an edge, with a vector that is zero between uses.
struct Expansion {
    image: Vec<f64>,
}

impl Expansion {
    fn new(nodes: usize) -> Self {
        Self { image: vec![0.0; nodes] }
    }

    /// Σ xᵀD⁻¹x + xᵀD⁻¹AD⁻¹x over x = b, Pᵀb, …, (Pᵀ)^(depth−1) b.
    fn sum(&mut self, laplacian: &Laplacian, a: usize, b: usize, depth: usize) -> f64 {
        let mut sum = 0.0;
        let mut vector = vec![(a, 1.0), (b, -1.0)];
        for _ in 0..depth {
            for (node, value) in &mut vector {
                sum += *value * *value / laplacian.degrees[*node];
                *value /= laplacian.degrees[*node];
            }
            let mut touched = Vec::new();
            for &(node, value) in &vector {
                for &(neighbor, weight) in laplacian.row(node) {
                    touched.push(neighbor as usize);
                    self.image[neighbor as usize] += weight * value;
                }
            }
            for &(node, value) in &vector {
                sum += value * self.image[node];
            }
            touched.sort_unstable();
            touched.dedup();
            vector = touched.into_iter().map(|i| (i, std::mem::take(&mut self.image[i]))).collect();
        }
        sum
    }
}

/// Relative residual of solves whose result is used as it is.
const TOLERANCE_EXACT: f64 = 1e-10;
/// And of those that only rank edges.
const TOLERANCE_ESTIMATE: f64 = 1e-4;

/// Solves Λ x = b for b orthogonal to 1.
struct Solver {
    laplacian: Laplacian,
    elimination: Elimination,
}

impl Solver {
    fn resistance(&self, a: usize, b: usize) -> f64 {
        let mut right = vec![0.0; self.laplacian.degrees.len()];
        (right[a], right[b]) = (1.0, -1.0);
        let potential = self.solve(&right, TOLERANCE_EXACT);
        potential[a] - potential[b]
    }

    /// Preconditioned conjugate gradients; the result is orthogonal to 1.
    fn solve(&self, right: &[f64], tolerance: f64) -> Vec<f64> {
        let n = right.len();
        let mut solution = vec![0.0; n];
        let mut residual = right.to_vec();
        center(&mut residual);
        let target = tolerance * dot(&residual, &residual).sqrt();
        let mut direction = self.elimination.apply(&residual);
        let mut energy = dot(&residual, &direction);
        for _ in 0..ITERATIONS_MAX {
            if dot(&residual, &residual).sqrt() <= target {
                break;
            }
            let image = self.laplacian.apply(&direction);
            let step = energy / dot(&direction, &image);
            if !step.is_finite() {
                break;
            }
            add_scaled(&mut solution, step, &direction);
            add_scaled(&mut residual, -step, &image);
            let preconditioned = self.elimination.apply(&residual);
            let next_energy = dot(&residual, &preconditioned);
            let keep = next_energy / energy;
            energy = next_energy;
            for (old, new) in direction.iter_mut().zip(&preconditioned) {
                *old = new + keep * *old;
            }
        }
        center(&mut solution);
        solution
    }
}

/// A hundred times what was ever needed; only rounding in hopeless weights gets here.
const ITERATIONS_MAX: usize = 5000;

/// Λ by rows.
struct Laplacian {
    starts: Vec<usize>,
    /// Neighbor and weight of each entry off the diagonal.
    entries: Vec<(u32, f64)>,
    /// Weighted degrees, the diagonal.
    degrees: Vec<f64>,
}

impl Laplacian {
    fn new(topology: &Topology, weights: &[f64]) -> Self {
        let mut starts = vec![0];
        let mut entries = Vec::with_capacity(2 * weights.len());
        let mut degrees = Vec::with_capacity(topology.node_count());
        for neighbors in topology.adjacency() {
            degrees.push(neighbors.iter().map(|&(_, k)| weights[k]).sum());
            entries.extend(neighbors.iter().map(|&(j, k)| (j as u32, weights[k])));
            starts.push(entries.len());
        }
        Self { starts, entries, degrees }
    }

    fn row(&self, i: usize) -> &[(u32, f64)] {
        &self.entries[self.starts[i]..self.starts[i + 1]]
    }

    fn neighbor_sum(&self, vector: &[f64], i: usize) -> f64 {
        self.row(i).iter().map(|&(j, weight)| weight * vector[j as usize]).sum()
    }

    fn apply(&self, vector: &[f64]) -> Vec<f64> {
        (0..vector.len())
            .map(|i| self.degrees[i] * vector[i] - self.neighbor_sum(vector, i))
            .collect()
    }

    /// P v = D⁻¹ A v.
    fn neighbor_mean(&self, vector: &[f64]) -> Vec<f64> {
        (0..vector.len()).map(|i| self.neighbor_sum(vector, i) / self.degrees[i]).collect()
    }
}

/// An approximate elimination of Λ: a product of eliminations of one edge of one node each.
struct Elimination {
    /// The eliminated nodes in order, all but the last.
    columns: Vec<Column>,
    /// Their entries, in one piece.
    entries: Vec<(u32, f64)>,
}

struct Column {
    node: usize,
    /// Where its entries end; they begin where those of the column before end.
    end: usize,
    /// What is left of its degree at its last edge.
    pivot: f64,
}

impl Elimination {
    /// Eliminates nodes of few edges first. At each, edge after edge from the lightest on: the
    /// edge takes the fraction `f` of the node's value with it, and instead of joining its end
    /// to all heavier ends it joins one, drawn by weight, with the sum of the weights.
    fn new(laplacian: &Laplacian) -> Self {
        let n = laplacian.degrees.len();
        let mut random = Random::new("elimination", 0);
        let mut lists: Vec<Vec<(u32, f64)>> = (0..n).map(|i| laplacian.row(i).to_vec()).collect();
        let mut counts: Vec<_> = lists.iter().map(Vec::len).collect();
        let mut queue: BTreeSet<_> =
            counts.iter().enumerate().map(|(i, &count)| (count, i)).collect();
        let mut eliminated = vec![false; n];
        let mut columns = Vec::with_capacity(n - 1);
        let mut entries = Vec::new();
        while queue.len() > 1 {
            let (_, node) = queue.pop_first().expect("more than one is left");
            eliminated[node] = true;
            let star = star(std::mem::take(&mut lists[node]), &eliminated, |end, repeated| {
                queue.remove(&(counts[end], end));
                counts[end] -= repeated;
                queue.insert((counts[end], end));
            });
            // A node of a connected graph keeps an edge until it is the last.
            let Some((&(last, last_weight), lighter)) = star.split_last() else { continue };
            // The weight of this edge and all heavier ones, before those already gone took
            // their part: what is left of each is its weight times the scale.
            let mut left: f64 = star.iter().map(|(_, weight)| weight).sum();
            let mut scale = 1.0;
            for (index, &(end, weight)) in lighter.iter().enumerate() {
                let fraction = weight / left;
                let new_weight = fraction * (1.0 - fraction) * left * scale;
                left -= weight;
                let partner = draw(&star[index + 1..], random.unit() * left);
                for (from, to) in [(end, partner), (partner, end)] {
                    lists[from as usize].push((to, new_weight));
                    let from = from as usize;
                    queue.remove(&(counts[from], from));
                    counts[from] += 1;
                    queue.insert((counts[from], from));
                }
                entries.push((end, fraction));
                scale *= 1.0 - fraction;
            }
            entries.push((last, 1.0));
            columns.push(Column { node, end: entries.len(), pivot: last_weight * scale });
        }
        Self { columns, entries }
    }

    /// The approximate Λ⁺ b.
    fn apply(&self, right: &[f64]) -> Vec<f64> {
        let mut vector = right.to_vec();
        let mut start = 0;
        for column in &self.columns {
            let mut value = vector[column.node];
            let (last, lighter) =
                self.entries[start..column.end].split_last().expect("a column has an entry");
            for &(end, fraction) in lighter {
                vector[end as usize] += fraction * value;
                value *= 1.0 - fraction;
            }
            vector[last.0 as usize] += value;
            vector[column.node] = value;
            start = column.end;
        }
        for column in &self.columns {
            vector[column.node] /= column.pivot;
        }
        for (index, column) in self.columns.iter().enumerate().rev() {
            let start = if index == 0 { 0 } else { self.columns[index - 1].end };
            let mut value = vector[column.node];
            let (last, lighter) =
                self.entries[start..column.end].split_last().expect("a column has an entry");
            value += vector[last.0 as usize];
            for &(end, fraction) in lighter.iter().rev() {
                value = (1.0 - fraction) * value + fraction * vector[end as usize];
            }
            vector[column.node] = value;
        }
        center(&mut vector);
        vector
    }
}

/// The living ends of a list, repeated ones merged, lightest first. Tells each end how many of its
/// edges go with the node.
fn star(
    mut list: Vec<(u32, f64)>,
    eliminated: &[bool],
    mut forget: impl FnMut(usize, usize),
) -> Vec<(u32, f64)> {
    list.retain(|&(end, _)| !eliminated[end as usize]);
    list.sort_unstable_by_key(|&(end, _)| end);
    let mut star: Vec<(u32, f64)> = Vec::with_capacity(list.len());
    for same in list.chunk_by(|first, second| first.0 == second.0) {
        star.push((same[0].0, same.iter().map(|(_, weight)| weight).sum()));
        forget(same[0].0 as usize, same.len());
    }
    star.sort_unstable_by(|first, second| {
        first.1.total_cmp(&second.1).then(first.0.cmp(&second.0))
    });
    star
}

/// The end at which the running sum of weights passes the mark.
fn draw(ends: &[(u32, f64)], mark: f64) -> u32 {
    let mut sum = 0.0;
    for &(end, weight) in ends {
        sum += weight;
        if sum > mark {
            return end;
        }
    }
    ends[ends.len() - 1].0
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

fn add_scaled(vector: &mut [f64], scale: f64, other: &[f64]) {
    for (entry, other) in vector.iter_mut().zip(other) {
        *entry += scale * other;
    }
}

/// Takes the mean away.
fn center(vector: &mut [f64]) {
    let mean = vector.iter().sum::<f64>() / vector.len() as f64;
    vector.iter_mut().for_each(|entry| *entry -= mean);
}

/// Scales to length 1 and returns the length it had.
fn normalize(vector: &mut [f64]) -> f64 {
    let norm = dot(vector, vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|entry| *entry /= norm);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family, Parameters, generate};

    #[test]
    fn elimination_of_a_tree_is_exact() {
        let line = generate(Family::Line, 50, Parameters::default(), 0).unwrap();
        let weights: Vec<_> = (1..50).map(f64::from).collect();
        let laplacian = Laplacian::new(&line, &weights);
        let mut right: Vec<f64> = (0..50).map(|i| f64::from(i * i % 13)).collect();
        center(&mut right);
        let image = laplacian.apply(&Elimination::new(&laplacian).apply(&right));
        assert!(image.iter().zip(&right).all(|(got, expected)| (got - expected).abs() < 1e-9));
    }

    #[test]
    fn solves_leave_no_residual() {
        for family in [Family::Ring, Family::Torus, Family::RandomGeometric, Family::Barbell] {
            let topology = generate(family, 100, Parameters::default(), 0).unwrap();
            let weights = vec![1.0; topology.edge_count()];
            let laplacian = Laplacian::new(&topology, &weights);
            let solver = Solver { elimination: Elimination::new(&laplacian), laplacian };
            let mut right = vec![0.0; 100];
            (right[3], right[70]) = (1.0, -1.0);
            let image = solver.laplacian.apply(&solver.solve(&right, 1e-12));
            let worst = image.iter().zip(&right).map(|(got, expected)| (got - expected).abs());
            assert!(worst.fold(0.0, f64::max) < 1e-10, "{family}");
        }
    }
}
