//! LB8, the one-byte code of a projected gradient.
//!
//! Bit 7 is the sign, bits 0–6 a logarithmic code `m` with eight codes an octave, relative to a
//! scale `2^exponent` that a run agrees on per height:
//!
//! ```text
//! level(0) = 0,   level(m) = R[(m − 96) mod 8] · 2^⌊(m − 96)/8⌋,   R[k] = f32(2^(k/8))
//! value(byte)  = ± level(m) · 2^exponent
//! code(value)  = number of midpoints (level(m) + level(m+1))/2, m = 0…126, that are ≤ |value|/2^exponent
//! ```
//!
//! Ties go up, everything above the range saturates at `m = 127`, zero is byte 0 only, and byte
//! 128 abstains: a non-finite value or none at all. The levels are exact in `f32` and the midpoints
//! in `f64`, so every platform gives the same byte. Rounding is to the nearest level and not
//! stochastic: the error is below SPSA's own noise, and a byte stays something one can measure
//! again. One byte can claim at most 14.68 times the typical value, however large it is.

/// The byte that carries no value: the losses were not finite, or nothing was measured.
pub const ABSTAIN: u8 = 0x80;

/// The smallest exponent of a scale; smaller ones are taken as this one.
///
/// Within the range every decoded value is a normal `f32`, so decoding never rounds.
pub const EXPONENT_MIN: i32 = -100;

/// The largest exponent of a scale; larger ones are taken as this one.
pub const EXPONENT_MAX: i32 = 100;

/// `f32(2^(k/8))` for `k = 0…7`.
const OCTAVE: [f32; 8] = [
    1.0,
    f32::from_bits(0x3f8b95c2),
    f32::from_bits(0x3f9837f0),
    f32::from_bits(0x3fa5fed7),
    f32::from_bits(0x3fb504f3),
    f32::from_bits(0x3fc5672a),
    f32::from_bits(0x3fd744fd),
    f32::from_bits(0x3feac0c7),
];

/// The eight midpoints within `[1, 2)`: those above codes 96…103.
const OCTAVE_MIDPOINTS: [f64; 8] = {
    let mut midpoints = [0.0; 8];
    let mut k = 0;
    while k < 8 {
        midpoints[k] = midpoint(96 + k as u8);
        k += 1;
    }
    midpoints
};

/// The byte of a value at a scale of `2^exponent`.
///
/// Non-finite values abstain. The exponent is clamped to [`EXPONENT_MIN`]…[`EXPONENT_MAX`].
pub fn encode(value: f64, exponent: i32) -> u8 {
    if !value.is_finite() {
        return ABSTAIN;
    }
    let magnitude = value.abs() * pow2_f64(-clamp(exponent));
    if magnitude < const { midpoint(0) } {
        return 0;
    }
    // Midpoints repeat in every octave, so the binary exponent counts them by eights and the
    // mantissa's eight comparisons count the rest. An infinite product has the largest exponent.
    let bits = magnitude.to_bits();
    let octave = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let within: i32 =
        OCTAVE_MIDPOINTS.iter().map(|&midpoint| i32::from(midpoint <= mantissa)).sum();
    let code = (96 + 8 * octave + within).clamp(1, 127) as u8;
    if value < 0.0 { code | 0x80 } else { code }
}

/// The value of a byte at a scale of `2^exponent`, or `None` where it abstains.
///
/// The exponent is clamped to [`EXPONENT_MIN`]…[`EXPONENT_MAX`].
pub fn decode(byte: u8, exponent: i32) -> Option<f32> {
    if byte == ABSTAIN {
        return None;
    }
    // Exact: the level is a normal number and stays one.
    let magnitude = level(byte & 0x7f) * pow2_f64(clamp(exponent)) as f32;
    Some(if byte & 0x80 == 0 { magnitude } else { -magnitude })
}

/// The magnitude of code `code`, in units of the scale.
///
/// # Panics
/// If `code` is above 127.
pub const fn level(code: u8) -> f32 {
    assert!(code < 128, "a code has seven bits");
    if code == 0 {
        return 0.0;
    }
    let steps = code as i32 - 96;
    OCTAVE[steps.rem_euclid(8) as usize] * pow2_f64(steps.div_euclid(8)) as f32
}

/// The magnitude, in units of the scale, from which code `code + 1` is used instead of `code`.
///
/// # Panics
/// If `code` is above 126: nothing lies above the last code.
pub const fn midpoint(code: u8) -> f64 {
    assert!(code < 127, "no midpoint above the last code");
    // Exact: the sum of two neighboring levels needs 26 bits.
    (level(code) as f64 + level(code + 1) as f64) / 2.0
}

/// The exponent that fits typical values: `round(log2(median |value| / 0.6745))`.
///
/// 0.6745 is the median magnitude of a standard normal variable, so the scale estimates the
/// standard deviation and fewer than half of the values cannot move it far. Non-finite values are
/// left out; of an even number the lower middle one is the median. `None` when nothing is left or
/// the median is zero. The result is clamped to [`EXPONENT_MIN`]…[`EXPONENT_MAX`]. The order of
/// `values` changes. No logarithm is taken, so all platforms agree.
pub fn scale_exponent(values: &mut [f64]) -> Option<i32> {
    let mut kept = 0;
    for i in 0..values.len() {
        if values[i].is_finite() {
            values.swap(kept, i);
            kept += 1;
        }
    }
    let values = &mut values[..kept];
    let middle = kept.checked_sub(1)? / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, |a, b| a.abs().total_cmp(&b.abs()));
    let typical = median.abs() / 0.6745;
    if typical == 0.0 {
        return None;
    }
    // A subnormal has exponent −1023 here and is clamped, so its mantissa does not matter.
    let bits = typical.to_bits();
    let floor = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    // log2 of the mantissa rounds up from √2 on. The constant is the f64 just above √2, which no
    // f64 equals, so the comparison is exact.
    let up = i32::from(mantissa >= std::f64::consts::SQRT_2);
    Some(clamp(floor + up))
}

/// `2^exponent`, exactly.
///
/// # Panics
/// If the result is not a normal `f64`, that is outside `-1022..=1023`.
pub(crate) const fn pow2_f64(exponent: i32) -> f64 {
    assert!(exponent >= -1022 && exponent <= 1023, "2^exponent is a normal f64");
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

fn clamp(exponent: i32) -> i32 {
    exponent.clamp(EXPONENT_MIN, EXPONENT_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule as it is written, with all 127 midpoints.
    fn encode_by_counting(value: f64, exponent: i32) -> u8 {
        if !value.is_finite() {
            return ABSTAIN;
        }
        let magnitude = value.abs() * pow2_f64(-exponent);
        let code = (0..127).filter(|&code| midpoint(code) <= magnitude).count() as u8;
        if code > 0 && value < 0.0 { code | 0x80 } else { code }
    }

    #[test]
    fn shared_vectors_are_reproduced() {
        let Some(text) = crate::shared("vectors/lb8.json") else { return };
        let vectors: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let hex = |value: &serde_json::Value| {
            u64::from_str_radix(value.as_str().expect("a string of hex digits"), 16).unwrap()
        };
        for (code, bits) in vectors["levels_f32_bits"].as_array().unwrap().iter().enumerate() {
            assert_eq!(u64::from(level(code as u8).to_bits()), hex(bits), "level {code}");
        }
        for (code, bits) in vectors["midpoints_f64_bits"].as_array().unwrap().iter().enumerate() {
            assert_eq!(midpoint(code as u8).to_bits(), hex(bits), "midpoint {code}");
        }
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 50);
        for case in cases {
            let exponent = case["e"].as_i64().unwrap() as i32;
            let byte = encode(f64::from_bits(hex(&case["in_f64_bits"])), exponent);
            assert_eq!(u64::from(byte), case["byte"].as_u64().unwrap(), "{case}");
            match decode(byte, exponent) {
                Some(value) => assert_eq!(u64::from(value.to_bits()), hex(&case["out_f32_bits"])),
                None => assert!(case["out"].is_null(), "{case}"),
            }
        }
    }

    #[test]
    fn every_byte_but_abstain_survives_a_round_trip() {
        for exponent in [EXPONENT_MIN, -20, 0, 13, EXPONENT_MAX] {
            for byte in (0..=255).filter(|&byte| byte != ABSTAIN) {
                let value = decode(byte, exponent).unwrap();
                assert_eq!(encode(f64::from(value), exponent), byte);
            }
        }
    }

    #[test]
    fn ties_go_up_and_their_lower_neighbors_down() {
        for code in 0..127 {
            let tie = midpoint(code);
            assert_eq!(encode(tie, 0), code + 1);
            assert_eq!(encode(tie.next_down(), 0), code);
        }
    }

    #[test]
    fn nothing_finite_abstains() {
        for value in [0.0, -0.0, f64::MIN_POSITIVE, -5e-324, f64::MAX, f64::MIN] {
            for exponent in [i32::MIN, -100, 0, 100, i32::MAX] {
                assert_ne!(encode(value, exponent), ABSTAIN, "{value} {exponent}");
            }
        }
        assert_eq!(encode(f64::MIN, 0), 0xff);
        assert_eq!(encode(-1e-30, 0), 0);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(encode(value, 0), ABSTAIN);
        }
    }

    #[test]
    fn exponent_follows_the_median() {
        // 0.6745·2^k is at the center of exponent k.
        for exponent in [-100, -7, 0, 1, 30, 100] {
            let typical = 0.6745 * pow2_f64(exponent);
            assert_eq!(scale_exponent(&mut [typical, 1e9 * typical, 0.0]), Some(exponent));
        }
        assert_eq!(scale_exponent(&mut [-0.6745 * 1.415]), Some(1));
        assert_eq!(scale_exponent(&mut [-0.6745 * 1.414]), Some(0));
        assert_eq!(scale_exponent(&mut [f64::NAN, -0.6745, f64::INFINITY]), Some(0));
        assert_eq!(scale_exponent(&mut [5e-324]), Some(EXPONENT_MIN));
        assert_eq!(scale_exponent(&mut [f64::MAX]), Some(EXPONENT_MAX));
    }

    #[test]
    fn nothing_typical_gives_no_exponent() {
        assert_eq!(scale_exponent(&mut []), None);
        assert_eq!(scale_exponent(&mut [f64::NAN]), None);
        assert_eq!(scale_exponent(&mut [0.0, 0.0, 3.0]), None);
    }

    proptest! {
        #[test]
        fn fast_encoding_counts_the_midpoints(bits: u64, exponent in -100..=100, near in -20..8) {
            let anything = f64::from_bits(bits);
            let nearby = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52)
                * pow2_f64(near + exponent);
            for value in [anything, nearby, -nearby] {
                prop_assert_eq!(encode(value, exponent), encode_by_counting(value, exponent));
            }
        }

        #[test]
        fn exponent_agrees_with_the_logarithm(values in prop::collection::vec(-1e3..1e3, 1..40)) {
            let mut sorted: Vec<f64> = values.iter().map(|value: &f64| value.abs()).collect();
            sorted.sort_by(f64::total_cmp);
            let logarithm = (sorted[(sorted.len() - 1) / 2] / 0.6745).log2();
            // Within rounding of a half, either neighbor is right.
            prop_assume!((logarithm - logarithm.floor() - 0.5).abs() > 1e-9);
            prop_assume!(logarithm.is_finite());
            prop_assert_eq!(scale_exponent(&mut values.clone()), Some(logarithm.round() as i32));
        }
    }
}
