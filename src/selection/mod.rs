//! Selection: which origins' records count, and how much, when a round is closed.
//!
//! MoNNA (Farhadkhani et al. 2023) averages each node's half step with its nearest neighbors'.
//! With one common model the distance between two half steps is the step size times the distance
//! between the two momenta, and along shared directions a momentum is a short vector of decoded
//! bytes, an origin's [`Momenta`] row. So nearest neighbors are found without touching the model,
//! for a few bytes each, and the outcome is the same at every node (CyBeR-0 runs robust rules on
//! shared perturbation scalars with a server; FedKSeed, DeComFL and FeedSign share the idea of
//! scalars along common seeds).
//!
//! Rules stand side by side behind [`Selection`]: an origin-level part that gives weights and a
//! slot-level part that combines values. Both are deterministic: `f64`, fixed order, no library
//! function beyond `sqrt`. They weigh for one round; what lasts is the [`Standing`] of
//! certified rounds, which fades.
//!
//! | rule | weighs origins by | combines a slot by | source |
//! |---|---|---|---|
//! | `mean` | presence | the mean | |
//! | `median` | presence | the median | Yin et al. 2018 |
//! | `trimmed-mean` | presence | the mean without the largest and smallest | Yin et al. 2018 |
//! | `nna`, `nnm` | how often among the nearest | the weighted mean | Farhadkhani et al. 2023, Allouah et al. 2023 |
//! | `krum` | being one of the `n − f` in the densest places | the mean | Blanchard et al. 2017 (multi-Krum) |
//! | `geometric-median` | one over the distance from it | the weighted mean | Pillutla et al. 2022 |
//! | `trust` | size and agreement with the others | the mean of clipped values | |
//! | `stack` | the same, then how often among the nearest | the weighted mean of clipped values | |

mod gate;
mod geometric;
mod krum;
mod median;
mod nearest;
mod stack;
mod standing;
mod sums;
mod trimmed;
mod trust;

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::id::Origin;

pub use standing::Standing;
pub use sums::Measured;

/// The selection rules, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Every origin counts alike.
    Mean,
    /// The median of each slot's values.
    Median,
    /// Nearest-neighbor averaging: the `n − 2f` nearest of each origin (MoNNA's count).
    Nna,
    /// Nearest-neighbor mixing: the `n − f` nearest of each origin (Allouah et al. 2023).
    Nnm,
    /// The mean of each slot's values without the largest and smallest.
    TrimmedMean,
    /// Multi-Krum: the `n − f` origins with the nearest neighborhoods.
    Krum,
    /// Origins weighted by their closeness to the point of least summed distance.
    GeometricMedian,
    /// Magnitude gate and leave-one-out correlation.
    Trust,
    /// Gate, trust, then nearest-neighbor mixing among the rest.
    Stack,
}

/// All rules, in the order in which they are listed to users.
pub const RULES: [Rule; 9] = [
    Rule::Mean,
    Rule::Median,
    Rule::TrimmedMean,
    Rule::Krum,
    Rule::Nna,
    Rule::Nnm,
    Rule::GeometricMedian,
    Rule::Trust,
    Rule::Stack,
];

impl Rule {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Mean => "mean",
            Rule::Median => "median",
            Rule::Nna => "nna",
            Rule::Nnm => "nnm",
            Rule::TrimmedMean => "trimmed-mean",
            Rule::Krum => "krum",
            Rule::GeometricMedian => "geometric-median",
            Rule::Trust => "trust",
            Rule::Stack => "stack",
        }
    }

    /// The rule itself.
    pub fn selection(self) -> &'static dyn Selection {
        match self {
            Rule::Mean => &Mean,
            Rule::Median => &median::Median,
            Rule::Nna => &nearest::Nearest { dropped_per_faulty: 2 },
            Rule::Nnm => &nearest::Nearest { dropped_per_faulty: 1 },
            Rule::TrimmedMean => &trimmed::TrimmedMean,
            Rule::Krum => &krum::Krum,
            Rule::GeometricMedian => &geometric::GeometricMedian,
            Rule::Trust => &trust::Trust,
            Rule::Stack => &stack::Stack,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown selection rule '{0}' (known: {known})", known = RULES.map(Rule::name).join(", "))]
pub struct UnknownRule(pub String);

impl FromStr for Rule {
    type Err = UnknownRule;
    fn from_str(name: &str) -> Result<Rule, UnknownRule> {
        RULES.into_iter().find(|rule| rule.name() == name).ok_or_else(|| UnknownRule(name.into()))
    }
}

/// The last `W` rounds of records: every origin's momentum in coefficient space, before the
/// factors `β^age`.
pub struct Momenta<'a> {
    /// Rounds from the oldest to the newest, the one that is being closed.
    pub rounds: &'a [&'a Measured],
    /// β, the factor per round of age.
    pub beta: f64,
    /// Origins in the roster.
    pub origins: usize,
    /// Those whose records count for nothing, whatever the rule: no rule looks at them.
    pub excluded: &'a [Origin],
    /// How much every origin agreed with the others in rounds that are certified ([`Standing::values`]); empty while
    /// there is nothing to remember.
    pub standing: &'a [Option<f64>],
}

/// Which origins count in the round that is being closed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The weight of every origin, by roster position; 0 for those that are excluded, or without any record
    /// in the window.
    pub weights: Vec<f64>,
    /// How much every origin agrees with the others along the same directions, from −1 to 1: what
    /// [`Standing`] remembers, and people look at. Empty when the rule compares nobody.
    pub trust: Vec<f64>,
}

/// What a slot's values are combined with beside the weights.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Origins that may be lying.
    pub faulty: usize,
    /// Larger values count as this.
    pub clip: f64,
}

/// A rule that turns records into weights and values.
pub trait Selection: Sync {
    /// Weighs the origins for the round that is being closed; `faulty` of them may be lying.
    fn choose(&self, momenta: &Momenta<'_>, faulty: usize) -> Choice;

    /// Whether the weights depend on earlier rounds than the one that is closed.
    fn uses_window(&self) -> bool {
        false
    }

    /// No value counts for more than this many typical magnitudes of its round
    /// ([`Measured::typical`]).
    fn clip(&self) -> Option<f64> {
        None
    }

    /// The value of a slot from its origins' values: the weighted mean, unless the rule says
    /// otherwise. `None` when no origin with a positive weight has a value.
    fn combine(&self, values: &[(Origin, f64)], weights: &[f64], limits: Limits) -> Option<f64> {
        let mut sum = 0.0;
        let mut weight = 0.0;
        for &(origin, value) in values {
            let share = weights[origin.index()];
            sum += share * value.clamp(-limits.clip, limits.clip);
            weight += share;
        }
        (weight > 0.0).then(|| sum / weight)
    }
}

/// Every origin counts alike.
struct Mean;

impl Selection for Mean {
    fn choose(&self, momenta: &Momenta<'_>, _faulty: usize) -> Choice {
        everybody(momenta)
    }
}

/// All that have a record in the window, alike.
fn everybody(momenta: &Momenta<'_>) -> Choice {
    let mut weights = vec![0.0; momenta.origins];
    for values in momenta.rounds.iter().flat_map(|round| &round.values().slots).flatten() {
        weights[values.0.index()] = 1.0;
    }
    momenta.excluded.iter().for_each(|origin| weights[origin.index()] = 0.0);
    Choice { weights, trust: Vec::new() }
}

/// A slot's values that count, from the smallest up.
fn sorted(values: &[(Origin, f64)], weights: &[f64]) -> Vec<f64> {
    let counted = values.iter().filter(|(origin, _)| weights[origin.index()] > 0.0);
    let mut sorted: Vec<f64> = counted.map(|&(_, value)| value).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The middle one of values, of two the higher, and three robust deviations from it (`1.4826 MAD` is one of normal
/// values): what is farther out is odd. `None` of none.
fn middle_and_spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = *values.get(values.len() / 2)?;
    values.iter_mut().for_each(|value| *value = (*value - middle).abs());
    values.sort_by(f64::total_cmp);
    Some((middle, 3.0 * 1.4826 * values[values.len() / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::round::RoundValues;
    use crate::sample::KeyedRng;

    pub(super) const LIMITS: Limits = Limits { faulty: 1, clip: f64::INFINITY };

    /// One round, one slot an entry: `values[slot][origin]`, `NaN` for none.
    pub(super) fn round(values: &[&[f64]]) -> Measured {
        let slots = values.iter().map(|slot| {
            let entries = slot.iter().enumerate();
            let entries = entries.filter(|(_, value)| !value.is_nan());
            entries.map(|(origin, &value)| (Origin(origin as u16), value)).collect()
        });
        RoundValues { slots: slots.collect() }.into()
    }

    pub(super) fn momenta<'a>(rounds: &'a [&'a Measured], origins: usize) -> Momenta<'a> {
        Momenta { rounds, beta: 0.9, origins, excluded: &[], standing: &[] }
    }

    /// What `count` origins would measure along 240 directions: a gradient of size 1 and noise of
    /// size `noise`, so the signal-to-noise ratio is `1/noise²`.
    pub(super) fn gradient(count: usize, noise: f64, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = KeyedRng::from_seed("rumormill v1 test", seed, 0);
        // Uniform of variance 1.
        let mut draw = move || f64::from(rng.symmetric(1.0)) * 3f64.sqrt();
        let slot = |_| {
            let signal = draw();
            (0..count).map(|_| signal + noise * draw()).collect()
        };
        (0..240).map(slot).collect()
    }

    /// The weight of the last `faulty` origins in a choice, as a share of all.
    pub(super) fn share_of_last(choice: &Choice, faulty: usize) -> f64 {
        let (_, last) = choice.weights.split_at(choice.weights.len() - faulty);
        last.iter().sum::<f64>() / choice.weights.iter().sum::<f64>()
    }

    #[test]
    fn mean_weighs_all_that_are_present_alike() {
        let round = round(&[&[1.0, 3.0, f64::NAN]]);
        let weights = Mean.choose(&momenta(&[&round], 3), 1).weights;
        assert_eq!(weights, [1.0, 1.0, 0.0]);
        let slot = &round.values().slots[0];
        assert_eq!(Mean.combine(slot, &weights, LIMITS), Some(2.0));
        assert_eq!(Mean.combine(slot, &weights, Limits { clip: 2.0, ..LIMITS }), Some(1.5));
        assert_eq!(Mean.combine(&[], &weights, LIMITS), None);
    }

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in RULES {
            assert_eq!(rule.name().parse(), Ok(rule));
        }
        let said = "krumm".parse::<Rule>().unwrap_err().to_string();
        assert!(RULES.iter().all(|rule| said.contains(rule.name())), "{said}");
    }

    #[test]
    fn the_numbers_of_rules_in_manifests_are_fixed() {
        let numbers = RULES.map(|rule| codec::encode(&rule)[0]);
        assert_eq!(numbers, [0, 1, 4, 5, 2, 3, 6, 7, 8]);
    }

    #[test]
    fn every_rule_gives_the_common_value_when_all_agree() {
        let round = round(&[&[2.0; 7], &[-1.0; 7]]);
        for rule in RULES {
            let selection = rule.selection();
            let weights = selection.choose(&momenta(&[&round], 7), 2).weights;
            let limits = Limits { faulty: 2, clip: selection.clip().unwrap_or(f64::INFINITY) };
            for (slot, expected) in round.values().slots.iter().zip([2.0, -1.0]) {
                assert_eq!(selection.combine(slot, &weights, limits), Some(expected), "{rule}");
            }
        }
    }

    #[test]
    fn every_rule_bears_a_round_in_which_all_abstained() {
        let round = round(&[&[f64::NAN; 7], &[f64::NAN; 7]]);
        for rule in RULES {
            let selection = rule.selection();
            let choice = selection.choose(&momenta(&[&round], 7), 2);
            assert_eq!(choice.weights, [0.0; 7], "{rule}");
            let limits = Limits { faulty: 2, clip: selection.clip().unwrap_or(f64::INFINITY) };
            assert_eq!(selection.combine(&[], &choice.weights, limits), None, "{rule}");
        }
    }

    #[test]
    fn every_rule_but_the_mean_bounds_what_two_huge_liars_move() {
        let mut values = gradient(9, 0.5, 1);
        let honest: Vec<f64> = values.iter().map(|slot| slot.iter().sum::<f64>() / 9.0).collect();
        values.iter_mut().for_each(|slot| slot.extend([-1e6 * slot[0].signum(); 2]));
        let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for rule in RULES {
            let selection = rule.selection();
            let weights = selection.choose(&momenta(&[&round], 11), 2).weights;
            let clip = selection.clip().map_or(f64::INFINITY, |clip| clip * round.typical());
            let limits = Limits { faulty: 2, clip };
            let slots = round.values().slots.iter().zip(&honest);
            let off = slots.map(|(slot, honest)| {
                (selection.combine(slot, &weights, limits).unwrap() - honest).abs()
            });
            let off = off.fold(0.0, f64::max);
            // NNA and the geometric median leave liars the weight that they give each other.
            let bound = match rule {
                Rule::Mean => f64::INFINITY,
                Rule::Nna | Rule::Nnm => 1e5,
                Rule::GeometricMedian => 10.0,
                _ => 1.0,
            };
            assert!(off < bound, "{rule}: {off}");
            assert!(rule != Rule::Mean || off > 1e5, "the attack is none");
        }
    }

    #[test]
    fn rules_that_compare_tell_how_much_origins_agree() {
        let mut values = gradient(7, 1.0, 2);
        values.iter_mut().for_each(|slot| slot.iter_mut().skip(5).for_each(|v| *v = -*v));
        let round = round(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for rule in RULES {
            let trust = rule.selection().choose(&momenta(&[&round], 7), 2).trust;
            assert_eq!(!trust.is_empty(), rule.selection().uses_window(), "{rule}");
            assert!(trust.iter().take(5).all(|&trust| trust > 0.2), "{rule}: {trust:?}");
            assert!(trust.iter().skip(5).all(|&trust| trust < -0.2), "{rule}: {trust:?}");
        }
    }

    #[test]
    fn middle_and_spread_by_hand() {
        let of = |values: &[f64]| middle_and_spread(values.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[2.0]), Some((2.0, 0.0)));
        // Deviations from 3: 0, 1, 2, 2, 97; the middle one is 2.
        assert_eq!(of(&[100.0, 1.0, 3.0, 5.0, 2.0]), Some((3.0, 3.0 * 1.4826 * 2.0)));
    }
}
