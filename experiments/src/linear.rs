//! Small dense linear algebra: symmetric eigenvalues and linear systems, for graphs and problems of
//! up to some hundred rows.

/// A square matrix by rows.
pub type Matrix = Vec<Vec<f64>>;

/// Eigenvalues of a symmetric matrix in rising order, with unit eigenvectors, by cyclic Jacobi
/// rotations: slow, short and accurate to the last digits.
pub fn eigen(mut a: Matrix) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut v: Matrix =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let total: f64 = a.iter().flatten().map(|x| x * x).sum();
    // Convergence is quadratic; ten sweeps are ample, sixty a bound.
    for _ in 0..60 {
        let off: f64 = (0..n).map(|i| (0..i).map(|j| a[i][j] * a[i][j]).sum::<f64>()).sum();
        if off <= total * 1e-34 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[i][i].total_cmp(&a[j][j]));
    let values = order.iter().map(|&i| a[i][i]).collect();
    let vectors = order.iter().map(|&i| v.iter().map(|row| row[i]).collect()).collect();
    (values, vectors)
}

/// One rotation that makes `a[p][q]` zero.
fn rotate(a: &mut Matrix, v: &mut Matrix, p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let tau = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = t * c;
    let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
    for row in a.iter_mut().chain(v.iter_mut()) {
        (row[p], row[q]) = turn(row[p], row[q]);
    }
    let [above, below] = a.get_disjoint_mut([p, q]).expect("a rotation turns two different rows");
    for (x, y) in above.iter_mut().zip(below) {
        (*x, *y) = turn(*x, *y);
    }
}

/// Solves `a x = b` by elimination with row pivoting; `None` when `a` is singular.
pub fn solve(mut a: Matrix, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        if a[pivot][column] == 0.0 || !a[pivot][column].is_finite() {
            return None;
        }
        a.swap(column, pivot);
        b.swap(column, pivot);
        let (top, below) = a.split_at_mut(column + 1);
        for (offset, row) in below.iter_mut().enumerate() {
            let factor = row[column] / top[column][column];
            for (value, above) in row.iter_mut().zip(&top[column]).skip(column) {
                *value -= factor * above;
            }
            b[column + 1 + offset] -= factor * b[column];
        }
    }
    for column in (0..n).rev() {
        b[column] /= a[column][column];
        for row in 0..column {
            b[row] -= a[row][column] * b[column];
        }
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_the_ring_are_two_minus_two_cosines() {
        let n = 7;
        let mut ring = vec![vec![0.0; n]; n];
        for i in 0..n {
            ring[i][i] = 2.0;
            ring[i][(i + 1) % n] = -1.0;
            ring[(i + 1) % n][i] = -1.0;
        }
        let (values, _) = eigen(ring);
        let mut expected: Vec<f64> = (0..n)
            .map(|k| 2.0 - 2.0 * (std::f64::consts::TAU * k as f64 / n as f64).cos())
            .collect();
        expected.sort_by(f64::total_cmp);
        for (value, expected) in values.iter().zip(&expected) {
            assert!((value - expected).abs() < 1e-14, "{value} {expected}");
        }
    }

    #[test]
    fn a_solution_satisfies_its_system() {
        let a = vec![vec![0.0, 2.0, 1.0], vec![1.0, -1.0, 0.5], vec![3.0, 0.0, 4.0]];
        let x = solve(a.clone(), vec![1.0, 2.0, 3.0]).unwrap();
        for (row, b) in a.iter().zip([1.0, 2.0, 3.0]) {
            let product: f64 = row.iter().zip(&x).map(|(a, x)| a * x).sum();
            assert!((product - b).abs() < 1e-13);
        }
        assert_eq!(solve(vec![vec![1.0, 1.0], vec![1.0, 1.0]], vec![1.0, 2.0]), None);
    }
}
