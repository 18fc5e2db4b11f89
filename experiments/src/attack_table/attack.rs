//! An attack as it is named on the command line.

use std::str::FromStr;

use rumormill::fault::{Fault, FaultKind};

/// Factors that a search tries: σ of alie and parts of the mean of foe.
const ALIE_FACTORS: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];
const FOE_FACTORS: [f64; 5] = [0.1, 0.5, 1.0, 2.0, 4.0];

/// What faulty nodes do, in one way or in the worst of several.
#[derive(Clone, Debug)]
pub(super) struct Attack {
    /// As written.
    pub(super) name: String,
    faults: Vec<Fault>,
}

impl Attack {
    /// What is tried; `None` where there are no faulty nodes.
    pub(super) fn faults(attack: Option<&Attack>) -> Vec<Option<Fault>> {
        attack.map_or(vec![None], |attack| attack.faults.iter().copied().map(Some).collect())
    }
}

impl FromStr for Attack {
    type Err = String;

    fn from_str(text: &str) -> Result<Attack, String> {
        let name = text.to_owned();
        let Some(kind) = text.strip_suffix(":search") else {
            let fault =
                text.parse().map_err(|error: rumormill::fault::FaultError| error.to_string())?;
            return Ok(Attack { name, faults: vec![fault] });
        };
        let kind: FaultKind =
            kind.parse().map_err(|error: rumormill::fault::UnknownFault| error.to_string())?;
        let factors = match kind {
            FaultKind::Alie => ALIE_FACTORS,
            FaultKind::Foe => FOE_FACTORS,
            _ => return Err(format!("{kind} has no factor to search for; alie and foe have")),
        };
        let fault = |factor| Fault { kind, factor: Some(factor) };
        Ok(Attack { name, faults: factors.map(fault).to_vec() })
    }
}
