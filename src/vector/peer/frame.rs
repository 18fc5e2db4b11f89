//! What vector algorithms say to each other.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

use super::{Algorithm, Settings};
use crate::codec::{self, DecodeError};

/// The longest frame, in bytes: two million numbers in `f64`.
pub const FRAME_LEN_MAX: usize = 16 << 20;

/// Bytes of a frame beside its vector, at most.
const FRAME_HEAD_LEN: usize = 32;

/// How the numbers of a vector cross a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Four bytes a number.
    F32,
    /// Eight bytes a number, exact.
    F64,
}

impl Precision {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::F64 => 8,
        }
    }
}

/// A name that is no precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision {0:?}; known are f32 and f64")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;
    fn from_str(name: &str) -> Result<Precision, UnknownPrecision> {
        match name {
            "f32" => Ok(Precision::F32),
            "f64" => Ok(Precision::F64),
            _ => Err(UnknownPrecision(name.into())),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::F64 => "f64",
        })
    }
}

/// Bytes that the longest frame of a run needs.
pub fn frame_len(settings: &Settings) -> usize {
    FRAME_HEAD_LEN
        + match settings.algorithm {
            Algorithm::OneByteDadao(_) => 1,
            _ => settings.start.len() * settings.precision.bytes(),
        }
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum Frame {
    /// The first frame on a link.
    Hello { version: u16, run: [u8; 32] },
    /// One end of an edge begins exchange `number` of that edge, counted from 1.
    Offer { number: u64, body: Body },
    /// The other end's part of it.
    Answer { number: u64, body: Body },
    /// A half step of a round.
    HalfStep { round: u64, body: Body },
    /// The sender has reached the end of the run.
    Done,
    /// The sender makes no more gradients and begins no more exchanges.
    Left,
}

/// What an exchange carries.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum Body {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Symbol(u8),
}

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
        codec::decode::<Frame, FRAME_LEN_MAX>(bytes)
    }
}

impl Body {
    /// A vector at the precision of the run; `vector` becomes what the other end will read.
    pub(super) fn vector(precision: Precision, vector: &mut [f64]) -> Body {
        match precision {
            Precision::F64 => Body::F64(vector.to_vec()),
            Precision::F32 => {
                let rounded: Vec<f32> = vector.iter().map(|&value| value as f32).collect();
                vector.iter_mut().zip(&rounded).for_each(|(v, &r)| *v = f64::from(r));
                Body::F32(rounded)
            }
        }
    }

    /// The vector, if it is one of that precision and length with finite numbers.
    pub(super) fn into_vector(self, precision: Precision, dim: usize) -> Result<Vec<f64>, String> {
        let vector = match (self, precision) {
            (Body::F64(vector), Precision::F64) => vector,
            (Body::F32(vector), Precision::F32) => vector.into_iter().map(f64::from).collect(),
            _ => return Err(format!("no vector of {precision} numbers")),
        };
        if vector.len() != dim {
            return Err(format!("a vector of {} numbers, the model has {dim}", vector.len()));
        }
        match vector.iter().all(|value| value.is_finite()) {
            true => Ok(vector),
            false => Err("a vector that is not finite".into()),
        }
    }
}
