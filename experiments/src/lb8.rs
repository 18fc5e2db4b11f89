//! LB8, the one-byte code of a scalar, and a scale that follows a stream of them.
//!
//! Byte: bit 7 the sign, bits 0–6 the code `m`; `m = 0` is zero, 0x80 "no value". For `m ≥ 1` the
//! magnitude is `level(m) · 2^e` with `level(m) = R_j · 2^k`, `m − 96 = 8k + j`, `R_j` the `f32`
//! nearest to `2^(j/8)`. Encoding counts the midpoints between levels that are at most `|s| · 2^−e`.
//!
//! TODO: once the library has its own `lb8`, [`encode`] and [`decode`] call it.

use rumormill::vector::onebyte::ScalarCodec;

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

/// LB8 whose exponent follows the stream, for two-party links: sender and receiver see the same
/// bytes and so keep the same exponent. After each byte a fixed-point mean of the log magnitude
/// moves an eighth of the way to it, and the exponent puts that mean at two octaves below the
/// scale's unit; a saturated byte lifts the exponent by four octaves at once, a zero lowers it by
/// one. (Gains are a guess that worked at once; many-party scales use a median instead.)
#[derive(Clone, Copy, Debug)]
pub struct Tracked {
    /// Mean of 8·log₂ of the magnitude, in 1/8 of these units (64ths of an octave).
    mean: i32,
}

impl Tracked {
    /// A stream whose first values are expected near `2^exponent`.
    pub fn new(exponent: i32) -> Tracked {
        Tracked { mean: exponent * 64 }
    }

    fn exponent(self) -> i32 {
        // Range of a byte: 12 octaves below the unit, 3.9 above; the mean sits inside with room.
        (self.mean + 32).div_euclid(64) + 2
    }
}

impl ScalarCodec for Tracked {
    type Symbol = u8;

    fn encode(&self, scalar: f64) -> u8 {
        encode(scalar, self.exponent())
    }

    fn decode(&mut self, byte: u8) -> Option<f64> {
        let exponent = self.exponent();
        let value = f64::from(decode(byte, exponent)?);
        match byte & 0x7f {
            0 => self.mean -= 64,
            127 => self.mean += 4 * 64,
            m => {
                let log = 8 * (8 * exponent + i32::from(m) - 96);
                self.mean += (log - self.mean) / 8;
            }
        }
        // 2^±100 spans what the f32 of a decoded value can hold.
        self.mean = self.mean.clamp(-100 * 64, 100 * 64);
        Some(value)
    }
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

    #[test]
    fn a_tracked_scale_follows_a_stream_down_thirty_octaves() {
        let mut codec = Tracked::new(10);
        let mut worst: f64 = 0.0;
        for k in 0..3000 {
            let value =
                1e3 * 2f64.powf(-f64::from(k) / 100.0) * if k % 2 == 0 { 1.0 } else { -0.3 };
            let decoded = codec.decode(codec.encode(value)).unwrap();
            worst = worst.max(((decoded - value) / value).abs());
        }
        assert!(worst < 0.0434, "{worst}");
    }

    #[test]
    fn a_tracked_scale_recovers_from_zeros_and_from_saturation() {
        let mut codec = Tracked::new(0);
        for _ in 0..500 {
            codec.decode(codec.encode(0.0));
        }
        let errors: Vec<f64> =
            (0..40).map(|_| (codec.decode(codec.encode(1e6)).unwrap() - 1e6).abs() / 1e6).collect();
        assert!(errors[0] > 0.9 && errors[39] < 0.0434, "{errors:?}");
    }
}
