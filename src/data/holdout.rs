//! Holding out a fifth of the rows where no test set is given.

use ndarray::{Array2, Axis};

use super::{Features, Raw, slice};

/// One row in this many is held out.
const PART: u64 = 5;

/// Splits a table into rows to train on and rows to hold out, or `None` when either is empty.
///
/// A row is held out when the first eight bytes of the BLAKE3 hash of its features, as a
/// little-endian number, are a multiple of five. So the split does not depend on the order of the
/// rows, and rows of equal features are never on both sides.
pub fn split(raw: Raw) -> Option<(Raw, Raw)> {
    let held: Vec<bool> =
        (0..raw.labels.len()).map(|row| is_held_out(&raw.features, row)).collect();
    let rows = |out: bool| -> Vec<usize> { (0..held.len()).filter(|&r| held[r] == out).collect() };
    let (train, test) = (rows(false), rows(true));
    if train.is_empty() || test.is_empty() {
        return None;
    }
    Some((select(&raw, &train), select(&raw, &test)))
}

fn is_held_out(features: &Features, row: usize) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 holdout");
    match features {
        Features::U8 { values, .. } => hasher.update(slice(values.row(row))),
        Features::F32(values) => {
            let row: Vec<u8> = values.row(row).iter().flat_map(|v| v.to_le_bytes()).collect();
            hasher.update(&row)
        }
        Features::Text(texts) => hasher.update(texts[row].as_bytes()),
    };
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first) % PART == 0
}

fn select(raw: &Raw, rows: &[usize]) -> Raw {
    fn pick<T: Copy>(values: &Array2<T>, rows: &[usize]) -> Array2<T> {
        values.select(Axis(0), rows)
    }
    let features = match &raw.features {
        Features::U8 { values, scale, offset } => {
            Features::U8 { values: pick(values, rows), scale: *scale, offset: *offset }
        }
        Features::F32(values) => Features::F32(pick(values, rows)),
        Features::Text(texts) => {
            Features::Text(rows.iter().map(|&row| texts[row].clone()).collect())
        }
    };
    let labels = rows.iter().map(|&row| raw.labels[row].clone()).collect();
    Raw { features, labels, scaling: raw.scaling }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Scaling;

    fn table(rows: usize, distinct: usize) -> Raw {
        let values = Array2::from_shape_fn((rows, 2), |(row, column)| {
            (row % distinct) as f32 + column as f32 / 2.0
        });
        let labels = (0..rows).map(|row| (row % 2).to_string()).collect();
        Raw { features: Features::F32(values), labels, scaling: Scaling::PerColumn }
    }

    #[test]
    fn about_a_fifth_is_held_out() {
        let (train, test) = split(table(10_000, 10_000)).unwrap();
        assert_eq!(train.labels.len() + test.labels.len(), 10_000);
        // Standard deviation 40; five of them is one in a million.
        assert!(test.labels.len().abs_diff(2000) < 200, "{}", test.labels.len());
    }

    #[test]
    fn equal_rows_are_never_on_both_sides() {
        let (train, test) = split(table(1000, 40)).unwrap();
        let (Features::F32(train), Features::F32(test)) = (train.features, test.features) else {
            panic!("the kind of features does not change");
        };
        assert!(
            test.rows().into_iter().all(|held| train.rows().into_iter().all(|row| row != held))
        );
    }

    #[test]
    fn rows_that_are_all_equal_cannot_be_split() {
        assert_eq!(split(table(10, 1)), None);
    }
}
