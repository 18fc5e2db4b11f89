//! Tensors in safetensors files, of which only a piece is in memory at a time: a model may be most of what fits.
//!
//! A file is the length of its header (`u64`, little-endian), the header (JSON: name, kind, shape and range of each
//! tensor, and texts about the file), and the numbers.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use thiserror::Error;

pub use safetensors::Dtype;

/// The longest header that is read, in bytes.
const HEADER_LEN_MAX: u64 = 100_000_000;

/// Bytes that are handed over at a time: a whole number of numbers of any kind.
pub const PIECE_LEN: usize = 1 << 16;

/// Why a file cannot be read.
#[derive(Debug, Error)]
pub enum TensorsError {
    /// The system refused.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is no safetensors file, or not a whole one.
    #[error("not a whole safetensors file: {0}")]
    Damaged(String),
}

/// A safetensors file that is open for reading.
#[derive(Debug)]
pub struct TensorsFile<F> {
    file: F,
    /// Where the numbers begin.
    begin: u64,
    header: Metadata,
}

/// What a file says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The kind of its numbers.
    pub dtype: Dtype,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub range: Range<u64>,
}

impl<F: Read + Seek> TensorsFile<F> {
    /// Reads the header.
    ///
    /// # Errors
    /// See [`TensorsError`]. The file is as long as its header says, and the ranges of the tensors follow each other
    /// and are as long as their shapes say.
    pub fn open(mut file: F) -> Result<TensorsFile<F>, TensorsError> {
        let damaged = |problem: String| Err(TensorsError::Damaged(problem));
        let len = file.seek(SeekFrom::End(0))?;
        if len < 8 {
            return damaged(format!("{len} bytes are no header"));
        }
        let mut word = [0; 8];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut word)?;
        let header_len = u64::from_le_bytes(word);
        if header_len > HEADER_LEN_MAX.min(len - 8) {
            return damaged(format!(
                "its header is said to be {header_len} bytes, the file has {len} and {HEADER_LEN_MAX} are allowed"
            ));
        }
        let mut json = vec![0; header_len as usize];
        file.read_exact(&mut json)?;
        let header: Metadata = match serde_json::from_slice(&json) {
            Ok(header) => header,
            Err(error) => return damaged(format!("its header: {error}")),
        };
        let begin = 8 + header_len;
        let end = begin.saturating_add(header.data_len() as u64);
        if end != len {
            let last = header.offset_keys().pop().unwrap_or_default();
            return damaged(format!(
                "its tensors, the last of them {last:?}, end at byte {end}, the file at {len}"
            ));
        }
        Ok(TensorsFile { file, begin, header })
    }

    /// What it says about itself under a key.
    pub fn about(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The names of its tensors, in the order of their numbers.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// What it says of a tensor.
    pub fn tensor(&self, name: &str) -> Option<Stored> {
        let TensorInfo { dtype, shape, data_offsets: (from, to) } = self.header.info(name)?;
        let range = self.begin + *from as u64..self.begin + *to as u64;
        Some(Stored { dtype: *dtype, shape: shape.clone(), range })
    }

    /// Gives the bytes of a range, up to [`PIECE_LEN`] at a time.
    ///
    /// # Errors
    /// The system's, or the receiver's.
    pub fn read<E: From<io::Error>>(
        &mut self,
        range: Range<u64>,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        read_range(&mut self.file, range, take)
    }

    /// The file.
    pub fn into_inner(self) -> F {
        self.file
    }
}

/// Gives the bytes of a range of a file, up to [`PIECE_LEN`] at a time.
///
/// # Errors
/// The system's, or the receiver's.
pub fn read_range<E: From<io::Error>>(
    file: &mut (impl Read + Seek),
    range: Range<u64>,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    file.seek(SeekFrom::Start(range.start))?;
    let mut left = range.end.saturating_sub(range.start);
    let mut piece = vec![0; left.min(PIECE_LEN as u64) as usize];
    while left > 0 {
        let len = left.min(PIECE_LEN as u64) as usize;
        file.read_exact(&mut piece[..len])?;
        take(&piece[..len])?;
        left -= len as u64;
    }
    Ok(())
}

/// A tensor of a file that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The name.
    pub name: String,
    /// The kind of its numbers.
    pub dtype: Dtype,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
}

/// What stands in front of the numbers of these tensors, which follow without gaps in the same order.
///
/// Readers want numbers aligned: put tensors of larger numbers first.
///
/// # Panics
/// If two have one name, or all together are larger than any file.
pub fn header(tensors: &[Announced], about: &BTreeMap<String, String>) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", json!(about))]);
    let mut at = 0_usize;
    for Announced { name, dtype, shape } in tensors {
        let numbers = shape.iter().try_fold(1_usize, |all, extent| all.checked_mul(*extent));
        let bits = numbers.and_then(|numbers| numbers.checked_mul(dtype.bitsize()));
        let end = bits.and_then(|bits| at.checked_add(bits / 8));
        let end = end.expect("tensors that exist fit into memory");
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (at, end) };
        let earlier = entries.insert(name, json!(info));
        assert!(earlier.is_none(), "two tensors are called {name}");
        at = end;
    }
    let mut json = json!(entries).to_string().into_bytes();
    // Spaces, so that the numbers begin at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn file() -> Vec<u8> {
        let announced = |name: &str, dtype, shape: &[usize]| Announced {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        // More than a piece.
        let long = PIECE_LEN / 4 + 1;
        let tensors = [announced("b", Dtype::F32, &[long, 1]), announced("a", Dtype::U8, &[3])];
        let about = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        let mut bytes = header(&tensors, &about);
        bytes.extend((0..long).flat_map(|value| (value as f32).to_le_bytes()));
        bytes.extend([7, 8, 9]);
        bytes
    }

    #[test]
    fn what_is_written_is_what_the_library_reads() {
        let bytes = file();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().shape(), [PIECE_LEN / 4 + 1, 1]);
        assert_eq!(read.tensor("a").unwrap().data(), [7, 8, 9]);
        let mut own = TensorsFile::open(Cursor::new(&bytes)).unwrap();
        assert_eq!((own.about("format"), own.names().len()), (Some("pt"), 2));
        for name in own.names() {
            let stored = own.tensor(&name).unwrap();
            let theirs = read.tensor(&name).unwrap();
            assert_eq!((stored.dtype, &stored.shape[..]), (theirs.dtype(), theirs.shape()));
            let mut found = Vec::new();
            own.read(stored.range, |piece| {
                found.extend_from_slice(piece);
                io::Result::Ok(())
            })
            .unwrap();
            assert_eq!(found, theirs.data());
        }
    }

    #[test]
    fn a_file_cut_off_or_with_something_behind_is_none() {
        let bytes = file();
        for len in (0..300).chain(bytes.len() - 300..bytes.len()) {
            let error = TensorsFile::open(Cursor::new(&bytes[..len])).unwrap_err().to_string();
            assert!(error.contains("not a whole safetensors file"), "{len}: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(TensorsFile::open(Cursor::new(longer)).is_err());
        let mut huge = bytes;
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(TensorsFile::open(Cursor::new(huge)).is_err());
    }
}
