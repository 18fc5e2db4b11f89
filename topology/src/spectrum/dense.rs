//! All spectral numbers by dense linear algebra, to rounding.

use nalgebra::DMatrix;

use super::Spectrum;
use crate::graph::Topology;

/// The numbers of a connected graph with at least one edge and positive weights.
pub(super) fn spectrum(topology: &Topology, weights: &[f64]) -> Spectrum {
    let laplacian = laplacian(topology, weights);
    let mut eigenvalues = laplacian.symmetric_eigenvalues();
    eigenvalues.as_mut_slice().sort_unstable_by(f64::total_cmp);
    let inverse = inverse(laplacian);
    let resistances = topology.edges().iter().map(|edge| resistance(&inverse, edge.a, edge.b));
    Spectrum::new(eigenvalues[1], resistances.fold(0.0, f64::max))
}

/// Λ = Σ w_k (e_a − e_b)(e_a − e_b)ᵀ.
pub(crate) fn laplacian(topology: &Topology, weights: &[f64]) -> DMatrix<f64> {
    let mut laplacian = DMatrix::zeros(topology.node_count(), topology.node_count());
    for (edge, &weight) in topology.edges().iter().zip(weights) {
        laplacian[(edge.a, edge.a)] += weight;
        laplacian[(edge.b, edge.b)] += weight;
        laplacian[(edge.a, edge.b)] -= weight;
        laplacian[(edge.b, edge.a)] -= weight;
    }
    laplacian
}

/// Λ⁺ plus a constant in every entry, which no difference of entries sees: the inverse of Λ
/// with its null direction lifted to the mean eigenvalue.
fn inverse(mut laplacian: DMatrix<f64>) -> DMatrix<f64> {
    let n = laplacian.nrows() as f64;
    let lift = laplacian.trace() / (n * n);
    laplacian.add_scalar_mut(lift);
    laplacian.cholesky().expect("a lifted Laplacian of a connected graph is definite").inverse()
}

fn resistance(inverse: &DMatrix<f64>, a: usize, b: usize) -> f64 {
    inverse[(a, a)] + inverse[(b, b)] - 2.0 * inverse[(a, b)]
}
