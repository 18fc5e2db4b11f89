//! LB8, the one-byte code of a scalar.
//!
//! Byte: bit 7 the sign, bits 0–6 the code `m`; `m = 0` is zero, 0x80 "no value". For `m ≥ 1` the
//! magnitude is `level(m) · 2^e` with `level(m) = R_j · 2^k`, `m − 96 = 8k + j`, `R_j` the `f32`
//! nearest to `2^(j/8)`. Encoding counts the midpoints between levels that are at most `|s| · 2^−e`.
//!
//! TODO: once the library has its own `lb8`, [`encode`] and [`decode`] call it.

/// "No value": what a scalar that is not finite becomes.
pub const ABSTAIN: u8 = 0x80;

/// The eight `f32` constants nearest to 2^(j/8), as bits.
pub const OCTAVE_ROOTS_BITS: [u32; 8] = [
    0x3f80_0000,
    0x3f8b_95c2,
    0x3f98_37f0,
    0x3fa5_fed7,
    0x3fb5_04f3,
    0x3fc5_672a,
    0x3fd7_44fd,
    0x3fea_c0c7,
];

/// Encodes a scalar at scale `2^exponent`.
pub fn encode(scalar: f64, exponent: i32) -> u8 {
    if !scalar.is_finite() {
        return ABSTAIN;
    }
    let magnitude = scale(scalar.abs(), -exponent);
    // The levels double every eight codes, so the count of midpoints is found by bisection.
    let (mut low, mut high) = (0u8, 127u8);
    while low < high {
        let middle = (low + high) / 2;
        if midpoint(middle) <= magnitude { low = middle + 1 } else { high = middle }
    }
    let sign = if scalar.is_sign_negative() && low > 0 { ABSTAIN } else { 0 };
    low | sign
}

/// The value of a byte at scale `2^exponent`; `None` for [`ABSTAIN`].
pub fn decode(byte: u8, exponent: i32) -> Option<f32> {
    if byte == ABSTAIN {
        return None;
    }
    let magnitude = scale(f64::from(level(byte & 0x7f)), exponent) as f32;
    Some(if byte & 0x80 == 0 { magnitude } else { -magnitude })
}

/// The magnitude of code `m` (0–127) at scale 1.
pub fn level(m: u8) -> f32 {
    if m == 0 {
        return 0.0;
    }
    let steps = i32::from(m) - 96;
    let root = f32::from_bits(OCTAVE_ROOTS_BITS[steps.rem_euclid(8) as usize]);
    scale(f64::from(root), steps.div_euclid(8)) as f32
}

/// The midpoint between codes `m` and `m + 1`, `m` at most 126.
pub fn midpoint(m: u8) -> f64 {
    (f64::from(level(m)) + f64::from(level(m + 1))) / 2.0
}

/// `value · 2^exponent`, rounded once; exponents beyond the range of `f64` saturate.
fn scale(value: f64, exponent: i32) -> f64 {
    let power = |e: i32| f64::from_bits(((1023 + e) as u64) << 52);
    let exponent = exponent.clamp(-2000, 2000);
    if exponent.abs() <= 1000 {
        return value * power(exponent);
    }
    let half = if exponent > 0 { 1000 } else { -1000 };
    value * power(half) * power(exponent - half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_decode_then_encode() {
        for exponent in [-20, 0, 13] {
            for byte in (0..=255u8).filter(|&byte| byte != ABSTAIN) {
                let value = decode(byte, exponent).unwrap();
                assert_eq!(encode(f64::from(value), exponent), byte, "{byte:02x} at {exponent}");
            }
        }
    }
}
