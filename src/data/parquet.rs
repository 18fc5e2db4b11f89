//! Rows of an Apache Parquet file as lines of cells.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use super::text::Rows;

/// The names of the columns, and behind them the rows. A cell of another type than a string is its value
/// written out.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn rows(file: &[u8]) -> Result<Rows, String> {
    let file = Bytes::copy_from_slice(file);
    // The library checks what it reads, but not everywhere: a damaged file is no reason to end.
    match catch_unwind(AssertUnwindSafe(|| read(file))) {
        Ok(rows) => rows.map_err(|error| error.to_string()),
        Err(_) => Err("its reader gave up; the file is damaged".into()),
    }
}

fn read(file: Bytes) -> Result<Rows, ParquetError> {
    let reader = SerializedFileReader::new(file)?;
    let schema = reader.metadata().file_metadata().schema();
    let names = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
    let mut rows = vec![(0, names)];
    for (row, number) in reader.get_row_iter(None)?.zip(1..) {
        rows.push((number, cells(row?)));
    }
    Ok(rows)
}

fn cells(row: Row) -> Vec<String> {
    let cell = |(_, field)| match field {
        Field::Null => String::new(),
        Field::Str(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    row.into_columns().into_iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn file() -> Vec<u8> {
        let schema = "message reviews { REQUIRED BYTE_ARRAY text (UTF8); REQUIRED INT64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = ["a good film", "a bad film"].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 0], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn rows_are_cells_below_the_names_of_their_columns() {
        let rows = rows(&file()).unwrap();
        let cells: Vec<String> = rows.into_iter().map(|(_, cells)| cells.join("|")).collect();
        assert_eq!(cells, ["text|label", "a good film|1", "a bad film|0"]);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let whole = file();
        for at in 0..whole.len() {
            assert!(rows(&whole[..at]).is_err(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 0xff;
            // Some bytes do not matter, or are text.
            let _ = rows(&flipped);
        }
    }
}
