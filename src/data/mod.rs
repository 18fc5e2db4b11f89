//! Data sets: parsers, the built-in digits, shards.
//!
//! A parser turns the bytes of one file into a [`Raw`] table; [`Dataset::assemble`] makes a data set
//! of one or two of them: labels become class numbers, a missing test set is held out by row hash,
//! features are scaled by what the training rows show, and only by them. [`source`] says which files a
//! data set consists of; reading them is the caller's business.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1, Axis, Slice};
use thiserror::Error;

pub mod csv;
pub mod digits;
pub mod holdout;
pub mod idx;
pub mod libsvm;
#[cfg(feature = "parquet")]
mod parquet;
pub mod shard;
pub mod source;
pub mod text;

/// The largest number of classes; a larger one is a regression target mistaken for a label.
pub const CLASSES_MAX: usize = 1000;

/// The largest number of cells of a table whose text lists only some of them: 2 GiB as `f32`.
pub const CELLS_MAX: usize = 1 << 29;

/// The largest number of rows of a table; rows are counted in 32 bits.
pub const ROWS_MAX: usize = u32::MAX as usize;

/// A training and a test table with the same features and classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// What people call it; not part of the hash.
    pub name: String,
    /// The number of columns.
    pub features: usize,
    /// The number of classes, at least two; one where texts have no labels.
    pub classes: usize,
    /// The text of every class's label, in order of class number.
    pub class_names: Vec<String>,
    /// The rows to train on.
    pub train: Table,
    /// The rows that are never trained on.
    pub test: Table,
}

/// Rows of features with a class each.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The rows' features.
    pub features: Features,
    /// The rows' classes.
    pub labels: Vec<u16>,
}

/// A matrix of one row per example, as compact as its source.
#[derive(Clone, Debug, PartialEq)]
pub enum Features {
    /// Bytes, as images are: a feature is `scale · byte + offset`.
    U8 {
        /// The bytes, a row per example, in standard layout.
        values: Array2<u8>,
        /// What one step of a byte is worth.
        scale: f32,
        /// What a zero byte is worth.
        offset: f32,
    },
    /// The features themselves, in standard layout.
    F32(Array2<f32>),
    /// A text a row, for language models.
    Text(Vec<String>),
}

/// What a parser makes of one file: numbers not yet scaled, labels still text.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// The numbers, in standard layout; bytes have scale 1 and offset 0 so far.
    pub features: Features,
    /// The label of every row.
    pub labels: Vec<String>,
    /// How the source's columns are brought to a common size.
    pub scaling: Scaling,
}

/// How features are brought to a common size, by what the training rows show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// One mean and one standard deviation for all columns, for images.
    ///
    /// Pixels share a unit, and per-column scaling would blow up the noise at the border.
    Global,
    /// Every column to mean 0 and standard deviation 1; a constant column becomes 0.
    ///
    /// For tables, whose columns have units of their own. Bytes share one scale, so they are scaled
    /// as with [`Scaling::Global`].
    PerColumn,
    /// Every column divided by its largest magnitude where that exceeds 1.
    ///
    /// For sparse data: zeros stay zeros, and binary or already scaled columns stay as they are.
    Magnitude,
}

/// Why tables do not make a data set.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum AssembleError {
    /// A table without rows.
    #[error("the {0} set has no rows")]
    Empty(&'static str),
    /// Features and labels are of different files that do not belong together.
    #[error("{rows} rows but {labels} labels in the {set} set")]
    Labels {
        /// Training or test.
        set: &'static str,
        /// Rows of features.
        rows: usize,
        /// Labels.
        labels: usize,
    },
    /// The test rows are of another width or kind.
    #[error("the test set has {test} columns of features, the training set {train}")]
    Columns {
        /// Columns of the training set.
        train: usize,
        /// Columns of the test set.
        test: usize,
    },
    /// The rows hold a single class.
    #[error("every row has the label {0:?}; at least two classes are needed")]
    OneClass(String),
    /// The labels are numbers or names of something else.
    #[error("{0} different labels; at most {CLASSES_MAX} classes are supported")]
    ManyClasses(usize),
    /// A label that the training set does not have.
    #[error("label {label:?} of test row {row} does not occur in the training set")]
    UnknownLabel {
        /// The label.
        label: String,
        /// The row, counted from 0.
        row: usize,
    },
    /// No row fell into one of the two parts.
    #[error("{0} rows are too few, or too alike, to hold some out; give a test set")]
    Holdout(usize),
}

impl Dataset {
    /// The same data with class `c` called `C − 1 − c` in training: what a node that flips labels
    /// learns from.
    pub fn with_flipped_labels(&self) -> Dataset {
        let mut flipped = self.clone();
        let last = self.classes.saturating_sub(1) as u16;
        flipped.train.labels.iter_mut().for_each(|label| *label = last.saturating_sub(*label));
        flipped
    }

    /// A data set of parsed tables; without a test table, a fifth of the rows is held out.
    ///
    /// Classes are numbered in the order of their labels: by value where all are numbers, as text
    /// otherwise. A test table of fewer columns than the training table is filled with zeros where
    /// the format leaves zeros out (LIBSVM).
    ///
    /// # Errors
    /// If a table is empty, the tables do not fit together, or the labels are no classes.
    pub fn assemble(
        name: impl Into<String>,
        train: Raw,
        test: Option<Raw>,
    ) -> Result<Dataset, AssembleError> {
        check_rows(&train, "training")?;
        let (mut train, mut test) = match test {
            Some(test) => {
                check_rows(&test, "test")?;
                align_columns(train, test)?
            }
            None => {
                let rows = train.labels.len();
                holdout::split(train).ok_or(AssembleError::Holdout(rows))?
            }
        };
        scale(&mut train.features, &mut test.features, train.scaling);
        if let Features::Text(_) = train.features
            && train.labels.iter().chain(&test.labels).all(String::is_empty)
        {
            return Ok(Dataset::unlabeled(name.into(), train.features, test.features));
        }
        let (class_names, numbers) = classes(&train.labels)?;
        let train_labels = train.labels.iter().map(|label| numbers[label]).collect();
        let test_labels = test.labels.iter().enumerate().map(|(row, label)| {
            let number = numbers.get(label).copied();
            number.ok_or_else(|| AssembleError::UnknownLabel { label: label.clone(), row })
        });
        let test_labels = test_labels.collect::<Result<_, _>>()?;
        Ok(Dataset {
            name: name.into(),
            features: train.features.columns(),
            classes: class_names.len(),
            class_names,
            train: Table { features: train.features, labels: train_labels },
            test: Table { features: test.features, labels: test_labels },
        })
    }

    /// Texts without labels: one class that says nothing.
    fn unlabeled(name: String, train: Features, test: Features) -> Dataset {
        let table = |features: Features| Table { labels: vec![0; features.rows()], features };
        let class_names = vec![String::new()];
        let (train, test) = (table(train), table(test));
        Dataset { name, features: 1, classes: 1, class_names, train, test }
    }

    /// The hash of everything but the name: equal hashes train alike.
    ///
    /// BLAKE3 under the context `rumormill v1 data set`, all numbers little-endian.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 data set");
        hasher.update(&(self.classes as u64).to_le_bytes());
        for name in &self.class_names {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        self.train.update(&mut hasher);
        self.test.update(&mut hasher);
        hasher.finalize().into()
    }
}

impl Table {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    fn update(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&(self.rows() as u64).to_le_bytes());
        hasher.update(&(self.features.columns() as u64).to_le_bytes());
        match &self.features {
            Features::U8 { values, scale, offset } => {
                hasher.update(&[0]);
                hasher.update(&scale.to_le_bytes());
                hasher.update(&offset.to_le_bytes());
                values.rows().into_iter().for_each(|row| {
                    hasher.update(slice(row));
                });
            }
            Features::F32(values) => {
                hasher.update(&[1]);
                let mut bytes = Vec::with_capacity(4 * values.ncols());
                for row in values.rows() {
                    bytes.clear();
                    bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                    hasher.update(&bytes);
                }
            }
            Features::Text(texts) => {
                hasher.update(&[2]);
                for text in texts {
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(text.as_bytes());
                }
            }
        }
        let labels: Vec<u8> = self.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        hasher.update(&labels);
    }
}

impl Features {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Features::U8 { values, .. } => values.nrows(),
            Features::F32(values) => values.nrows(),
            Features::Text(texts) => texts.len(),
        }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        match self {
            Features::U8 { values, .. } => values.ncols(),
            Features::F32(values) => values.ncols(),
            Features::Text(_) => 1,
        }
    }

    /// What every feature is larger by than the value its source stores: the worth of a zero byte.
    pub(crate) fn offset(&self) -> f32 {
        match *self {
            Features::U8 { offset, .. } => offset,
            Features::F32(_) | Features::Text(_) => 0.0,
        }
    }

    /// Writes a row's features.
    ///
    /// # Panics
    /// If there is no such row, `out` is not as long as a row, or the rows are texts.
    pub fn write_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Features::U8 { values, scale, offset } => {
                let row = slice(values.row(row));
                assert_eq!(row.len(), out.len(), "one value per column");
                for (out, &byte) in out.iter_mut().zip(row) {
                    *out = scale * f32::from(byte) + offset;
                }
            }
            Features::F32(values) => out.copy_from_slice(slice(values.row(row))),
            Features::Text(_) => panic!("a text has no numbers"),
        }
    }
}

/// A row of a matrix in standard layout as a slice.
pub(crate) fn slice<T>(row: ArrayView1<'_, T>) -> &[T] {
    row.to_slice().expect("features are in standard layout")
}

/// Bytes as text, without a byte order mark, or the first line that is none, counted from 1.
fn text(bytes: &[u8]) -> Result<&str, usize> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = &bytes[..error.valid_up_to()];
        1 + valid.iter().filter(|&&byte| byte == b'\n').count()
    })
}

/// The beginning of a text, short enough for a message.
fn excerpt(text: &str) -> String {
    const LENGTH_MAX: usize = 40;
    let mut characters = text.chars();
    let mut excerpt: String = characters.by_ref().take(LENGTH_MAX).collect();
    if characters.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

fn check_rows(raw: &Raw, set: &'static str) -> Result<(), AssembleError> {
    let (rows, labels) = (raw.features.rows(), raw.labels.len());
    if rows != labels {
        return Err(AssembleError::Labels { set, rows, labels });
    }
    if rows == 0 || raw.features.columns() == 0 {
        return Err(AssembleError::Empty(set));
    }
    Ok(())
}

/// Gives both tables the same columns and the same kind of numbers.
fn align_columns(mut train: Raw, mut test: Raw) -> Result<(Raw, Raw), AssembleError> {
    let columns = (train.features.columns(), test.features.columns());
    if columns.0 != columns.1 {
        if train.scaling != Scaling::Magnitude {
            return Err(AssembleError::Columns { train: columns.0, test: columns.1 });
        }
        let widest = columns.0.max(columns.1);
        widen(&mut train.features, widest);
        widen(&mut test.features, widest);
    }
    match (&train.features, &test.features) {
        (Features::U8 { .. }, Features::F32(_)) => to_f32(&mut train.features),
        (Features::F32(_), Features::U8 { .. }) => to_f32(&mut test.features),
        _ => {}
    }
    Ok((train, test))
}

fn widen(features: &mut Features, columns: usize) {
    fn wide<T: Clone + Default>(values: &Array2<T>, columns: usize) -> Array2<T> {
        let mut wide = Array2::default((values.nrows(), columns));
        wide.slice_axis_mut(Axis(1), Slice::from(..values.ncols())).assign(values);
        wide
    }
    match features {
        Features::U8 { values, .. } => *values = wide(values, columns),
        Features::F32(values) => *values = wide(values, columns),
        Features::Text(_) => {}
    }
}

fn to_f32(features: &mut Features) {
    if let Features::U8 { values, scale, offset } = features {
        *features = Features::F32(values.mapv(|byte| *scale * f32::from(byte) + *offset));
    }
}

/// The labels in order and the class number of each.
fn classes(labels: &[String]) -> Result<(Vec<String>, BTreeMap<String, u16>), AssembleError> {
    let distinct: std::collections::BTreeSet<&String> = labels.iter().collect();
    let mut names: Vec<String> = distinct.into_iter().cloned().collect();
    if let [only] = &names[..] {
        return Err(AssembleError::OneClass(only.clone()));
    }
    if names.len() > CLASSES_MAX {
        return Err(AssembleError::ManyClasses(names.len()));
    }
    let values: Option<Vec<f64>> = names.iter().map(|name| name.parse().ok()).collect();
    if values.is_some() {
        names.sort_by(|a, b| {
            let value = |name: &String| name.parse::<f64>().expect("all labels are numbers");
            value(a).total_cmp(&value(b))
        });
    }
    let numbers = names.iter().zip(0..).map(|(name, number)| (name.clone(), number)).collect();
    Ok((names, numbers))
}

/// Scales both tables by what the training rows show.
fn scale(train: &mut Features, test: &mut Features, scaling: Scaling) {
    match (scaling, &mut *train, test) {
        (
            Scaling::Global | Scaling::PerColumn,
            Features::U8 { values, scale, offset },
            Features::U8 { scale: test_scale, offset: test_offset, .. },
        ) => {
            (*scale, *offset) = standardization(values);
            (*test_scale, *test_offset) = (*scale, *offset);
        }
        (_, Features::Text(_), _) => {}
        // Bytes here are zeros and ones, and stay as they are.
        (Scaling::Magnitude, Features::U8 { .. }, _) => {}
        (_, Features::F32(train), Features::F32(test)) => {
            for column in 0..train.ncols() {
                let (scale, offset) = match scaling {
                    Scaling::Magnitude => (1.0 / largest(train.column(column)).max(1.0), 0.0),
                    _ => column_standardization(train.column(column)),
                };
                let apply = |value: &mut f32| *value = (f64::from(*value) * scale + offset) as f32;
                train.column_mut(column).iter_mut().for_each(apply);
                test.column_mut(column).iter_mut().for_each(apply);
            }
        }
        _ => unreachable!("both tables hold the same kind of numbers"),
    }
}

fn largest(column: ArrayView1<'_, f32>) -> f64 {
    column.iter().fold(0.0, |largest, value| f64::from(value.abs()).max(largest))
}

/// `(scale, offset)` that give all bytes together mean 0 and standard deviation 1.
fn standardization(values: &Array2<u8>) -> (f32, f32) {
    // Integer sums: exact, so no platform disagrees. 2^47 bytes would fit.
    let (sum, squares) = values.iter().fold((0u64, 0u64), |(sum, squares), &byte| {
        let byte = u64::from(byte);
        (sum + byte, squares + byte * byte)
    });
    let count = values.len() as f64;
    let mean = sum as f64 / count;
    let deviation = (squares as f64 / count - mean * mean).max(0.0).sqrt();
    if deviation == 0.0 {
        return (1.0, -mean as f32);
    }
    ((1.0 / deviation) as f32, (-mean / deviation) as f32)
}

fn column_standardization(column: ArrayView1<'_, f32>) -> (f64, f64) {
    let count = column.len() as f64;
    let mean = column.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares: f64 = column.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
    let deviation = (squares / count).sqrt();
    // A constant column says nothing in training; elsewhere its deviation has no unit to go by.
    if deviation > 0.0 { (1.0 / deviation, -mean / deviation) } else { (0.0, 0.0) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpacked(path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let packed = crate::shared(&format!("data/{path}.gz"))?;
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn assembled(train: &str, test: Option<&str>) -> Result<Dataset, AssembleError> {
        let parse = |text: &str| csv::parse(text.as_bytes()).unwrap();
        Dataset::assemble("some", parse(train), test.map(parse))
    }

    #[test]
    fn numeric_labels_are_ordered_by_value_and_others_as_text() {
        let names = |text: &str| assembled(text, Some(text)).unwrap().class_names;
        assert_eq!(names("1,10\n2,9\n3,-1\n"), ["-1", "9", "10"]);
        assert_eq!(names("1,b\n2,a\n3,10\n"), ["10", "a", "b"]);
    }

    #[test]
    fn columns_are_standardized_by_the_training_rows() {
        let dataset = assembled("1,5,a\n3,5,b\n", Some("5,6,a\n")).unwrap();
        assert_eq!(dataset.train.features, Features::F32(ndarray::array![[-1.0, 0.0], [1.0, 0.0]]));
        assert_eq!(dataset.test.features, Features::F32(ndarray::array![[3.0, 0.0]]));
        assert_eq!((dataset.train.labels, dataset.test.labels), (vec![0, 1], vec![0]));
    }

    #[test]
    fn sparse_tables_of_different_width_and_kind_fit() {
        let parse = |text: &str| libsvm::parse(text.as_bytes()).unwrap();
        let dataset = Dataset::assemble("some", parse("1 1:1\n0 2:1\n"), Some(parse("1 3:-4\n")));
        let dataset = dataset.unwrap();
        assert_eq!(dataset.features, 3);
        let train = ndarray::array![[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
        assert_eq!(dataset.train.features, Features::F32(train));
        assert_eq!(dataset.test.features, Features::F32(ndarray::array![[0.0, 0.0, -4.0]]));
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let rows = "1,2,a\n1,3,b\n";
        let error = |train, test| assembled(train, Some(test)).unwrap_err();
        assert_eq!(error(rows, "1,a\n"), AssembleError::Columns { train: 2, test: 1 });
        let unknown = AssembleError::UnknownLabel { label: "c".to_owned(), row: 1 };
        assert_eq!(error(rows, "1,2,a\n1,2,c\n"), unknown);
        assert_eq!(error("1,2,a\n", "1,2,a\n"), AssembleError::OneClass("a".to_owned()));
        assert_eq!(assembled("1,a\n1,b\n", None), Err(AssembleError::Holdout(2)));
        let regression: String = (0..1001).map(|row| format!("1,{row}\n")).collect();
        assert_eq!(error(&regression, rows), AssembleError::Columns { train: 1, test: 2 });
        assert_eq!(error(&regression, "1,1\n"), AssembleError::ManyClasses(1001));
    }

    #[test]
    fn labels_and_images_must_be_equally_many() {
        let raw = idx::table(Array2::zeros((3, 4)), &[0, 1]);
        let error = Dataset::assemble("some", raw, None).unwrap_err();
        assert_eq!(error, AssembleError::Labels { set: "training", rows: 3, labels: 2 });
    }

    #[test]
    fn hash_sees_rows_and_labels_and_not_the_name() {
        let mut dataset = assembled("1,2,a\n1,3,b\n", Some("1,2,a\n")).unwrap();
        let hash = dataset.hash();
        dataset.name.push('x');
        assert_eq!(dataset.hash(), hash);
        dataset.test.labels[0] = 1;
        assert_ne!(dataset.hash(), hash);
    }

    #[test]
    fn mnist_has_its_published_mean_and_deviation() {
        let images = |name: &str| unpacked(&format!("mnist/{name}-images-idx3-ubyte"));
        let labels = |name: &str| unpacked(&format!("mnist/{name}-labels-idx1-ubyte"));
        let files = (images("train"), labels("train"), images("t10k"), labels("t10k"));
        let (Some(a), Some(b), Some(c), Some(d)) = files else { return };
        let table = |images: &[u8], labels: &[u8]| {
            idx::table(idx::parse_images(images).unwrap(), &idx::parse_labels(labels).unwrap())
        };
        let mnist = Dataset::assemble("mnist", table(&a, &b), Some(table(&c, &d))).unwrap();
        assert_eq!((mnist.train.rows(), mnist.test.rows(), mnist.features), (60_000, 10_000, 784));
        let count = |class| mnist.train.labels.iter().filter(|&&label| label == class).count();
        assert_eq!((count(0), count(5), count(9)), (5923, 5421, 5949));
        let Features::U8 { scale, offset, .. } = mnist.train.features else { panic!("bytes") };
        let (mean, deviation) = (-offset / scale / 255.0, 1.0 / scale / 255.0);
        assert!((mean - 0.1307).abs() < 5e-5 && (deviation - 0.3081).abs() < 5e-5);
    }

    #[test]
    fn a9a_is_read_as_described() {
        let (Some(train), Some(test)) = (unpacked("libsvm/a9a"), unpacked("libsvm/a9a.t")) else {
            return;
        };
        let parse = |bytes: &[u8]| libsvm::parse(bytes).unwrap();
        let a9a = Dataset::assemble("a9a", parse(&train), Some(parse(&test))).unwrap();
        assert_eq!((a9a.train.rows(), a9a.test.rows(), a9a.features), (32_561, 16_282, 123));
        assert_eq!(a9a.class_names, ["-1", "1"]);
        let ones = |table: &Table| table.labels.iter().filter(|&&label| label == 1).count();
        assert_eq!((ones(&a9a.train), ones(&a9a.test)), (7841, 3847));
        let Features::U8 { values, .. } = a9a.train.features else { panic!("bytes") };
        assert_eq!(values.iter().filter(|&&byte| byte == 1).count(), 451_592);
    }
}
