//! Poisson clocks: independent exponential waiting times for gradient and edge events.
//!
//! DADAO (Nabli and Oyallon 2023, section 3) runs gradient events and edge events on separate
//! Poisson processes. Here each clock has its own ChaCha8 stream, so that adding a clock does not
//! change the others. The two processes are independent: computing never waits for communicating.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::time::Time;

/// A Poisson process with a rate that may change between events.
#[derive(Clone, Debug)]
pub struct PoissonClock {
    rng: ChaCha8Rng,
}

impl PoissonClock {
    /// A clock whose waiting times are determined by `seed` and `stream`.
    pub fn new(seed: &[u8; 32], stream: u64) -> PoissonClock {
        let mut rng = ChaCha8Rng::from_seed(*seed);
        rng.set_stream(stream);
        PoissonClock { rng }
    }

    /// The waiting time to the next event at `rate_per_s`: exponential with mean `1/rate`. A rate
    /// that is not positive never fires (the largest time).
    pub fn wait(&mut self, rate_per_s: f64) -> Time {
        if rate_per_s.is_nan() || rate_per_s <= 0.0 {
            return Time(u64::MAX);
        }
        // 53 random bits in (0, 1]: the logarithm is finite.
        let uniform = ((self.rng.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        Time::from_secs_f64(-uniform.ln() / rate_per_s)
    }

    /// A uniform number in `0..bound`, for jitter and choices that are no part of the protocol's
    /// shared randomness.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.rng.next_u64() % bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_have_the_mean_and_spread_of_an_exponential() {
        let mut clock = PoissonClock::new(&[3; 32], 1);
        let waits: Vec<f64> = (0..20_000).map(|_| clock.wait(4.0).as_secs_f64()).collect();
        let mean = waits.iter().sum::<f64>() / waits.len() as f64;
        let variance = waits.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / waits.len() as f64;
        // Standard error of the mean: 0.25/√20000 ≈ 0.0018; five of them.
        assert!((mean - 0.25).abs() < 0.009, "mean {mean}");
        assert!((variance.sqrt() - 0.25).abs() < 0.02, "deviation {}", variance.sqrt());
    }

    #[test]
    fn a_clock_without_a_rate_never_fires() {
        let mut clock = PoissonClock::new(&[3; 32], 1);
        assert_eq!(clock.wait(0.0), Time(u64::MAX));
        assert_eq!(clock.wait(f64::NAN), Time(u64::MAX));
    }
}
