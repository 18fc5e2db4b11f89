//! The LIBSVM format: `label index:value index:value …` a line, indices from 1 and increasing.
//!
//! What a line does not list is zero. A `#` begins a comment; blank lines are skipped. The table is
//! stored densely: as bytes where all values are 0 or 1, as `f32` otherwise. Columns are
//! divided by their largest magnitude on assembly, where that exceeds 1.

use ndarray::Array2;
use thiserror::Error;

use super::{CELLS_MAX, Features, Raw, Scaling};

/// Why a text is no LIBSVM file; lines and columns (bytes within the line) are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LibsvmError {
    /// The bytes are no text.
    #[error("line {line} is not UTF-8 text")]
    Encoding {
        /// The line.
        line: usize,
    },
    /// No line holds data, or none a feature.
    #[error("no rows with features")]
    Empty,
    /// A label that is no finite number.
    #[error("line {line}, column {column}: label {label:?} is not a finite number")]
    Label {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// The label's beginning.
        label: String,
    },
    /// A feature that is not a whole number, a colon and a finite number.
    #[error("line {line}, column {column}: {entry:?} is not index:value")]
    Entry {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// The entry's beginning.
        entry: String,
    },
    /// An index that is zero, or not above the one before it.
    #[error(
        "line {line}, column {column}: index {index} must be above {previous}; \
         indices start at 1 and increase"
    )]
    Order {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// The index.
        index: u32,
        /// The one before it, or zero.
        previous: u32,
    },
    /// A table too large to store densely.
    #[error("{rows} rows of {columns} columns exceed the limit of {CELLS_MAX} cells")]
    TooLarge {
        /// The rows.
        rows: usize,
        /// The largest index.
        columns: u32,
    },
}

/// Parses a table.
///
/// # Errors
/// At the first entry that does not fit, or if the dense table would exceed [`CELLS_MAX`].
pub fn parse(bytes: &[u8]) -> Result<Raw, LibsvmError> {
    let text = super::text(bytes).map_err(|line| LibsvmError::Encoding { line })?;
    let mut labels = Vec::new();
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default();
        let mut words = words(text);
        let Some((column, label)) = words.next() else { continue };
        let row = labels.len();
        labels.push(parse_label(line, column, label)?);
        let mut previous = 0;
        for (column, word) in words {
            let (index, value) = parse_entry(line, column, word)?;
            if index <= previous {
                return Err(LibsvmError::Order { line, column, index, previous });
            }
            previous = index;
            entries.push((row, index, value));
        }
    }
    let columns = entries.iter().map(|&(_, index, _)| index).max().ok_or(LibsvmError::Empty)?;
    let rows = labels.len();
    if rows.checked_mul(columns as usize).is_none_or(|cells| cells > CELLS_MAX) {
        return Err(LibsvmError::TooLarge { rows, columns });
    }
    Ok(Raw {
        features: dense(rows, columns as usize, &entries),
        labels,
        scaling: Scaling::Magnitude,
    })
}

fn dense(rows: usize, columns: usize, entries: &[(usize, u32, f32)]) -> Features {
    fn fill<T: Clone + Default>(
        shape: (usize, usize),
        entries: &[(usize, u32, f32)],
        number: impl Fn(f32) -> T,
    ) -> Array2<T> {
        let mut values = Array2::default(shape);
        for &(row, index, value) in entries {
            values[[row, index as usize - 1]] = number(value);
        }
        values
    }
    if entries.iter().all(|&(_, _, value)| value == 0.0 || value == 1.0) {
        let values = fill((rows, columns), entries, |value| value as u8);
        Features::U8 { values, scale: 1.0, offset: 0.0 }
    } else {
        Features::F32(fill((rows, columns), entries, |value| value))
    }
}

/// A label as a number's shortest text, so that `+1`, `1` and `1.0` are one class.
fn parse_label(line: usize, column: usize, word: &str) -> Result<String, LibsvmError> {
    match word.parse::<f64>() {
        // Adding zero makes a negative zero positive.
        Ok(label) if label.is_finite() => Ok((label + 0.0).to_string()),
        _ => Err(LibsvmError::Label { line, column, label: super::excerpt(word) }),
    }
}

fn parse_entry(line: usize, column: usize, word: &str) -> Result<(u32, f32), LibsvmError> {
    let numbers = word.split_once(':').and_then(|(index, value)| {
        let value = value.parse().ok().filter(|value: &f32| value.is_finite())?;
        Some((index.parse().ok()?, value))
    });
    numbers.ok_or_else(|| LibsvmError::Entry { line, column, entry: super::excerpt(word) })
}

/// The words of a line with the column at which each begins.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = line.as_ptr() as usize;
    line.split_ascii_whitespace().map(move |word| (word.as_ptr() as usize - start + 1, word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn binary_features_become_bytes() {
        let raw = parse(b"+1 1:1 3:1 \n-1 2:1 # note\n\n1.0\n").unwrap();
        let values = ndarray::array![[1, 0, 1], [0, 1, 0], [0, 0, 0]];
        assert_eq!(raw.features, Features::U8 { values, scale: 1.0, offset: 0.0 });
        assert_eq!(raw.labels, ["1", "-1", "1"]);
    }

    #[test]
    fn other_features_become_floats() {
        let raw = parse(b"0 2:0.5\n2 1:-3\n").unwrap();
        assert_eq!(raw.features, Features::F32(ndarray::array![[0.0, 0.5], [-3.0, 0.0]]));
    }

    #[test]
    fn wrong_entries_are_named_by_line_and_column() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("1 1:1\n 0 1:1 2;1"), "line 2, column 8: \"2;1\" is not index:value");
        assert_eq!(error("x 1:1"), "line 1, column 1: label \"x\" is not a finite number");
        for (entry, column) in
            [("0:1", 3), ("-1:1", 3), ("1:nan", 3), ("1:1 1:1", 7), ("2:1 1:1", 7)]
        {
            let message = error(&format!("1 {entry}"));
            assert!(message.starts_with(&format!("line 1, column {column}: ")), "{message}");
        }
    }

    #[test]
    fn dense_size_is_bounded() {
        let error = parse(b"1 4000000000:1\n0 1:1\n").unwrap_err();
        assert_eq!(error, LibsvmError::TooLarge { rows: 2, columns: 4_000_000_000 });
        assert_eq!(parse(b"1\n0\n"), Err(LibsvmError::Empty));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text in "[0-9:.# \n-]{0,60}") {
            let _ = parse(&bytes);
            let _ = parse(text.as_bytes());
        }
    }
}
