//! Data sets from disk.

use std::path::Path;
use std::{fs, io};

use anyhow::{Result, anyhow};
use rumormill::data::Dataset;
use rumormill::data::source::{DataFormat, DataSource, Found};

/// Loads `digits`, a folder of idx files or a file with its test rows.
///
/// # Errors
/// When a file cannot be read or holds something else.
pub fn load(data: &str, test: Option<&Path>, format: Option<DataFormat>) -> Result<Dataset> {
    let source =
        DataSource { data: data.into(), test: test.map(Path::to_owned), format, text: None };
    // The error names file and cause itself.
    source.load(&look).map_err(|error| anyhow!("{error}"))
}

/// What is at a path of this machine.
///
/// # Errors
/// The system's.
pub fn look(path: &Path) -> io::Result<Found> {
    match fs::metadata(path)?.is_dir() {
        true => Ok(Found::Folder),
        false => Ok(Found::File(Box::new(fs::File::open(path)?))),
    }
}
