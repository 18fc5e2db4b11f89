//! Lies about values: what a faulty node tells in place of what it measured.
//!
//! With μ and σ the mean and the unbiased standard deviation of what the honest would measure for
//! the same direction (or coordinate), and z or k the factor:
//!
//! ```text
//! sign flip   −own                    ALIE   μ − sign(μ) z σ
//! scaled      −μ (n − f)/f            FOE    −k μ
//! drift       own (1 − 2 ramp)        ramp from 0 at the part k of the run to 1 at 2k
//! sleeper     −own in every f-th turn of 16 rounds, else own
//! ```
//!
//! Faulty nodes know all honest values and collude by telling alike.

use super::{Fault, FaultKind};
use crate::sample::KeyedRng;

/// How a node lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lie {
    /// In which way.
    pub kind: FaultKind,
    /// How strongly.
    factor: f64,
    /// Its place among the faulty: whose turn it is.
    place: usize,
}

/// Honest nodes whose values the faulty look at; all of them would make a probe of a large network
/// as dear as a round.
pub const CROWD_MAX: usize = 32;

/// Rounds of a sleeper's turn. A guess: about the window of the selection rules.
const TURN_ROUNDS: u64 = 16;

/// Values that a free rider measures before it goes on with these. A guess.
const EARLIER_MAX: usize = 64;

/// No byte is larger than that of the usual largest value times this, whatever the scale of the
/// height.
const BEYOND_SCALE: f64 = 1e6;

/// What the honest would measure at one direction or coordinate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Crowd {
    mean: f64,
    deviation: f64,
    rms: f64,
    first: f64,
    /// Faulty nodes.
    faulty: usize,
    /// Honest nodes for each faulty one.
    honest_per_faulty: f64,
}

impl Crowd {
    /// Of the values of some of `honest` nodes, beside `faulty` ones; without values, all zero.
    pub fn new(values: impl Iterator<Item = f64> + Clone, honest: usize, faulty: usize) -> Crowd {
        let count = values.clone().count().max(1) as f64;
        let mean = values.clone().sum::<f64>() / count;
        let squares = values.clone().map(|value| value * value).sum::<f64>();
        let spread = values.clone().map(|value| (value - mean).powi(2)).sum::<f64>();
        Crowd {
            mean,
            deviation: (spread / (count - 1.0).max(1.0)).sqrt(),
            rms: (squares / count).sqrt(),
            first: values.clone().next().unwrap_or(0.0),
            faulty,
            honest_per_faulty: honest as f64 / faulty.max(1) as f64,
        }
    }
}

/// When something is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// The round, or the whole units of a vector algorithm's time.
    pub round: u64,
    /// Rounds of the run; 0 where that is not known.
    pub rounds: u64,
}

impl Moment {
    fn part(self) -> f64 {
        self.round as f64 / self.rounds.max(1) as f64
    }
}

impl Lie {
    /// A lie of a kind; `factor` is its usual strength when `None`: σ of alie (1.5), part of the mean
    /// of foe (0.5), multiple of the usual size of largest-opposing (100 in vectors; in bytes always
    /// the largest), part of the run after which drift begins (0.25). Kinds that break the protocol
    /// tell the truth.
    pub fn new(kind: FaultKind, factor: Option<f64>) -> Lie {
        let usual = match kind {
            FaultKind::Alie => 1.5,
            FaultKind::Foe => 0.5,
            FaultKind::LargestOpposing => 100.0,
            FaultKind::Drift => 0.25,
            _ => 1.0,
        };
        Lie { kind, factor: factor.unwrap_or(usual), place: 0 }
    }

    /// The lie of the node at a place among the faulty.
    pub fn of(fault: Fault, place: usize) -> Lie {
        Lie { place, ..Lie::new(fault.kind, fault.factor) }
    }

    /// Whether it takes the values of the honest.
    pub fn needs_crowd(self) -> bool {
        use FaultKind::*;
        matches!(self.kind, ScaledSignFlip | Random | LargestOpposing | Foe | Alie | Mimic)
    }

    /// What is told in place of `own` (for [`FaultKind::LabelFlip`] already measured on flipped
    /// labels, for [`FaultKind::Stale`] an earlier one).
    pub fn tell(self, own: f64, crowd: &Crowd, moment: Moment, rng: &mut KeyedRng) -> f64 {
        match self.kind {
            FaultKind::SignFlip => -own,
            FaultKind::Zero | FaultKind::Silent => 0.0,
            FaultKind::Random => crowd.rms * normal(rng),
            FaultKind::ScaledSignFlip => -crowd.mean * crowd.honest_per_faulty,
            FaultKind::LargestOpposing => -crowd.mean.signum() * self.factor * crowd.rms,
            FaultKind::Alie => crowd.mean - crowd.mean.signum() * self.factor * crowd.deviation,
            FaultKind::Foe => -self.factor * crowd.mean,
            FaultKind::Mimic => crowd.first,
            FaultKind::Drift => {
                let ramp = (moment.part() - self.factor) / self.factor.max(f64::MIN_POSITIVE);
                own * (1.0 - 2.0 * ramp.clamp(0.0, 1.0))
            }
            FaultKind::Sleeper => {
                // Alone it sleeps every other turn.
                let turns = crowd.faulty.max(2) as u64;
                let awake = moment.round / TURN_ROUNDS % turns == self.place as u64 % turns;
                if awake { -own } else { own }
            }
            _ => own,
        }
    }
}

/// A liar among nodes that tell one value at a time: its lie, and what that remembers.
#[derive(Clone, Debug)]
pub struct Liar {
    /// The lie.
    pub lie: Lie,
    /// The first values, for [`FaultKind::Stale`]. At most [`EARLIER_MAX`].
    earlier: Vec<f64>,
    /// Which of them is told next.
    next: usize,
    rng: KeyedRng,
}

impl Liar {
    /// A liar that has told nothing yet.
    pub fn new(lie: Lie, rng: KeyedRng) -> Liar {
        Liar { lie, earlier: Vec::new(), next: 0, rng }
    }

    /// Two losses whose projected gradient is what shall be told; see [`Lie::tell`].
    pub fn losses(
        &mut self,
        own: f64,
        crowd: &Crowd,
        moment: Moment,
        epsilon_log2: i32,
    ) -> (f32, f32) {
        let own = if self.lie.kind == FaultKind::Stale { self.replay(own) } else { own };
        let told = self.lie.tell(own, crowd, moment, &mut self.rng);
        let told = match self.lie.kind {
            FaultKind::LargestOpposing => told * BEYOND_SCALE,
            _ => told,
        };
        let half = (told * 2f64.powi(epsilon_log2)) as f32;
        (half, -half)
    }

    fn replay(&mut self, own: f64) -> f64 {
        if self.earlier.len() < EARLIER_MAX {
            self.earlier.push(own);
            return own;
        }
        let value = self.earlier[self.next];
        self.next = (self.next + 1) % EARLIER_MAX;
        value
    }
}

/// A standard normal number (Box–Muller; the second of the pair is dropped).
fn normal(rng: &mut KeyedRng) -> f64 {
    let radius = (-2.0 * rng.unit_f64().ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.unit_f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spsa::projected_gradient;

    fn rng() -> KeyedRng {
        KeyedRng::from_seed("rumormill v1 test", 1, 0)
    }

    #[test]
    fn every_lie_by_hand() {
        let honest = [1.0, 3.0];
        let crowd = Crowd::new(honest.into_iter(), 2, 1);
        let mut rng = rng();
        let mut tell =
            |kind, factor| Lie::new(kind, factor).tell(5.0, &crowd, Moment::default(), &mut rng);
        assert_eq!(tell(FaultKind::SignFlip, None), -5.0);
        assert_eq!(tell(FaultKind::Zero, None), 0.0);
        assert_eq!(tell(FaultKind::ScaledSignFlip, None), -4.0);
        assert_eq!(tell(FaultKind::LabelFlip, None), 5.0);
        assert_eq!(tell(FaultKind::LargestOpposing, Some(2.0)), -2.0 * 5f64.sqrt());
        assert_eq!(tell(FaultKind::Alie, Some(1.0)), 2.0 - 2f64.sqrt());
        assert_eq!(tell(FaultKind::Foe, None), -1.0);
        assert_eq!(tell(FaultKind::Mimic, None), 1.0);
        assert!(tell(FaultKind::Random, None).abs() < 20.0);
        assert_eq!(tell(FaultKind::Equivocation, None), 5.0);
    }

    #[test]
    fn a_drifting_node_is_honest_for_a_quarter_and_flips_signs_from_the_half_on() {
        let tell = |round| {
            let moment = Moment { round, rounds: 80 };
            Lie::new(FaultKind::Drift, None).tell(4.0, &Crowd::default(), moment, &mut rng())
        };
        assert_eq!([0, 20, 25, 30, 35, 40, 79].map(tell), [4.0, 4.0, 2.0, 0.0, -2.0, -4.0, -4.0]);
    }

    #[test]
    fn sleepers_take_turns() {
        let crowd = Crowd::new(std::iter::empty(), 4, 3);
        let liars = |round| {
            let moment = Moment { round, rounds: 100 };
            let fault = Fault { kind: FaultKind::Sleeper, factor: None };
            let tell = |place| Lie::of(fault, place).tell(1.0, &crowd, moment, &mut rng());
            [0, 1, 2].map(tell)
        };
        assert_eq!(liars(0), [-1.0, 1.0, 1.0]);
        assert_eq!(liars(16), [1.0, -1.0, 1.0]);
        assert_eq!(liars(47), [1.0, 1.0, -1.0]);
        assert_eq!(liars(48), [-1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_free_rider_measures_some_values_and_then_repeats_them() {
        let mut liar = Liar::new(Lie::new(FaultKind::Stale, None), rng());
        let mut told = |own: f64| {
            let (plus, minus) = liar.losses(own, &Crowd::default(), Moment::default(), -8);
            projected_gradient(plus, minus, -8)
        };
        let first: Vec<f64> = (0..EARLIER_MAX).map(|own| told(own as f64)).collect();
        assert_eq!(first[5], 5.0);
        let later: Vec<f64> = (0..2 * EARLIER_MAX).map(|_| told(-1.0)).collect();
        assert_eq!(later, [&first[..], &first].concat());
    }

    #[test]
    fn losses_say_what_is_told() {
        let mut liar = Liar::new(Lie::new(FaultKind::SignFlip, None), rng());
        let (plus, minus) = liar.losses(0.375, &Crowd::default(), Moment::default(), -8);
        assert_eq!(projected_gradient(plus, minus, -8), -0.375);
    }
}
