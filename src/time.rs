//! Model time: what protocol and simulator count in. It never mixes with wall-clock durations;
//! the daemon converts at its border.

use std::ops::{Add, Sub};

/// A point of model time, or a span of it, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The start of a run.
    pub const ZERO: Time = Time(0);

    /// A time from seconds; negative and non-finite values become zero, large ones saturate.
    pub fn from_secs_f64(seconds: f64) -> Time {
        // A float-to-integer cast saturates and maps NaN to zero.
        Time((seconds * 1e9) as u64)
    }

    /// A time from whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Time {
        Time(milliseconds.saturating_mul(1_000_000))
    }

    /// The time in seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// `self − earlier`, or zero when `earlier` is later.
    pub fn since(self, earlier: Time) -> Time {
        Time(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Time {
    type Output = Time;
    fn add(self, other: Time) -> Time {
        Time(self.0.saturating_add(other.0))
    }
}

impl Sub for Time {
    type Output = Time;
    fn sub(self, other: Time) -> Time {
        self.since(other)
    }
}
