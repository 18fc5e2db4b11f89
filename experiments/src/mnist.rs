//! MNIST-style idx files, gzipped, as normalised rows.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use ndarray::Array2;

/// Images as rows with pixels normalised to MNIST's mean 0.1307 and deviation 0.3081, and labels.
#[derive(Clone, Debug)]
pub struct Images {
    /// One image a row.
    pub rows: Array2<f32>,
    /// One label (0–9) an image.
    pub labels: Vec<u8>,
}

/// Reads `PREFIX-images-idx3-ubyte.gz` and `PREFIX-labels-idx1-ubyte.gz` of a folder.
///
/// # Errors
/// When a file is missing, cut short, or holds something else.
pub fn load(folder: &Path, prefix: &str) -> Result<Images> {
    let images = unpack(&folder.join(format!("{prefix}-images-idx3-ubyte.gz")), 0x803, 16)?;
    let labels = unpack(&folder.join(format!("{prefix}-labels-idx1-ubyte.gz")), 0x801, 8)?.1;
    let (header, pixels) = images;
    let number =
        |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes")) as usize;
    let (count, size) = (number(4), number(8) * number(12));
    ensure!(pixels.len() == count * size, "{count} images of {size} pixels are cut short");
    ensure!(labels.len() == count, "{} labels for {count} images", labels.len());
    ensure!(labels.iter().all(|&label| label < 10), "a label is above 9");
    let scaled = pixels.iter().map(|&p| (f32::from(p) / 255.0 - 0.1307) / 0.3081).collect();
    let rows = Array2::from_shape_vec((count, size), scaled).context("image sizes")?;
    Ok(Images { rows, labels })
}

/// The header and the rest of a gzipped idx file.
fn unpack(path: &Path, magic: u32, header: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot unpack {shown}"))?;
    ensure!(bytes.len() >= header, "{shown} is shorter than its header");
    ensure!(bytes[..4] == magic.to_be_bytes(), "{shown} has another magic number");
    let rest = bytes.split_off(header);
    Ok((bytes, rest))
}
