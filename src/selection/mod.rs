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
//! function beyond `sqrt`.

mod median;
mod nearest;

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::id::Origin;
use crate::round::RoundValues;

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
}

/// All rules, in the order in which they are listed to users.
pub const RULES: [Rule; 4] = [Rule::Mean, Rule::Median, Rule::Nna, Rule::Nnm];

impl Rule {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Mean => "mean",
            Rule::Median => "median",
            Rule::Nna => "nna",
            Rule::Nnm => "nnm",
        }
    }

    /// The rule itself.
    pub fn selection(self) -> &'static dyn Selection {
        match self {
            Rule::Mean => &Mean,
            Rule::Median => &median::Median,
            Rule::Nna => &nearest::Nearest { dropped_per_faulty: 2 },
            Rule::Nnm => &nearest::Nearest { dropped_per_faulty: 1 },
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
#[error("unknown selection rule '{0}' (known: mean, median, nna, nnm)")]
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
    pub rounds: &'a [&'a RoundValues],
    /// β, the factor per round of age.
    pub beta: f64,
    /// Origins in the roster.
    pub origins: usize,
}

/// A rule that turns records into weights and values.
pub trait Selection: Sync {
    /// The weight of every origin in the round that is being closed, by roster position; `faulty`
    /// origins may be lying. Origins without any record in the window get weight 0.
    fn weights(&self, momenta: &Momenta<'_>, faulty: usize) -> Vec<f64>;

    /// Whether the weights depend on earlier rounds than the one that is closed.
    fn uses_window(&self) -> bool {
        false
    }

    /// The value of a slot from its origins' values: the weighted mean, unless the rule says
    /// otherwise. `None` when no origin with a positive weight has a value.
    fn combine(&self, values: &[(Origin, f64)], weights: &[f64]) -> Option<f64> {
        let mut sum = 0.0;
        let mut weight = 0.0;
        for &(origin, value) in values {
            let share = weights[origin.index()];
            sum += share * value;
            weight += share;
        }
        (weight > 0.0).then(|| sum / weight)
    }
}

/// Every origin counts alike.
struct Mean;

impl Selection for Mean {
    fn weights(&self, momenta: &Momenta<'_>, _faulty: usize) -> Vec<f64> {
        present(momenta).iter().map(|&present| f64::from(u8::from(present))).collect()
    }
}

/// Which origins have a record in the window.
fn present(momenta: &Momenta<'_>) -> Vec<bool> {
    let mut present = vec![false; momenta.origins];
    for values in momenta.rounds.iter().flat_map(|round| &round.slots).flatten() {
        present[values.0.index()] = true;
    }
    present
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round, one slot an entry: `values[slot][origin]`, `NaN` for none.
    pub(super) fn round(values: &[&[f64]]) -> RoundValues {
        let slots = values.iter().map(|slot| {
            let entries = slot.iter().enumerate();
            let entries = entries.filter(|(_, value)| !value.is_nan());
            entries.map(|(origin, &value)| (Origin(origin as u16), value)).collect()
        });
        RoundValues { slots: slots.collect() }
    }

    #[test]
    fn mean_weighs_all_that_are_present_alike() {
        let round = round(&[&[1.0, 3.0, f64::NAN]]);
        let momenta = Momenta { rounds: &[&round], beta: 0.9, origins: 3 };
        let weights = Mean.weights(&momenta, 1);
        assert_eq!(weights, [1.0, 1.0, 0.0]);
        assert_eq!(Mean.combine(&round.slots[0], &weights), Some(2.0));
        assert_eq!(Mean.combine(&[], &weights), None);
    }

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in RULES {
            assert_eq!(rule.name().parse(), Ok(rule));
        }
        assert!("krumm".parse::<Rule>().unwrap_err().to_string().contains("nnm"));
    }

    #[test]
    fn every_rule_gives_the_common_value_when_all_agree() {
        let round = round(&[&[2.0; 7], &[-1.0; 7]]);
        for rule in RULES {
            let momenta = Momenta { rounds: &[&round], beta: 0.9, origins: 7 };
            let weights = rule.selection().weights(&momenta, 2);
            for (slot, expected) in round.slots.iter().zip([2.0, -1.0]) {
                assert_eq!(rule.selection().combine(slot, &weights), Some(expected), "{rule}");
            }
        }
    }
}
