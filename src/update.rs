//! From the records of closed rounds to integer coefficients.
//!
//! The selected average of slot `k` is divided by the number of covered slots and by a robust rms
//! of the round, so that the step size needs little tuning, and multiplied with the schedule:
//!
//! ```text
//! c_k = −s(t) · clip(v_k / rms, ±8) / covered,   rms = median|v| / 0.6745
//! ```
//!
//! *Just One Byte* divides by the square root of the number of scalars instead, `θ −= lr·s·z/√N`, so
//! its step grows with the number of machines and with the scale of the loss; with the same seeds
//! for all of `c_k` the two differ by one factor a round, and the normalised one needs no learning
//! rate per task. It is used for private directions as well.
//!
//! A record is paid out over its age by the instalment law, each instalment with the weights of
//! the round in which it falls due. Coefficients are integers in units of 2⁻⁴⁰.

use std::fmt;
use std::str::FromStr;

use crate::id::{Origin, Round, Slot};
use crate::manifest::{Instalment, Manifest};
use crate::params::coefficient;
use crate::selection::{Choice, Limits, Measured, Momenta};

/// No value counts for more than this many robust deviations of its round.
const CLIP: f64 = 8.0;

/// A named instalment law: which share `c(Δ)` of a record's value is paid by its age `Δ`.
///
/// | symbol | name | |
/// |---|---|---|
/// | γ, γ̃ | `gamma`, `gamma_tilde` | the two step sizes of DADAO's accelerated pair (x, x̃) |
/// | e^(−2η) | `beta` | what is left of a record's momentum after a round |
///
/// ```text
/// c(Δ) = [ (γ + γ̃)/2 − (γ̃ − γ)/2 · β^Δ ] / [ (γ + γ̃)/2 ]
/// ```
///
/// DADAO's pair in closed form, as a share of the whole. With γ = 1 − β and γ̃ = 1 + β it is
/// `1 − β^(Δ+1)`, MoNNA's momentum; with γ = γ̃ everything is paid at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// Everything at once: plain SGD.
    Immediate,
    /// Heavy-ball momentum.
    Momentum {
        /// In [0, 1).
        beta: f64,
    },
    /// DADAO's accelerated pair.
    Dadao {
        /// γ, positive.
        gamma: f64,
        /// γ̃, at least γ.
        gamma_tilde: f64,
        /// e^(−2η), in [0, 1).
        beta: f64,
    },
}

/// Ages at which instalments are paid. Few, because each pays along all directions of a round.
pub const INSTALMENT_AGES: [u32; 4] = [0, 2, 6, 16];

impl Law {
    /// The share of a record's value that the law has paid by an age, in rounds.
    pub fn paid(self, age: u32) -> f64 {
        let (gamma, gamma_tilde, beta) = match self {
            Law::Immediate => return 1.0,
            Law::Momentum { beta } => (1.0 - beta, 1.0 + beta, beta),
            Law::Dadao { gamma, gamma_tilde, beta } => (gamma, gamma_tilde, beta),
        };
        // No library power: a manifest made elsewhere has the same table.
        let decayed = (0..age).fold(1.0, |power, _| power * beta);
        1.0 - (gamma_tilde - gamma) / (gamma_tilde + gamma) * decayed
    }

    /// The table for a manifest. After each payment so much is paid as the law has paid by the next
    /// age, and after the last one everything: no share is lost.
    pub fn instalments(self) -> Vec<Instalment> {
        let whole = 1 << 16;
        let mut before = 0;
        let mut table = Vec::new();
        for (at, &age) in INSTALMENT_AGES.iter().enumerate() {
            let paid = INSTALMENT_AGES.get(at + 1).map_or(1.0, |&next| self.paid(next));
            let after = (paid * f64::from(whole)).round_ties_even() as i32;
            if after != before || at == 0 {
                table.push(Instalment { age, share: after - before });
            }
            before = after;
        }
        table
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Law::Immediate => f.write_str("immediate"),
            Law::Momentum { beta } => write!(f, "momentum:{beta}"),
            Law::Dadao { gamma, gamma_tilde, beta } => {
                write!(f, "dadao:{gamma},{gamma_tilde},{beta}")
            }
        }
    }
}

/// A text that names no instalment law.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no instalment law (known: immediate, momentum:BETA, dadao:GAMMA,GAMMA_TILDE,BETA with \
     0 <= BETA < 1 and 0 < GAMMA <= GAMMA_TILDE)"
)]
pub struct UnknownLaw(pub String);

impl FromStr for Law {
    type Err = UnknownLaw;
    fn from_str(text: &str) -> Result<Law, UnknownLaw> {
        let unknown = || UnknownLaw(text.into());
        let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Result<Vec<f64>, _> =
            numbers.split(',').filter(|part| !part.is_empty()).map(str::parse).collect();
        let law = match (name, &numbers.map_err(|_| unknown())?[..]) {
            ("immediate", []) => Law::Immediate,
            ("momentum", &[beta]) => Law::Momentum { beta },
            ("dadao", &[gamma, gamma_tilde, beta]) => Law::Dadao { gamma, gamma_tilde, beta },
            _ => return Err(unknown()),
        };
        let fits = match law {
            Law::Immediate => true,
            Law::Momentum { beta } => (0.0..1.0).contains(&beta),
            Law::Dadao { gamma, gamma_tilde, beta } => {
                (0.0..1.0).contains(&beta)
                    && 0.0 < gamma
                    && gamma <= gamma_tilde
                    && gamma_tilde.is_finite()
            }
        };
        if fits { Ok(law) } else { Err(unknown()) }
    }
}

/// One coefficient of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coefficient {
    /// The round the direction belongs to.
    pub round: Round,
    /// The direction's slot.
    pub slot: Slot,
    /// In units of 2⁻⁴⁰.
    pub value: i64,
}

/// What closing a round pays out, and how its origins were weighted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundUpdate {
    /// Coefficients that are not zero, by round and slot.
    pub coefficients: Vec<Coefficient>,
    /// Weight of every origin, by roster position.
    pub weights: Vec<f64>,
    /// How much every origin agrees with the others, from −1 to 1; empty where the rule compares
    /// nobody. The digest chain does not cover it.
    pub trust: Vec<f64>,
}

impl RoundUpdate {
    /// The bytes that the digest chain covers.
    pub fn digest_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.coefficients.len() * 20);
        for entry in &self.coefficients {
            bytes.extend(entry.round.0.to_le_bytes());
            bytes.extend(entry.slot.0.to_le_bytes());
            bytes.extend(entry.value.to_le_bytes());
        }
        bytes
    }
}

/// The step size of a round: constant, then linear to zero.
pub fn step_size(manifest: &Manifest, round: Round) -> f64 {
    let step = f64::from(manifest.step_24) / f64::from(1 << 24);
    let total = manifest.rounds_total() as f64;
    let from = total * f64::from(manifest.decay_from_permille) / 1000.0;
    let at = round.0 as f64;
    if at < from { step } else { step * ((total - at) / (total - from)).clamp(0.0, 1.0) }
}

/// What closing `round` pays out. `window` are the rounds of the selection window from the oldest
/// to `round` itself; instalments of rounds that are not in it are not paid. `excluded` origins
/// count for nothing; of the others `faulty` may lie. `standing` is what is known
/// of them from rounds before ([`crate::selection::Standing`]).
pub fn round_update(
    manifest: &Manifest,
    round: Round,
    window: &[&Measured],
    origins: usize,
    faulty: usize,
    excluded: &[Origin],
    standing: &[Option<f64>],
) -> RoundUpdate {
    let selection = manifest.selection.selection();
    let beta = f64::from(manifest.beta_permille) / 1000.0;
    let first = window.len().saturating_sub(manifest.window as usize);
    let momenta = Momenta { rounds: &window[first..], beta, origins, excluded, standing };
    let Choice { weights, trust } = selection.choose(&momenta, faulty);
    let mut coefficients = Vec::new();
    for instalment in &manifest.instalments {
        let age = instalment.age as usize;
        let Some(at) = window.len().checked_sub(age + 1) else { break };
        let paid_round = Round(round.0 - age as u64);
        let paid = window[at];
        let clip = selection.clip().map_or(f64::INFINITY, |clip| clip * paid.typical());
        let limits = Limits { faulty, clip };
        let slots = paid.values().slots.iter();
        let averages: Vec<Option<f64>> =
            slots.map(|slot| selection.combine(slot, &weights, limits)).collect();
        let share = f64::from(instalment.share) / f64::from(1 << 16);
        let step = step_size(manifest, paid_round) * share;
        pay(step, paid_round, &averages, &mut coefficients);
    }
    RoundUpdate { coefficients, weights, trust }
}

/// [`round_update`] where every origin counts alike and is paid for at once, from the mean of
/// every slot and the weights.
pub fn mean_update(
    manifest: &Manifest,
    round: Round,
    means: &[Option<f64>],
    weights: Vec<f64>,
) -> RoundUpdate {
    let share = f64::from(manifest.instalments[0].share) / f64::from(1 << 16);
    let mut coefficients = Vec::new();
    pay(step_size(manifest, round) * share, round, means, &mut coefficients);
    RoundUpdate { coefficients, weights, trust: Vec::new() }
}

fn pay(step: f64, round: Round, averages: &[Option<f64>], coefficients: &mut Vec<Coefficient>) {
    let covered = averages.iter().flatten().count();
    let Some(rms) = robust_rms(averages) else { return };
    for (slot, average) in averages.iter().enumerate() {
        let Some(average) = average else { continue };
        let normalized = (average / rms).clamp(-CLIP, CLIP);
        let value = coefficient(-step * normalized / covered as f64);
        if value != 0 {
            coefficients.push(Coefficient { round, slot: Slot(slot as u32), value });
        }
    }
}

/// median|v| / 0.6745, the deviation of a normal distribution with that median; the mean magnitude
/// when the median is zero, and `None` when all are.
fn robust_rms(averages: &[Option<f64>]) -> Option<f64> {
    let mut magnitudes: Vec<f64> = averages.iter().flatten().map(|v| v.abs()).collect();
    if magnitudes.is_empty() {
        return None;
    }
    let sum: f64 = magnitudes.iter().sum();
    let mean = sum / magnitudes.len() as f64;
    let middle = magnitudes.len() / 2;
    let (_, median, _) = magnitudes.select_nth_unstable_by(middle, f64::total_cmp);
    let rms = if *median > 0.0 { *median / 0.6745 } else { mean };
    (rms > 0.0).then_some(rms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Instalment;
    use crate::round::RoundValues;

    fn values(slots: &[f64]) -> Measured {
        RoundValues { slots: slots.iter().map(|&value| vec![(Origin(0), value)]).collect() }.into()
    }

    #[test]
    fn coefficients_do_not_depend_on_the_scale_of_the_losses() {
        let manifest = Manifest::template();
        let one = values(&[1.0, -2.0, 0.5]);
        let other = values(&[1024.0, -2048.0, 512.0]);
        let update = |values| round_update(&manifest, Round(0), &[values], 1, 0, &[], &[]);
        assert_eq!(update(&one), update(&other));
        let coefficients = update(&one).coefficients;
        assert_eq!(coefficients[0].value, -coefficients[2].value * -2);
        assert!(coefficients[0].value < 0, "the step goes against the projected gradient");
    }

    #[test]
    fn excluded_origins_count_for_nothing_and_move_no_choice() {
        let manifest =
            Manifest { selection: crate::selection::Rule::Stack, ..Manifest::template() };
        let honest = |slot: u16| [1.0, -0.5, 0.25, 2.0][usize::from(slot % 4)];
        let round = |liars: u16| -> Measured {
            let slot = |slot: u16| {
                let entry = |origin: u16| {
                    let value = if origin < 4 { honest(slot) } else { -3.0 * honest(slot) };
                    (Origin(origin), value * (1.0 + 0.01 * f64::from(origin)))
                };
                (0..4 + liars).map(entry).collect()
            };
            RoundValues { slots: (0..40).map(slot).collect() }.into()
        };
        let of = |round: Measured, origins, excluded: &[Origin]| {
            round_update(&manifest, Round(0), &[&round], origins, 1, excluded, &[])
        };
        let without = of(round(0), 4, &[]);
        let with = of(round(5), 9, &[4, 5, 6, 7, 8].map(Origin));
        assert_eq!(with.weights[..4], without.weights[..]);
        assert_eq!(with.weights[4..], [0.0; 5]);
        let signs = |of: &RoundUpdate| -> Vec<i64> {
            of.coefficients.iter().map(|entry| entry.value.signum()).collect()
        };
        assert_eq!(signs(&with), signs(&without));
        assert_ne!(signs(&with), signs(&of(round(5), 9, &[])), "the liars are the majority");
    }

    #[test]
    fn by_hand() {
        let manifest = Manifest { step_24: 1 << 24, ..Manifest::template() };
        let update =
            round_update(&manifest, Round(0), &[&values(&[0.6745, 0.6745])], 1, 0, &[], &[]);
        // v/rms = 0.6745, two covered slots, step 1.
        let expected = (-0.6745_f64 / 2.0 * (1_u64 << 40) as f64).round_ties_even() as i64;
        assert_eq!(update.coefficients.len(), 2);
        assert!((update.coefficients[0].value - expected).abs() <= 1);
    }

    #[test]
    fn one_wild_value_moves_at_most_its_clip() {
        let manifest = Manifest { step_24: 1 << 24, ..Manifest::template() };
        let update =
            round_update(&manifest, Round(0), &[&values(&[1.0, 1.0, 1.0, 1e6])], 1, 0, &[], &[]);
        let wild = update.coefficients[3].value as f64 / (1_u64 << 40) as f64;
        assert_eq!(wild, -CLIP / 4.0);
    }

    #[test]
    fn instalments_add_up_to_the_whole() {
        let manifest = Manifest {
            instalments: vec![
                Instalment { age: 0, share: 1 << 15 },
                Instalment { age: 1, share: 1 << 15 },
            ],
            ..Manifest::template()
        };
        let whole = Manifest::template();
        let (a, b) = (values(&[1.0, 3.0]), values(&[-1.0, 2.0]));
        let first = round_update(&manifest, Round(0), &[&a], 1, 0, &[], &[]);
        let second = round_update(&manifest, Round(1), &[&a, &b], 1, 0, &[], &[]);
        let expected = round_update(&whole, Round(0), &[&a], 1, 0, &[], &[]);
        let paid: i64 = first
            .coefficients
            .iter()
            .chain(&second.coefficients)
            .filter(|c| c.round == Round(0) && c.slot == Slot(1))
            .map(|c| c.value)
            .sum();
        assert!((paid - expected.coefficients[1].value).abs() <= 1);
    }

    #[test]
    fn momentum_pays_what_a_heavy_ball_has_moved() {
        // m ← β·m + (1 − β)·g with one g: the sum of all m up to an age.
        for beta in [0.0, 0.5, 0.9, 0.99] {
            let law = Law::Momentum { beta };
            let (mut momentum, mut moved) = (1.0 - beta, 0.0);
            for age in 0..=16 {
                moved += momentum;
                momentum *= beta;
                assert!((law.paid(age) - moved).abs() < 1e-14, "{beta}, age {age}");
            }
        }
    }

    #[test]
    fn an_instalment_table_follows_its_law_and_pays_everything() {
        let dadao = Law::Dadao { gamma: 0.3, gamma_tilde: 1.2, beta: 0.8 };
        for law in [Law::Immediate, Law::Momentum { beta: 0.9 }, dadao] {
            let table = law.instalments();
            assert_eq!(table.iter().map(|entry| entry.share).sum::<i32>(), 1 << 16, "{law}");
            for next in [2, 6, 16] {
                let paid = table.iter().filter(|entry| entry.age < next).map(|entry| entry.share);
                let paid = f64::from(paid.sum::<i32>()) / f64::from(1 << 16);
                assert!((paid - law.paid(next)).abs() <= 1.0 / f64::from(1 << 17), "{law}");
            }
            let manifest = Manifest { instalments: table, ..Manifest::template() };
            assert_eq!(manifest.check(), Ok(()), "{law}");
            assert_eq!(law.to_string().parse(), Ok(law));
        }
        assert_eq!(Law::Immediate.instalments(), Manifest::template().instalments);
        // β³, β⁷ and β¹⁷ of .9 by a calculator: .729, .4782969, .16677182.
        let shares: Vec<i32> =
            Law::Momentum { beta: 0.9 }.instalments().iter().map(|entry| entry.share).collect();
        assert_eq!(shares, [17760, 16430, 20416, 10930]);
    }

    #[test]
    fn what_is_no_law_is_refused() {
        for text in ["momentum", "momentum:1", "dadao:1,2", "dadao:2,1,0.5", "dadao:0,1,0.5", "sgd"]
        {
            assert_eq!(text.parse::<Law>(), Err(UnknownLaw(text.into())));
        }
    }

    #[test]
    fn the_step_falls_to_zero_at_the_end() {
        let manifest = Manifest { rounds: 80, ..Manifest::template() };
        assert_eq!(step_size(&manifest, Round(10)), step_size(&manifest, Round(55)));
        assert!(step_size(&manifest, Round(79)) < step_size(&manifest, Round(60)));
        assert!(step_size(&manifest, Round(79)) > 0.0);
        assert_eq!(step_size(&manifest, Round(80)), 0.0);
    }
}
