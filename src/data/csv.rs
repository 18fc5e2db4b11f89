//! Comma-separated tables: numbers, and the label in the last column.
//!
//! The first line is a header when none of its cells but the last is a number. Cells are trimmed and may
//! stand in double quotes, but commas within quotes are not supported; blank lines are
//! skipped. Labels are any text. Columns are standardized on assembly.

use ndarray::Array2;
use thiserror::Error;

use super::{Features, Raw, Scaling};

/// Why a text is no table; lines and columns are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsvError {
    /// The bytes are no text.
    #[error("line {line} is not UTF-8 text")]
    Encoding {
        /// The line.
        line: usize,
    },
    /// No line holds data.
    #[error("no data rows")]
    Empty,
    /// A line of one cell has a label only.
    #[error("line {line} has no feature columns; cells are separated by commas")]
    NoFeatures {
        /// The line.
        line: usize,
    },
    /// A line of another length than the first.
    #[error("line {line} has {cells} columns, the first line has {expected}")]
    Ragged {
        /// The line.
        line: usize,
        /// Its cells.
        cells: usize,
        /// The first line's cells.
        expected: usize,
    },
    /// A feature that is no finite number.
    #[error("line {line}, column {column}: {cell:?} is not a finite number")]
    Number {
        /// The line.
        line: usize,
        /// The column of cells.
        column: usize,
        /// The cell's beginning.
        cell: String,
    },
    /// A row without a label.
    #[error("line {line}, column {column}: the label is empty")]
    Label {
        /// The line.
        line: usize,
        /// The column of cells.
        column: usize,
    },
}

/// Parses a table.
///
/// # Errors
/// At the first cell or line that does not fit.
pub fn parse(bytes: &[u8]) -> Result<Raw, CsvError> {
    let text = super::text(bytes).map_err(|line| CsvError::Encoding { line })?;
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).peekable();
    let &(line, first) = lines.peek().ok_or(CsvError::Empty)?;
    let cells: Vec<&str> = cells(first).collect();
    let expected = cells.len();
    if expected < 2 {
        return Err(CsvError::NoFeatures { line });
    }
    if cells[..expected - 1].iter().all(|cell| cell.parse::<f64>().is_err()) {
        lines.next();
    }
    let mut values = Vec::new();
    let mut labels = Vec::new();
    for (line, text) in lines {
        labels.push(parse_line(line, text, expected, &mut values)?);
    }
    if labels.is_empty() {
        return Err(CsvError::Empty);
    }
    let values = Array2::from_shape_vec((labels.len(), expected - 1), values);
    let features = Features::F32(values.expect("every line has the same number of cells"));
    Ok(Raw { features, labels, scaling: Scaling::PerColumn })
}

/// Appends a line's features and returns its label.
fn parse_line(
    line: usize,
    text: &str,
    expected: usize,
    values: &mut Vec<f32>,
) -> Result<String, CsvError> {
    let count = cells(text).count();
    if count != expected {
        return Err(CsvError::Ragged { line, cells: count, expected });
    }
    for (column, cell) in (1..expected).zip(cells(text)) {
        let value: Option<f32> = cell.parse().ok().filter(|value: &f32| value.is_finite());
        let cell = || super::excerpt(cell);
        values.push(value.ok_or_else(|| CsvError::Number { line, column, cell: cell() })?);
    }
    match cells(text).next_back() {
        Some(label) if !label.is_empty() => Ok(label.to_owned()),
        _ => Err(CsvError::Label { line, column: expected }),
    }
}

fn cells(line: &str) -> impl DoubleEndedIterator<Item = &str> {
    line.split(',').map(|cell| {
        let cell = cell.trim();
        cell.strip_prefix('"').and_then(|cell| cell.strip_suffix('"')).unwrap_or(cell)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (Vec<f32>, Vec<String>) {
        let raw = parse(text.as_bytes()).unwrap();
        let Features::F32(values) = raw.features else { panic!("cells are numbers") };
        (values.into_raw_vec_and_offset().0, raw.labels)
    }

    #[test]
    fn header_is_detected_by_its_words() {
        let rows = (vec![1.0, -2.5, 3.0, 4e3], vec!["cat".to_owned(), "dog".to_owned()]);
        assert_eq!(parsed("a,\"b\",label\n1,-2.5,cat\r\n\n3, 4e3 ,\"dog\"\n"), rows);
        assert_eq!(parsed("1,-2.5,cat\n3,4e3,dog"), rows);
    }

    #[test]
    fn a_word_among_numbers_is_an_error_and_no_header() {
        for (text, line, column) in [("1,x,0\n1,2,0\n", 1, 2), ("a,b,c\n1,2,0\nx,2,0\n", 3, 1)] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error, CsvError::Number { line, column, cell: "x".to_owned() });
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for cell in ["nan", "inf", "1e60", ""] {
            let error = parse(format!("1,2,a\n1,{cell},b\n").as_bytes()).unwrap_err();
            assert!(matches!(error, CsvError::Number { line: 2, column: 2, .. }), "{error}");
        }
    }

    #[test]
    fn ragged_empty_and_unlabelled_tables_are_refused() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(error("1,2,a\n1,b\n"), CsvError::Ragged { line: 2, cells: 2, expected: 3 });
        assert_eq!(error(" \n"), CsvError::Empty);
        assert_eq!(error("a,b,c\n"), CsvError::Empty);
        assert_eq!(error("\n1\n"), CsvError::NoFeatures { line: 2 });
        assert_eq!(error("1,2,\n"), CsvError::Label { line: 1, column: 3 });
        assert_eq!(parse(b"1,2,a\n\xff,2,b\n"), Err(CsvError::Encoding { line: 2 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text in "[a0-9.,\"\n -]{0,60}") {
            let _ = parse(&bytes);
            let _ = parse(text.as_bytes());
        }
    }
}
