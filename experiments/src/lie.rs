//! Lies about values: what a faulty node tells in place of what it measured.
//!
//! With μ and σ the mean and the unbiased standard deviation of what the honest would measure for
//! the same direction (or coordinate): sign flip −own, ALIE `μ − sign(μ) z σ`, FOE `−k μ`, scaled
//! sign flip `−μ (n − f)/f`. Faulty nodes know all honest values and collude by telling alike.

use rumormill::sample::KeyedRng;

use crate::sim::scenario::FaultKind;

/// How a node lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lie {
    /// In which way.
    pub kind: FaultKind,
    /// How strongly.
    factor: f64,
}

/// What the honest would measure at one direction or coordinate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crowd {
    mean: f64,
    deviation: f64,
    rms: f64,
    first: f64,
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
            honest_per_faulty: honest as f64 / faulty.max(1) as f64,
        }
    }
}

impl Lie {
    /// A lie of a kind; `factor` is its usual strength when `None`.
    pub fn new(kind: FaultKind, factor: Option<f64>) -> Lie {
        let usual = match kind {
            FaultKind::Alie => 1.5,
            FaultKind::Foe => 0.5,
            FaultKind::LargestOpposing => 100.0,
            _ => 1.0,
        };
        Lie { kind, factor: factor.unwrap_or(usual) }
    }

    /// Whether it takes the values of the honest.
    pub fn needs_crowd(self) -> bool {
        use FaultKind::*;
        !matches!(self.kind, SignFlip | Zero | LabelFlip | Silent)
    }

    /// What is told in place of `own` (for [`FaultKind::LabelFlip`] already measured on flipped
    /// labels).
    pub fn tell(self, own: f64, crowd: &Crowd, rng: &mut KeyedRng) -> f64 {
        match self.kind {
            FaultKind::SignFlip => -own,
            FaultKind::Zero | FaultKind::Silent => 0.0,
            FaultKind::Random => crowd.rms * normal(rng),
            FaultKind::ScaledSignFlip => -crowd.mean * crowd.honest_per_faulty,
            FaultKind::LabelFlip => own,
            FaultKind::LargestOpposing => -crowd.mean.signum() * self.factor * crowd.rms,
            FaultKind::Alie => crowd.mean - crowd.mean.signum() * self.factor * crowd.deviation,
            FaultKind::Foe => -self.factor * crowd.mean,
            FaultKind::Mimic => crowd.first,
        }
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

    #[test]
    fn every_lie_by_hand() {
        let honest = [1.0, 3.0];
        let crowd = Crowd::new(honest.into_iter(), 2, 1);
        let mut rng = KeyedRng::from_seed("rumormill v1 test", 1, 0);
        let mut tell = |kind, factor| Lie::new(kind, factor).tell(5.0, &crowd, &mut rng);
        assert_eq!(tell(FaultKind::SignFlip, None), -5.0);
        assert_eq!(tell(FaultKind::Zero, None), 0.0);
        assert_eq!(tell(FaultKind::ScaledSignFlip, None), -4.0);
        assert_eq!(tell(FaultKind::LabelFlip, None), 5.0);
        assert_eq!(tell(FaultKind::LargestOpposing, Some(2.0)), -2.0 * 5f64.sqrt());
        assert_eq!(tell(FaultKind::Alie, Some(1.0)), 2.0 - 2f64.sqrt());
        assert_eq!(tell(FaultKind::Foe, None), -1.0);
        assert_eq!(tell(FaultKind::Mimic, None), 1.0);
        assert!(tell(FaultKind::Random, None).abs() < 20.0);
    }
}
