//! Data sets from files: finding them, looking through gzip, choosing the parser.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::read::MultiGzDecoder;
use rumormill::data::{AssembleError, Dataset, Raw, csv, digits, idx, libsvm};

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

/// Where a data set comes from.
#[derive(Clone, Debug)]
pub struct DataSource {
    /// [`DIGITS`], a folder or a file.
    pub data: String,
    /// Held-out rows, if they are in a file of their own.
    pub test: Option<PathBuf>,
    /// Overrides the suffix.
    pub format: Option<DataFormat>,
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
    pub fn load(&self) -> Result<Dataset, DataError> {
        if self.data == DIGITS {
            return Ok(digits::dataset(DIGITS_SEED));
        }
        let path = Path::new(&self.data);
        let metadata = std::fs::metadata(path)
            .map_err(|source| DataError::Read { path: path.into(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (train, test) = if metadata.is_dir() {
            let train = idx_pair(path, "train")?;
            (train, Some(idx_pair(path, "t10k")?))
        } else {
            let test = self.test.as_deref().map(|test| self.read_table(test)).transpose()?;
            (self.read_table(path)?, test)
        };
        Dataset::assemble(name, train, test)
            .map_err(|source| DataError::Assemble { path: path.into(), source })
    }

    fn read_table(&self, path: &Path) -> Result<Raw, DataError> {
        let format = match self.format.or_else(|| format_of(path)) {
            Some(format) => format,
            None => return Err(DataError::Format { path: path.into() }),
        };
        let bytes = read(path)?;
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
fn idx_pair(folder: &Path, part: &str) -> Result<Raw, DataError> {
    let images = find(folder, &format!("{part}-images-idx3-ubyte"))?;
    let labels = find(folder, &format!("{part}-labels-idx1-ubyte"))?;
    let parse = |path: &Path, problem: String| DataError::Parse { path: path.into(), problem };
    let pixels =
        idx::parse_images(&read(&images)?).map_err(|error| parse(&images, error.to_string()))?;
    let classes =
        idx::parse_labels(&read(&labels)?).map_err(|error| parse(&labels, error.to_string()))?;
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

/// The file of that name, with or without `.gz`, also with a dot before `idx`.
fn find(folder: &Path, stem: &str) -> Result<PathBuf, DataError> {
    let dotted = stem.replace("-idx", ".idx");
    let names = [stem.to_owned(), format!("{stem}.gz"), dotted.clone(), format!("{dotted}.gz")];
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| DataError::Missing { folder: folder.into(), stem: stem.into() })
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

/// The bytes of a file, unpacked when they are gzip, whatever the name says.
fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = [0; 2];
    let got = file.read(&mut magic).map_err(failed)?;
    let rest = io::Cursor::new(magic[..got].to_vec()).chain(file);
    let mut bytes = Vec::new();
    if magic == [0x1f, 0x8b] {
        MultiGzDecoder::new(rest).take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)
    } else {
        rest.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)
    }
    .map_err(failed)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        let problem = format!("holds more than {FILE_LEN_MAX} bytes");
        return Err(DataError::Parse { path: path.into(), problem });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn source(path: &Path) -> DataSource {
        DataSource { data: path.to_str().unwrap().into(), test: None, format: None }
    }

    #[test]
    fn gzip_is_looked_through_and_the_suffix_below_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..40).map(|i| format!("{i},{},{}\n", i * 7 % 5, i % 2)).collect();
        let plain = folder.path().join("a.csv");
        std::fs::write(&plain, &text).unwrap();
        let packed = folder.path().join("b.csv.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        std::fs::write(&packed, encoder.finish().unwrap()).unwrap();
        let (a, b) = (source(&plain).load().unwrap(), source(&packed).load().unwrap());
        assert_eq!(a.hash(), b.hash());
    }

    #[test]
    fn missing_unnamed_and_truncated_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let absent = source(&folder.path().join("absent.csv")).load().unwrap_err().to_string();
        assert!(absent.contains("absent.csv"), "{absent}");
        let strange = folder.path().join("data.bin");
        std::fs::write(&strange, b"1 2 3").unwrap();
        let error = source(&strange).load().unwrap_err().to_string();
        assert!(error.contains("--format"), "{error}");
        let error = source(folder.path()).load().unwrap_err().to_string();
        assert!(error.contains("train-images-idx3-ubyte"), "{error}");
    }
}
