//! The inner loops of a transformer beside its matrix products, compiled for several instruction sets.
//!
//! Every function works on rows of a flat matrix and writes in place. The exponential is a polynomial, so
//! that a row is a handful of vector operations; its relative error is below 3·10⁻⁷. Long matrices are
//! shared out by rows to the thread pool of the caller; a row's result does not depend on how.

use multiversion::multiversion;
use rayon::prelude::*;

/// Values beneath which sharing out costs more than it gives.
const SHARE_MIN: usize = 1 << 16;

/// Applies `f` to pieces of whole rows, with the first row's number.
pub(super) fn by_rows(
    values: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if values.len() < SHARE_MIN || rayon::current_num_threads() == 1 {
        return f(0, values);
    }
    let rows = (SHARE_MIN / 4).div_ceil(width);
    let pieces = values.par_chunks_mut(rows * width).enumerate();
    pieces.for_each(|(piece, values)| f(piece * rows, values));
}

/// `eˣ`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the first product is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding this rounds to the nearest integer, which stands in the lowest bits of the sum. A conversion
    // to an integer would be checked for its range value by value, four times slower.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // The Taylor polynomial of degree 6 on |r| ≤ ln 2 / 2.
    let mut p = 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The error function: a quotient of polynomials (XLA's) on ±4, beyond which it is ±1 in 32 bits. The
/// absolute error is below 5·10⁻⁷.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * square + 2.770_681_4e-8;
    p = p * square - 2.101_024e-6;
    p = p * square - 5.692_506_4e-5;
    p = p * square - 7.349_906_3e-4;
    p = p * square - 2.954_6e-3;
    p = p * square - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * square - 2.133_740_6e-4;
    q = q * square - 1.682_827e-3;
    q = q * square - 7.373_329e-3;
    q = q * square - 1.426_473_9e-2;
    x * p / q
}

/// How a feed-forward layer bends its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)`.
    Gelu,
    /// The same with a hyperbolic tangent for Φ.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// `activation(x + bias)`.
pub(super) fn bias_activation(values: &mut [f32], bias: &[f32], activation: Activation) {
    by_rows(values, bias.len(), |_, values| match activation {
        Activation::Gelu => bias_gelu(values, bias),
        Activation::GeluTanh => bias_gelu_tanh(values, bias),
        Activation::Relu => bias_relu(values, bias),
    });
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn bias_gelu(values: &mut [f32], bias: &[f32]) {
    for row in values.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            let x = *value + bias;
            *value = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn bias_gelu_tanh(values: &mut [f32], bias: &[f32]) {
    for row in values.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            let x = *value + bias;
            // tanh(u) = 1 − 2/(1 + e²ᵘ), so half of one more is 1/(1 + e⁻²ᵘ).
            let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
            *value = x / (1.0 + exp(-2.0 * u));
        }
    }
}

#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn bias_relu(values: &mut [f32], bias: &[f32]) {
    for row in values.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            let x = *value + bias;
            // Not `max`, which makes a number of what is none.
            *value = if x < 0.0 { 0.0 } else { x };
        }
    }
}

/// `x + bias`, row by row.
pub(super) fn add_bias(values: &mut [f32], bias: &[f32]) {
    by_rows(values, bias.len(), |_, values| {
        for row in values.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    });
}

/// `x + bias + other`.
pub(super) fn add_bias_and(values: &mut [f32], bias: &[f32], other: &[f32]) {
    let width = bias.len();
    by_rows(values, width, |first, values| {
        let other = &other[first * width..];
        for (row, other) in values.chunks_exact_mut(width).zip(other.chunks_exact(width)) {
            for ((value, bias), other) in row.iter_mut().zip(bias).zip(other) {
                *value += bias + other;
            }
        }
    });
}

/// `x + other`.
pub(super) fn add(values: &mut [f32], other: &[f32]) {
    by_rows(values, 1, |first, values| {
        values.iter_mut().zip(&other[first..]).for_each(|(value, other)| *value += other);
    });
}

/// `silu(x) · other`.
pub(super) fn silu_times(values: &mut [f32], other: &[f32]) {
    by_rows(values, 1, |first, values| silu_times_part(values, &other[first..]));
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu_times_part(values: &mut [f32], other: &[f32]) {
    for (value, other) in values.iter_mut().zip(other) {
        *value = *value / (1.0 + exp(-*value)) * other;
    }
}

/// Sums of a row and of its squares, in eight lanes.
#[inline(always)]
fn sums(row: &[f32], mean: f32) -> (f32, f32) {
    let (mut sum, mut squares) = ([0f32; 8], [0f32; 8]);
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            let value = chunk[lane] - mean;
            sum[lane] += value;
            squares[lane] += value * value;
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        let value = value - mean;
        sum[lane] += value;
        squares[lane] += value * value;
    }
    (sum.iter().sum(), squares.iter().sum())
}

/// Layer normalization of every row.
pub(super) fn layer_norm(values: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    by_rows(values, weight.len(), |_, values| layer_norm_part(values, weight, bias, epsilon));
}

#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn layer_norm_part(values: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let width = weight.len();
    for row in values.chunks_exact_mut(width) {
        let mean = sums(row, 0.0).0 / width as f32;
        let variance = sums(row, mean).1 / width as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *value = (*value - mean) * scale * weight + bias;
        }
    }
}

/// Root-mean-square normalization of every row of `values`, to `out`.
pub(super) fn rms_norm(values: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    by_rows(out, width, |first, out| rms_norm_part(&values[first * width..], weight, epsilon, out));
}

#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn rms_norm_part(values: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (row, out) in values.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (sums(row, 0.0).1 / width as f32 + epsilon).sqrt();
        for ((out, value), weight) in out.iter_mut().zip(row).zip(weight) {
            *out = value * scale * weight;
        }
    }
}

/// The largest value of a row, NaN if it has one.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Replaces a row by `e^(scale · (x − largest))` and returns the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    let top = largest(row);
    let mut sum = [0f32; 8];
    let (chunks, rest) = row.as_chunks_mut::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            chunk[lane] = exp(scale * (chunk[lane] - top));
            sum[lane] += chunk[lane];
        }
    }
    for value in rest {
        *value = exp(scale * (*value - top));
        sum[0] += *value;
    }
    sum.iter().sum()
}

/// Softmax of `scale · x` over the first `len(row)` values of every row; in causal attention row `i` sees
/// the first `i + 1`, and of these the last `window`.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn softmax(values: &mut [f32], width: usize, scale: f32, causal: Option<usize>) {
    for (index, row) in values.chunks_exact_mut(width).enumerate() {
        let (low, high) = match causal {
            Some(window) => ((index + 1).saturating_sub(window), index + 1),
            None => (0, width),
        };
        let inverse = 1.0 / exponentials(&mut row[low..high], scale);
        row[low..high].iter_mut().for_each(|value| *value *= inverse);
        row[..low].fill(0.0);
        row[high..].fill(0.0);
    }
}

/// The negative logarithm of a target's probability, and whether it is the most likely class. The row is
/// overwritten.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn cross_entropy(row: &mut [f32], target: usize) -> (f64, bool) {
    let top = largest(row);
    let at = row[target];
    let first = row.iter().position(|&value| value == top);
    if !row.iter().all(|value| value.is_finite()) {
        return (f64::NAN, false);
    }
    let sum = exponentials(row, 1.0);
    (f64::from(sum).ln() + f64::from(top) - f64::from(at), first == Some(target))
}

/// Turns pairs of a head's values by the angles of its row's position: `cos` and `sin` hold half a head a
/// position, and a pair is half a head apart.
pub(super) fn rotate(
    values: &mut [f32],
    width: usize,
    head: usize,
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
) {
    let half = head / 2;
    by_rows(values, width, |first, values| {
        for (row, &position) in values.chunks_exact_mut(width).zip(&positions[first..]) {
            let at = position as usize * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row.chunks_exact_mut(head) {
                let (a, b) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
}

/// The product of two rows.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        (0..16).for_each(|lane| lanes[lane] += a[lane] * b[lane]);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The mean of rows as long as `out`, of length √width.
pub(super) fn pool(values: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for row in values.chunks_exact(out.len()) {
        out.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
    }
    let length = dot(out, out).sqrt();
    let scale = (out.len() as f32).sqrt() / length.max(f32::MIN_POSITIVE);
    out.iter_mut().for_each(|mean| *mean *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_error_function_are_those_of_a_library() {
        for step in -8000..8000 {
            let x = step as f32 / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 4e-7, "{x}: {ours} {exact}");
        }
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY).is_finite());
        // Values of Abramowitz and Stegun's table 7.1.
        for (x, exact) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (9.0, 1.0)]
        {
            assert!((erf(x) - exact).abs() < 5e-7 && (erf(-x) + exact).abs() < 5e-7, "{x}");
        }
    }

    #[test]
    fn rows_are_normalized() {
        let mut rows: Vec<f32> = (0..22).map(|i| (i * i % 13) as f32).collect();
        let (weight, bias) = (vec![1.0; 11], vec![0.0; 11]);
        let mut rms = vec![0.0; 22];
        rms_norm(&rows, &weight, 0.0, &mut rms);
        layer_norm(&mut rows, &weight, &bias, 0.0);
        for (row, rms) in rows.chunks(11).zip(rms.chunks(11)) {
            let squares = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>() / 11.0;
            assert!(row.iter().sum::<f32>().abs() < 1e-5);
            assert!((squares(row) - 1.0).abs() < 1e-5 && (squares(rms) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn softmax_of_causal_rows_sees_no_later_one() {
        let mut scores: Vec<f32> = (0..16).map(|i| (i % 5) as f32).collect();
        softmax(&mut scores, 4, 0.5, Some(2));
        for (index, row) in scores.chunks(4).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(row[index + 1..].iter().all(|&value| value == 0.0));
            assert_eq!(row.iter().filter(|&&value| value > 0.0).count(), (index + 1).min(2));
        }
    }

    #[test]
    fn cross_entropy_is_that_of_its_definition() {
        let row = [0.5f32, -1.0, 2.0];
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        let (loss, right) = cross_entropy(&mut row.clone(), 2);
        assert!((loss - (sum.ln() - 2.0)).abs() < 1e-6 && right);
        assert!(!cross_entropy(&mut row.clone(), 0).1);
        assert!(cross_entropy(&mut [f32::NAN, 0.0], 1).0.is_nan());
    }
}
