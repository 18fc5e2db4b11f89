//! SPSA: the scalar that two losses give (Spall 1992).
//!
//! ```text
//! s = (L(θ + ε·direction) − L(θ − ε·direction)) / 2ε
//! ```
//!
//! The direction's signs are their own inverses, so `s · direction` estimates the gradient. With
//! `ε` a power of two the division is exact and the only rounding is that of the difference.

use crate::lb8;

/// The smallest and largest binary logarithm of ε that a run may use.
///
/// Below, `θ ± ε` is `θ` for every parameter of ordinary size; above, it says nothing about the
/// neighborhood of `θ`. Either end is far outside what trains.
pub const EPSILON_LOG2_RANGE: std::ops::RangeInclusive<i32> = -30..=10;

/// The projected gradient of a probe with `ε = 2^epsilon_log2`, from the losses at both ends.
///
/// Loss per unit of parameter. Non-finite losses give a non-finite value, which
/// [`lb8::encode`] turns into an abstention.
///
/// # Panics
/// If `epsilon_log2` is outside `-1000..=1000`.
pub fn projected_gradient(loss_plus: f32, loss_minus: f32, epsilon_log2: i32) -> f64 {
    let inverse = lb8::pow2_f64(-(epsilon_log2 + 1));
    (f64::from(loss_plus) - f64::from(loss_minus)) * inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slope_of_a_line_is_exact() {
        // L = 3 + 5x at x = ±1/64.
        assert_eq!(projected_gradient(3.0 + 5.0 / 64.0, 3.0 - 5.0 / 64.0, -6), 5.0);
    }

    #[test]
    fn a_diverging_loss_abstains() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (plus, minus) in [(inf, 1.0), (1.0, inf), (inf, inf), (nan, 1.0), (1.0, nan)] {
            let value = projected_gradient(plus, minus, -7);
            assert_eq!(lb8::encode(value, 0), lb8::ABSTAIN, "{plus} {minus}");
        }
    }

    #[test]
    fn the_largest_losses_stay_finite() {
        let value = projected_gradient(f32::MAX, -f32::MAX, *EPSILON_LOG2_RANGE.start());
        assert_eq!(lb8::encode(value, 0), 0x7f);
    }
}
