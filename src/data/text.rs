//! Texts for language models: labeled ones in `.tsv`, `.csv` or `.jsonl`, running text in `.txt`.
//!
//! Columns are named by the header line, or counted from 1. Without a word from the user the text is
//! the column called `sentence`, `text`, `content` or `question`, and the label the one called
//! `label`, `class`, `target` or `category`; a table of two columns whose first line names neither has
//! no header, and its label is in the last column. In `.csv` a cell may stand in double quotes and then
//! hold commas, line breaks and doubled quotes; in `.tsv` a quote is a character like any other.
//!
//! Running text is cut at line ends into rows of [`PASSAGE_LEN`] bytes or a little more; a row's label
//! is empty.

use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use super::{Features, Raw, Scaling, excerpt};

/// Bytes after which a row of running text ends with its line.
pub const PASSAGE_LEN: usize = 256;

/// Names of a column of texts, if the user says none.
const TEXT_NAMES: [&str; 4] = ["sentence", "text", "content", "question"];

/// Names of a column of labels.
const LABEL_NAMES: [&str; 4] = ["label", "class", "target", "category"];

/// Which columns, or keys of a JSON object, hold text and label; names or numbers from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The text's.
    pub text: Option<String>,
    /// The label's.
    pub label: Option<String>,
}

/// The shape of a file of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// Cells separated by tabs.
    Tsv,
    /// Cells separated by commas, quotes allowed.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// Running text.
    Plain,
    /// Apache Parquet; its columns are cells.
    #[cfg(feature = "parquet")]
    Parquet,
}

/// Why a file holds no texts; lines and columns are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// The bytes are no text.
    #[error("line {0} is not UTF-8 text")]
    Encoding(usize),
    /// No line holds data.
    #[error("no rows")]
    Empty,
    /// A column that the first line does not have.
    #[error("no column {asked:?}; the first line has {found:?}: name one with {flag}")]
    Column {
        /// The name asked for, or what would be taken.
        asked: String,
        /// The first line's cells.
        found: Vec<String>,
        /// The flag that says it.
        flag: &'static str,
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
    /// A quote that never ends.
    #[error("line {0}: a quoted cell is not closed")]
    Quote(usize),
    /// A line that is no JSON object.
    #[error("line {line}: {problem}")]
    Json {
        /// The line.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file that is no whole parquet file.
    #[error("no parquet file: {0}")]
    Parquet(String),
    /// A row whose text is empty.
    #[error("line {0}: the text is empty; take the row out")]
    NoText(usize),
    /// A row whose label is empty.
    #[error("line {0}: the label is empty; take the row out")]
    NoLabel(usize),
}

/// The format that a file's name promises.
///
/// # Errors
/// What the name would have to be.
pub fn format_of(path: &Path) -> Result<TextFormat, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("tsv") => Ok(TextFormat::Tsv),
        Some("csv") => Ok(TextFormat::Csv),
        Some("jsonl" | "ndjson") => Ok(TextFormat::Jsonl),
        Some("txt") => Ok(TextFormat::Plain),
        #[cfg(feature = "parquet")]
        Some("parquet") => Ok(TextFormat::Parquet),
        #[cfg(not(feature = "parquet"))]
        Some("parquet") => {
            Err("this program was built without parquet: build it with `--features \
                                parquet`, or write the file as .jsonl or .tsv"
                .into())
        }
        _ => Err("texts are in .tsv, .csv, .jsonl or .txt files, each with or without .gz".into()),
    }
}

/// Parses a file of texts.
///
/// # Errors
/// At the first line that does not fit.
pub fn parse(bytes: &[u8], format: TextFormat, columns: &Columns) -> Result<Raw, TextError> {
    #[cfg(feature = "parquet")]
    if format == TextFormat::Parquet {
        return finish(table(
            super::parquet::rows(bytes).map_err(TextError::Parquet)?,
            columns,
            true,
        )?);
    }
    let text = super::text(bytes).map_err(TextError::Encoding)?;
    finish(match format {
        #[cfg(feature = "parquet")]
        TextFormat::Parquet => unreachable!("read above, as it is no text"),
        TextFormat::Plain => passages(text),
        TextFormat::Jsonl => objects(text, columns)?,
        TextFormat::Tsv => {
            let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
            let rows = lines.map(|(line, number)| {
                (number, line.split('\t').map(|cell| cell.trim().to_owned()).collect())
            });
            table(rows.collect(), columns, false)?
        }
        TextFormat::Csv => table(quoted(text)?, columns, false)?,
    })
}

fn finish((texts, labels): (Vec<String>, Vec<String>)) -> Result<Raw, TextError> {
    if texts.is_empty() {
        return Err(TextError::Empty);
    }
    Ok(Raw { features: Features::Text(texts), labels, scaling: Scaling::Global })
}

fn passages(text: &str) -> (Vec<String>, Vec<String>) {
    let mut rows = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let row = rows.last_mut().expect("never empty");
        row.push_str(line);
        if row.len() >= PASSAGE_LEN {
            rows.push(String::new());
        }
    }
    rows.retain(|row| !row.trim().is_empty());
    let labels = vec![String::new(); rows.len()];
    (rows, labels)
}

/// Numbered lines of cells.
pub(super) type Rows = Vec<(usize, Vec<String>)>;

/// Cells of comma-separated lines; a quoted cell may go over several.
fn quoted(text: &str) -> Result<Rows, TextError> {
    let mut rows: Rows = Vec::new();
    let mut characters = text.chars().peekable();
    let mut line = 1;
    while characters.peek().is_some() {
        let first = line;
        let mut cells = Vec::new();
        let mut cell = String::new();
        let mut open = false;
        loop {
            match characters.next() {
                Some('"') if open && characters.peek() == Some(&'"') => {
                    characters.next();
                    cell.push('"');
                }
                Some('"') if open => open = false,
                Some('"') if cell.trim().is_empty() => {
                    cell.clear();
                    open = true;
                }
                Some(',') if !open => cells.push(std::mem::take(&mut cell).trim().to_owned()),
                Some('\n') if !open => {
                    line += 1;
                    break;
                }
                None if open => return Err(TextError::Quote(first)),
                None => break,
                Some(character) => {
                    line += usize::from(character == '\n');
                    cell.push(character);
                }
            }
        }
        cells.push(cell.trim().to_owned());
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push((first, cells));
        }
    }
    Ok(rows)
}

/// Texts and labels of a table; whether its first row is a header is seen, unless it `has_header` for sure.
fn table(
    rows: Rows,
    columns: &Columns,
    has_header: bool,
) -> Result<(Vec<String>, Vec<String>), TextError> {
    let (_, header) = rows.first().ok_or(TextError::Empty)?;
    let expected = header.len();
    let named = |names: &[&str]| {
        header.iter().position(|cell| names.contains(&cell.to_ascii_lowercase().as_str()))
    };
    let position = |asked: &Option<String>, names: &[&str], flag| match asked {
        None => Ok(named(names)),
        Some(asked) => {
            let number = asked.parse().ok().filter(|number| (1..=expected).contains(number));
            let at = header.iter().position(|cell| cell == asked);
            at.or(number.map(|number: usize| number - 1)).map(Some).ok_or_else(|| {
                TextError::Column { asked: asked.clone(), found: header.clone(), flag }
            })
        }
    };
    let text = position(&columns.text, &TEXT_NAMES, "--text-column")?;
    let label = position(&columns.label, &LABEL_NAMES, "--label-column")?;
    let is_header = has_header
        || [text, label].into_iter().flatten().any(|at| {
            let cell = header[at].to_ascii_lowercase();
            let asked = [&columns.text, &columns.label];
            TEXT_NAMES.contains(&cell.as_str())
                || LABEL_NAMES.contains(&cell.as_str())
                || asked.into_iter().flatten().any(|asked| *asked == header[at])
        });
    let absent = |names: &[&str], flag| TextError::Column {
        asked: names.join("|"),
        found: header.iter().map(|cell| excerpt(cell)).collect(),
        flag,
    };
    let other = |at: usize| (expected == 2).then(|| 1 - at);
    let (text, label) = match (text, label) {
        (Some(text), Some(label)) => (text, label),
        (Some(text), None) => {
            (text, other(text).ok_or_else(|| absent(&LABEL_NAMES, "--label-column"))?)
        }
        (None, Some(label)) => {
            (other(label).ok_or_else(|| absent(&TEXT_NAMES, "--text-column"))?, label)
        }
        (None, None) if expected == 2 => (0, 1),
        (None, None) => return Err(absent(&TEXT_NAMES, "--text-column")),
    };
    let (mut texts, mut labels) = (Vec::new(), Vec::new());
    for (line, mut cells) in rows.into_iter().skip(usize::from(is_header)) {
        if cells.len() != expected {
            return Err(TextError::Ragged { line, cells: cells.len(), expected });
        }
        push(line, &mut texts, std::mem::take(&mut cells[text]), TextError::NoText)?;
        push(line, &mut labels, std::mem::take(&mut cells[label]), TextError::NoLabel)?;
    }
    Ok((texts, labels))
}

fn push(
    line: usize,
    to: &mut Vec<String>,
    value: String,
    empty: fn(usize) -> TextError,
) -> Result<(), TextError> {
    if value.trim().is_empty() {
        return Err(empty(line));
    }
    to.push(value);
    Ok(())
}

/// A label as JSON has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Cell {
    Text(String),
    Whole(i64),
    Truth(bool),
    Number(f64),
}

impl Cell {
    fn into_text(self) -> String {
        match self {
            Cell::Text(text) => text,
            Cell::Whole(number) => number.to_string(),
            Cell::Truth(truth) => truth.to_string(),
            Cell::Number(number) => number.to_string(),
        }
    }
}

#[cfg(feature = "language")]
fn objects(text: &str, columns: &Columns) -> Result<(Vec<String>, Vec<String>), TextError> {
    let (mut texts, mut labels) = (Vec::new(), Vec::new());
    for (text, line) in text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty()) {
        let object: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text)
                .map_err(|error| TextError::Json { line, problem: error.to_string() })?;
        let cell = |asked: &Option<String>, names: &[&str], flag: &str| {
            let value = match asked {
                Some(asked) => object.get(asked),
                None => names.iter().find_map(|&name| object.get(name)),
            };
            let value = value.and_then(|value| serde_json::from_value::<Cell>(value.clone()).ok());
            value.map(Cell::into_text).ok_or_else(|| {
                let name = asked.clone().unwrap_or_else(|| names.join("|"));
                let keys: Vec<&String> = object.keys().collect();
                let problem = format!("no text or number {name:?} among {keys:?}; see {flag}");
                TextError::Json { line, problem }
            })
        };
        let text = cell(&columns.text, &TEXT_NAMES, "--text-column")?;
        let label = cell(&columns.label, &LABEL_NAMES, "--label-column")?;
        push(line, &mut texts, text, TextError::NoText)?;
        push(line, &mut labels, label, TextError::NoLabel)?;
    }
    Ok((texts, labels))
}

#[cfg(not(feature = "language"))]
fn objects(_: &str, _: &Columns) -> Result<(Vec<String>, Vec<String>), TextError> {
    let _ = Cell::into_text;
    Err(TextError::Json { line: 1, problem: "this build reads no JSON (feature language)".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, format: TextFormat, columns: [Option<&str>; 2]) -> Result<String, String> {
        let [text_column, label] = columns.map(|name| name.map(str::to_owned));
        let columns = Columns { text: text_column, label };
        let raw = parse(text.as_bytes(), format, &columns).map_err(|error| error.to_string())?;
        let Features::Text(texts) = raw.features else { panic!("texts") };
        let rows = texts.iter().zip(&raw.labels).map(|(text, label)| format!("{text}={label}"));
        Ok(rows.collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn columns_are_found_by_name_by_number_and_by_place() {
        use TextFormat::{Csv, Tsv};
        assert_eq!(rows("label\tsentence\n1\ta b\n", Tsv, [None; 2]).unwrap(), "a b=1");
        assert_eq!(rows("good \"one\t1\nbad\t0\n", Tsv, [None; 2]).unwrap(), "good \"one=1|bad=0");
        let three = "id,review,stars\n7,\"so, \"\"so\"\"\nx\",5\n";
        assert_eq!(rows(three, Csv, [Some("review"), Some("3")]).unwrap(), "so, \"so\"\nx=5");
        let error = rows(three, Csv, [Some("text"), None]).unwrap_err();
        assert!(error.contains("review") && error.contains("--text-column"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_line() {
        use TextFormat::{Csv, Tsv};
        for (text, format, says) in [
            ("a\t1\n\t0\n", Tsv, "line 2: the text is empty"),
            ("a\t1\nb\t\n", Tsv, "line 2: the label is empty"),
            ("a\t1\nb\n", Tsv, "line 2 has 1 columns"),
            ("a,1\n\"b,0\n", Csv, "line 2: a quoted cell"),
            ("", Tsv, "no rows"),
        ] {
            let error = rows(text, format, [None; 2]).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        #[cfg(not(feature = "parquet"))]
        assert!(format_of(Path::new("a.parquet")).unwrap_err().contains(".jsonl"));
    }

    #[cfg(feature = "language")]
    #[test]
    fn json_lines_have_keys() {
        let text = "{\"text\": \"a\", \"label\": 1}\n\n{\"text\": \"b\", \"label\": \"x\"}\n";
        assert_eq!(rows(text, TextFormat::Jsonl, [None; 2]).unwrap(), "a=1|b=x");
        let error = rows("{\"t\": 1}\n", TextFormat::Jsonl, [None; 2]).unwrap_err();
        assert!(error.contains("line 1") && error.contains("\"t\""), "{error}");
    }

    #[test]
    fn running_text_is_cut_at_line_ends_and_loses_nothing() {
        let text: String = (0..100).map(|line| format!("line {line} of a text\n")).collect();
        let raw = parse(text.as_bytes(), TextFormat::Plain, &Columns::default()).unwrap();
        let Features::Text(texts) = raw.features.clone() else { panic!("texts") };
        assert_eq!(texts.concat(), text);
        assert!(texts.iter().all(|row| row.ends_with('\n') && row.len() < PASSAGE_LEN + 30));
        let dataset = crate::data::Dataset::assemble("t", raw, None).unwrap();
        assert_eq!((dataset.classes, dataset.train.rows() + dataset.test.rows()), (1, texts.len()));
    }
}
