//! The idx format of MNIST: big-endian dimensions, then unsigned bytes.
//!
//! ```text
//! 00 00 08 03  rows  height  width  pixels…     images
//! 00 00 08 01  rows  labels…                    labels
//! ```

use ndarray::Array2;
use thiserror::Error;

use super::{Features, ROWS_MAX, Raw, Scaling};

/// Why bytes are no idx file; offsets are from the start of the uncompressed file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdxError {
    /// The file ends within its header.
    #[error("file ends at offset {len}, within the header of {header} bytes")]
    Header {
        /// The file's length.
        len: usize,
        /// The length of the header.
        header: usize,
    },
    /// Another format, another element type or another number of dimensions.
    #[error(
        "magic number at offset 0 is {found:#010x}, expected {expected:#010x} \
         (unsigned bytes in {dimensions} dimension(s))"
    )]
    Magic {
        /// The first four bytes, big-endian.
        found: u32,
        /// What they should be.
        expected: u32,
        /// The dimensions expected.
        dimensions: usize,
    },
    /// Dimensions whose product is beyond any file, or zero.
    #[error("dimensions {0:?} at offset 4 are empty or too large")]
    Dimensions(Vec<u32>),
    /// The file is cut short.
    #[error("file ends at offset {len}, but its dimensions {dimensions:?} need {expected} bytes")]
    Truncated {
        /// The file's length.
        len: usize,
        /// The length the header announces.
        expected: usize,
        /// The dimensions in the header.
        dimensions: Vec<u32>,
    },
    /// The file goes on after its last element.
    #[error("{extra} byte(s) follow the end of the data at offset {end}")]
    Trailing {
        /// Where the data ends.
        end: usize,
        /// The bytes after it.
        extra: usize,
    },
}

/// Parses an images file: a row of `height · width` bytes per image.
///
/// # Errors
/// If the file is not exactly one idx array of unsigned bytes in three dimensions.
pub fn parse_images(bytes: &[u8]) -> Result<Array2<u8>, IdxError> {
    let ([rows, height, width], pixels) = parse::<3>(bytes)?;
    let shape = (rows as usize, height as usize * width as usize);
    Ok(Array2::from_shape_vec(shape, pixels.to_vec()).expect("the length was checked"))
}

/// Parses a labels file: a byte per row.
///
/// # Errors
/// If the file is not exactly one idx array of unsigned bytes in one dimension.
pub fn parse_labels(bytes: &[u8]) -> Result<Vec<u8>, IdxError> {
    let (_, labels) = parse::<1>(bytes)?;
    Ok(labels.to_vec())
}

/// A table of images and labels; that they are equally many is checked on assembly.
pub fn table(images: Array2<u8>, labels: &[u8]) -> Raw {
    Raw {
        features: Features::U8 { values: images, scale: 1.0, offset: 0.0 },
        labels: labels.iter().map(u8::to_string).collect(),
        scaling: Scaling::Global,
    }
}

fn parse<const D: usize>(bytes: &[u8]) -> Result<([u32; D], &[u8]), IdxError> {
    let header = 4 + 4 * D;
    let words = bytes.get(..header).ok_or(IdxError::Header { len: bytes.len(), header })?;
    let word = |index: usize| {
        let word = words[4 * index..].first_chunk().expect("the header has this word");
        u32::from_be_bytes(*word)
    };
    let expected = 0x0800 | D as u32;
    if word(0) != expected {
        return Err(IdxError::Magic { found: word(0), expected, dimensions: D });
    }
    let dimensions: [u32; D] = std::array::from_fn(|d| word(d + 1));
    let product =
        dimensions.iter().try_fold(1usize, |len, &extent| len.checked_mul(extent as usize));
    let end = product.filter(|&len| len > 0).and_then(|len| len.checked_add(header));
    let end = end.filter(|_| dimensions[0] as usize <= ROWS_MAX);
    let end = end.ok_or_else(|| IdxError::Dimensions(dimensions.to_vec()))?;
    match bytes.len().checked_sub(end) {
        None => Err(IdxError::Truncated {
            len: bytes.len(),
            expected: end,
            dimensions: dimensions.to_vec(),
        }),
        Some(0) => Ok((dimensions, &bytes[header..])),
        Some(extra) => Err(IdxError::Trailing { end, extra }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn images() -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3];
        bytes.extend([1, 2, 3, 4, 5, 6]);
        bytes
    }

    #[test]
    fn images_become_rows() {
        assert_eq!(parse_images(&images()).unwrap(), ndarray::array![[1, 2, 3], [4, 5, 6]]);
        assert_eq!(parse_labels(&[0, 0, 8, 1, 0, 0, 0, 2, 7, 9]).unwrap(), [7, 9]);
    }

    #[test]
    fn labels_in_place_of_images_are_named() {
        let error = parse_images(&[&[0, 0, 8, 1][..], &[0; 20]].concat()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "magic number at offset 0 is 0x00000801, expected 0x00000803 \
             (unsigned bytes in 3 dimension(s))"
        );
    }

    #[test]
    fn wrong_lengths_are_found() {
        let bytes = images();
        assert_eq!(parse_images(&bytes[..9]), Err(IdxError::Header { len: 9, header: 16 }));
        let truncated = parse_images(&bytes[..21]).unwrap_err();
        assert!(matches!(truncated, IdxError::Truncated { len: 21, expected: 22, .. }));
        let longer = [&bytes[..], &[0, 0]].concat();
        assert_eq!(parse_images(&longer), Err(IdxError::Trailing { end: 22, extra: 2 }));
    }

    #[test]
    fn huge_dimensions_allocate_nothing() {
        let mut bytes = images();
        bytes[4..16].fill(0xff);
        assert!(parse_images(&bytes).is_err());
        bytes[4..16].fill(0);
        assert_eq!(parse_images(&bytes), Err(IdxError::Dimensions(vec![0, 0, 0])));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, valid: bool) {
            if valid && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[0, 0, 8, 3]);
            }
            let _ = parse_images(&bytes);
            let _ = parse_labels(&bytes);
        }
    }
}
