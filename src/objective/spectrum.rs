//! The largest eigenvalue of the rows' second moments, which bounds the curvature of linear models.
//!
//! ```text
//! λ = λmax(XᵀX / m),  a row of X being a row's features, then 1 where the model has a bias
//! v ← XᵀXv / m,  λ ≈ |v_new| / |v_old|
//! ```
//!
//! Power iteration from a fixed random vector: a vector of ones would be lost on features that
//! are centered, as XᵀX maps it to zero there.

use super::Scratch;
use crate::data::Table;
use crate::sample::KeyedRng;

/// The eigenvalue counts as found when a step changes its estimate by less than this share of it.
const TOLERANCE: f64 = 1e-6;

/// Estimates come from below, and slower than they change when the next eigenvalue is close.
const SAFETY: f64 = 1.0 + 1e-3;

/// Steps after which the estimate is taken as it is.
const STEPS_MAX: usize = 1000;

/// The largest eigenvalue of `XᵀX / m`, a tenth of a percent too large.
///
/// # Panics
/// If there are no rows, or one is too large.
pub(super) fn largest(table: &Table, rows: &[u32], bias: bool, scratch: &mut Scratch) -> f64 {
    assert!(!rows.is_empty(), "a mean needs rows");
    let columns = table.features.columns();
    let mut rng = KeyedRng::from_seed("rumormill v1 spectrum", 0, 0);
    let mut vector: Vec<f64> =
        (0..columns + usize::from(bias)).map(|_| f64::from(rng.symmetric(1.0))).collect();
    let mut image = vec![0.0; vector.len()];
    let mut estimate = 0.0;
    for _ in 0..STEPS_MAX {
        let length = norm(&vector);
        if length == 0.0 {
            // All features are zero.
            return 0.0;
        }
        vector.iter_mut().for_each(|value| *value /= length);
        second_moments(table, rows, &vector, &mut image, scratch);
        let previous = std::mem::replace(&mut estimate, norm(&image));
        std::mem::swap(&mut vector, &mut image);
        if (estimate - previous).abs() <= TOLERANCE * estimate {
            break;
        }
    }
    SAFETY * estimate
}

/// Writes `XᵀXv / m`.
fn second_moments(
    table: &Table,
    rows: &[u32],
    vector: &[f64],
    out: &mut [f64],
    scratch: &mut Scratch,
) {
    let (weights, bias) = vector.split_at(table.features.columns());
    let offset = f64::from(table.features.offset());
    let base = bias.first().unwrap_or(&0.0) + offset * weights.iter().sum::<f64>();
    out.fill(0.0);
    let mut sum = 0.0;
    for &row in rows {
        scratch.inputs.take_row(&table.features, row as usize);
        let inputs = &scratch.inputs;
        let products = inputs.entries().map(|(column, x)| f64::from(x) * weights[column]);
        let score = base + products.sum::<f64>();
        inputs.entries().for_each(|(column, x)| out[column] += score * f64::from(x));
        sum += score;
    }
    let count = rows.len() as f64;
    let (weights, bias) = out.split_at_mut(weights.len());
    weights.iter_mut().for_each(|out| *out = (*out + offset * sum) / count);
    bias.fill(sum / count);
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Features;

    fn table(features: Features) -> Table {
        let labels = vec![0; features.rows()];
        Table { features, labels }
    }

    #[test]
    fn eigenvalue_of_two_rows_by_hand() {
        // XᵀX = diag(9, 4) + the constant column.
        let table = table(Features::F32(ndarray::array![[3.0, 0.0], [0.0, 2.0]]));
        let mut scratch = Scratch::default();
        let without = largest(&table, &[0, 1], false, &mut scratch);
        assert!((without - 4.5 * SAFETY).abs() < 1e-5, "{without}");
        // XXᵀ/2 = [[10, 1], [1, 5]]/2: its larger eigenvalue is (15 + √29)/4.
        let with = largest(&table, &[0, 1], true, &mut scratch);
        assert!((with - (15.0 + 29f64.sqrt()) / 4.0 * SAFETY).abs() < 1e-5, "{with}");
    }

    #[test]
    fn bytes_with_an_offset_have_the_eigenvalue_of_their_features() {
        let values = ndarray::array![[0, 4, 9], [7, 0, 1], [2, 2, 0], [0, 0, 0]];
        let floats = table(Features::F32(values.mapv(|byte| 0.5 * byte as f32 - 1.25)));
        let values = values.mapv(|byte| byte as u8);
        let bytes = table(Features::U8 { values, scale: 0.5, offset: -1.25 });
        let mut scratch = Scratch::default();
        for bias in [false, true] {
            let [bytes, floats] =
                [&bytes, &floats].map(|table| largest(table, &[0, 1, 2, 3], bias, &mut scratch));
            assert!((bytes / floats - 1.0).abs() < 1e-12, "{bytes} {floats}");
        }
    }

    #[test]
    fn rows_of_zeros_have_no_curvature() {
        let table = table(Features::F32(ndarray::array![[0.0], [0.0]]));
        assert_eq!(largest(&table, &[0, 1], false, &mut Scratch::default()), 0.0);
    }
}
