//! The one place where structures become bytes and hostile bytes become structures.
//!
//! bincode 2.0.1, standard configuration (little-endian varints), with a limit on what a decoder
//! may allocate and a check that the whole input was consumed. Encodings are malleable (varints
//! have longer forms), so nothing is ever hashed or signed by re-encoding what a peer sent:
//! statements have their own digests.

use bincode::config::standard;
use bincode::enc::EncoderImpl;
use bincode::enc::write::SizeWriter;
use bincode::{Decode, Encode};

/// The longest frame of the exchange protocol, in bytes. A whole exchange of a roster of 1,000
/// with segments of a few hundred bytes fits; larger ones are split.
pub const FRAME_LEN_MAX: usize = 1 << 20;

/// The longest answer to a request, in bytes: several certified heights of a large roster.
pub const RESPONSE_LEN_MAX: usize = 8 << 20;

/// Why bytes could not be decoded. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not form the expected structure within the limit.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The structure ended before the bytes did.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
}

/// Encodes a structure.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, standard()).expect("encoding to memory cannot fail")
}

/// The length of a structure's encoding, without making it.
pub fn encoded_len<T: Encode>(value: &T) -> usize {
    let mut encoder = EncoderImpl::new(SizeWriter::default(), standard());
    value.encode(&mut encoder).expect("counting cannot fail");
    encoder.into_writer().bytes_written
}

/// The length of a number's encoding, and of a sequence's length.
pub(crate) fn varint_len(value: usize) -> usize {
    match value {
        0..=250 => 1,
        251..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// Decodes a structure from all of `bytes`, allocating at most `LIMIT` bytes.
///
/// # Errors
/// Malformed, oversized or trailing bytes.
pub fn decode<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = bincode::decode_from_slice(bytes, standard().with_limit::<LIMIT>())
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        rest => Err(DecodeError::Trailing(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&(1_u32, 2_u8));
        assert_eq!(decode::<(u32, u8), 64>(&bytes), Ok((1, 2)));
        bytes.push(0);
        assert_eq!(decode::<(u32, u8), 64>(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn lengths_are_counted_as_they_are_encoded() {
        for number in [0, 1, 250, 251, 252, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000_usize] {
            assert_eq!(varint_len(number), encode(&(number as u64)).len(), "{number}");
        }
        let structure = (7_u64, vec![(1_u16, 300_u16); 300], [9_u8; 64], true);
        assert_eq!(encoded_len(&structure), encode(&structure).len());
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_refused_before_allocation() {
        let mut bytes = vec![253];
        bytes.extend((1_u64 << 62).to_le_bytes());
        assert!(decode::<Vec<u8>, 4096>(&bytes).is_err());
    }
}
