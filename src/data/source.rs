//! Data sets by name: which files belong to one, looking through gzip, choosing the parser.
//!
//! Reading is input and output: the caller hands in a function that looks at a path.

use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::read::MultiGzDecoder;

use super::text::{self, Columns};
use super::{AssembleError, Dataset, Raw, csv, digits, idx, libsvm};

/// Seed of the built-in task: everybody draws the same digits.
const DIGITS_SEED: u64 = 1;

/// The name of the built-in task.
pub const DIGITS: &str = "digits";

/// The largest file, unpacked: 4 GiB.
const FILE_LEN_MAX: u64 = 4 << 30;

/// File formats of data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// A folder of MNIST-style idx files, gz or not.
    Idx,
    /// Numbers in columns, the label in the last one.
    Csv,
    /// `label index:value …`.
    Libsvm,
}

impl std::fmt::Display for DataFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DataFormat::Idx => "idx",
            DataFormat::Csv => "csv",
            DataFormat::Libsvm => "libsvm",
        })
    }
}

impl FromStr for DataFormat {
    type Err = String;
    fn from_str(name: &str) -> Result<DataFormat, String> {
        match name {
            "idx" => Ok(DataFormat::Idx),
            "csv" => Ok(DataFormat::Csv),
            "libsvm" => Ok(DataFormat::Libsvm),
            _ => Err(format!("unknown data format '{name}' (known: idx, csv, libsvm)")),
        }
    }
}

/// A file that is open for reading.
pub trait OpenFile: Read + Seek + Send {}

impl<T: Read + Seek + Send> OpenFile for T {}

/// What is at a path.
pub enum Found {
    /// A folder.
    Folder,
    /// A file, read as far as it is needed: weights may be most of what fits into memory.
    File(Box<dyn OpenFile>),
}

impl Found {
    /// A file of these bytes.
    pub fn bytes(bytes: Vec<u8>) -> Found {
        Found::File(Box::new(Cursor::new(bytes)))
    }
}

/// All bytes of a file, or one more than any may have.
///
/// # Errors
/// The system's.
pub fn read_all(file: Box<dyn OpenFile>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Looks at a path, as `std::fs` would.
pub type Look<'a> = &'a dyn Fn(&Path) -> io::Result<Found>;

/// Where a data set comes from.
#[derive(Clone, Debug)]
pub struct DataSource {
    /// [`DIGITS`], a folder or a file.
    pub data: String,
    /// Held-out rows, if they are in a file of their own.
    pub test: Option<PathBuf>,
    /// Overrides the suffix.
    pub format: Option<DataFormat>,
    /// Texts for a language model instead of numbers, and which columns they are in.
    pub text: Option<Columns>,
}

/// Why there is no data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the folder is missing.
    #[error(
        "{} has no {stem} (an MNIST-style folder holds train-images-idx3-ubyte, \
         train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each with or \
         without .gz)", folder.display()
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The name without `.gz`.
        stem: String,
    },
    /// Held-out rows for data that have their own.
    #[error(
        "{data} has held-out rows of its own, so {} cannot stand in for them; a file of held-out rows goes \
         with a file of rows", test.display()
    )]
    Test {
        /// The data.
        data: String,
        /// The file.
        test: PathBuf,
    },
    /// The suffix says nothing.
    #[error(
        "cannot tell the format of {} by its name; say --format csv, libsvm or idx",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The file does not parse.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The parts do not make a data set.
    #[error("{}: {source}", path.display())]
    Assemble {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        source: AssembleError,
    },
}

impl DataSource {
    /// Reads the data set.
    ///
    /// # Errors
    /// See [`DataError`]; each names the file.
    pub fn load(&self, look: Look<'_>) -> Result<Dataset, DataError> {
        let whole = |data: &str| match &self.test {
            Some(test) => Err(DataError::Test { data: data.into(), test: test.clone() }),
            None => Ok(()),
        };
        if self.data == DIGITS {
            whole("the built-in data set")?;
            if self.text.is_some() {
                let problem = "the built-in digits are no texts; name a .tsv, .csv, .jsonl or .txt \
                               file with --data";
                return Err(DataError::Parse { path: DIGITS.into(), problem: problem.into() });
            }
            return Ok(digits::dataset(DIGITS_SEED));
        }
        let path = Path::new(&self.data);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |source| DataError::Read { path: path.into(), source };
        let found = look(path).map_err(failed)?;
        let (train, test) = match found {
            Found::Folder if self.text.is_some() => {
                let problem = "is a folder; a language model's data are a file".into();
                return Err(DataError::Parse { path: path.into(), problem });
            }
            Found::Folder => {
                whole(&self.data)?;
                let train = idx_pair(path, "train", look)?;
                (train, Some(idx_pair(path, "t10k", look)?))
            }
            Found::File(file) => {
                let train = self.parse_table(path, read_all(file).map_err(failed)?)?;
                let test = match &self.test {
                    Some(test) => Some(self.parse_table(test, read(test, look)?)?),
                    None => None,
                };
                (train, test)
            }
        };
        Dataset::assemble(name, train, test)
            .map_err(|source| DataError::Assemble { path: path.into(), source })
    }

    fn parse_table(&self, path: &Path, bytes: Vec<u8>) -> Result<Raw, DataError> {
        if let Some(columns) = &self.text {
            let bytes = unpack(path, bytes)?;
            let problem = |problem: String| DataError::Parse { path: path.into(), problem };
            let format = text::format_of(path).map_err(problem)?;
            return text::parse(&bytes, format, columns)
                .map_err(|error| problem(error.to_string()));
        }
        let format = match self.format.or_else(|| format_of(path)) {
            Some(format) => format,
            None => return Err(DataError::Format { path: path.into() }),
        };
        let bytes = unpack(path, bytes)?;
        let problem = |problem: String| DataError::Parse { path: path.into(), problem };
        match format {
            DataFormat::Csv => csv::parse(&bytes).map_err(|error| problem(error.to_string())),
            DataFormat::Libsvm => libsvm::parse(&bytes).map_err(|error| problem(error.to_string())),
            DataFormat::Idx => Err(problem(
                "idx data is a folder of images and labels; name the folder, not a file".into(),
            )),
        }
    }
}

/// Images and labels of one part of an MNIST-style folder.
fn idx_pair(folder: &Path, part: &str, look: Look<'_>) -> Result<Raw, DataError> {
    let (images, pixels) = find(folder, &format!("{part}-images-idx3-ubyte"), look)?;
    let (labels, classes) = find(folder, &format!("{part}-labels-idx1-ubyte"), look)?;
    let parse = |path: &Path, problem: String| DataError::Parse { path: path.into(), problem };
    let pixels = idx::parse_images(&pixels).map_err(|error| parse(&images, error.to_string()))?;
    let classes = idx::parse_labels(&classes).map_err(|error| parse(&labels, error.to_string()))?;
    if pixels.nrows() != classes.len() {
        let problem = format!("{} labels for {} images", classes.len(), pixels.nrows());
        return Err(parse(&labels, problem));
    }
    if part == "train" {
        check_labels(&classes).map_err(|problem| parse(&labels, problem))?;
    }
    Ok(idx::table(pixels, &classes))
}

/// Classes are numbered without gaps, from 0 or from 1: a label beyond is damage, not a class.
fn check_labels(labels: &[u8]) -> Result<(), String> {
    let distinct = labels.iter().collect::<std::collections::BTreeSet<_>>().len();
    match labels.iter().position(|&label| usize::from(label) > distinct) {
        Some(row) => Err(format!(
            "label {} of row {row} is out of range: {distinct} different labels are numbered 0 to {}",
            labels[row],
            distinct - 1
        )),
        None => Ok(()),
    }
}

/// The file of that name, with or without `.gz`, also with a dot before `idx`, unpacked.
fn find(folder: &Path, stem: &str, look: Look<'_>) -> Result<(PathBuf, Vec<u8>), DataError> {
    let dotted = stem.replace("-idx", ".idx");
    for name in [stem.to_owned(), format!("{stem}.gz"), dotted.clone(), format!("{dotted}.gz")] {
        let path = folder.join(name);
        match look(&path) {
            Ok(Found::File(file)) => {
                let bytes = read_all(file)
                    .map_err(|source| DataError::Read { path: path.clone(), source })?;
                let bytes = unpack(&path, bytes)?;
                return Ok((path, bytes));
            }
            Ok(Found::Folder) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(DataError::Read { path, source }),
        }
    }
    Err(DataError::Missing { folder: folder.into(), stem: stem.into() })
}

fn format_of(path: &Path) -> Option<DataFormat> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix);
    match suffix {
        Some("csv" | "tsv") => Some(DataFormat::Csv),
        Some("libsvm" | "svm" | "svmlight") => Some(DataFormat::Libsvm),
        _ => None,
    }
}

fn read(path: &Path, look: Look<'_>) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Read { path: path.into(), source };
    match look(path).map_err(failed)? {
        Found::File(file) => read_all(file).map_err(failed),
        Found::Folder => Err(failed(io::ErrorKind::IsADirectory.into())),
    }
}

/// The bytes of a file, unpacked when they are gzip, whatever the name says.
fn unpack(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, DataError> {
    if bytes.len() as u64 <= FILE_LEN_MAX && !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(&bytes[..])
        .take(FILE_LEN_MAX + 1)
        .read_to_end(&mut unpacked)
        .map_err(|source| DataError::Read { path: path.into(), source })?;
    if unpacked.len() as u64 > FILE_LEN_MAX {
        let problem = format!("holds more than {FILE_LEN_MAX} bytes");
        return Err(DataError::Parse { path: path.into(), problem });
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Write;

    fn load(data: &str, files: &[(&str, &[u8])]) -> Result<Dataset, DataError> {
        let files: BTreeMap<&Path, &[u8]> =
            files.iter().map(|(name, bytes)| (Path::new(*name), *bytes)).collect();
        let source = DataSource { data: data.into(), test: None, format: None, text: None };
        source.load(&|path| match files.get(path) {
            Some(bytes) => Ok(Found::bytes(bytes.to_vec())),
            None if files.keys().any(|file| file.starts_with(path)) => Ok(Found::Folder),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn gzip_is_looked_through_and_the_suffix_below_it_counts() {
        let text: String = (0..40).map(|i| format!("{i},{},{}\n", i * 7 % 5, i % 2)).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        let packed = encoder.finish().unwrap();
        let files: [(&str, &[u8]); 2] = [("a.csv", text.as_bytes()), ("b.csv.gz", &packed)];
        let (a, b) = (load("a.csv", &files).unwrap(), load("b.csv.gz", &files).unwrap());
        assert_eq!(a.hash(), b.hash());
        let cut = &packed[..packed.len() / 2];
        let error = load("b.csv.gz", &[("b.csv.gz", cut)]).unwrap_err().to_string();
        assert!(error.contains("b.csv.gz"), "{error}");
    }

    #[test]
    fn missing_unnamed_and_truncated_files_are_named() {
        let error = |data: &str, files: &[(&str, &[u8])]| {
            load(data, files).map(|_| ()).unwrap_err().to_string()
        };
        let absent = error("absent.csv", &[]);
        assert!(absent.contains("absent.csv"), "{absent}");
        let strange = error("data.bin", &[("data.bin", b"1 2 3")]);
        assert!(strange.contains("--format"), "{strange}");
        let empty = error("folder", &[("folder/other", b"")]);
        assert!(empty.contains("train-images-idx3-ubyte"), "{empty}");
    }
}
