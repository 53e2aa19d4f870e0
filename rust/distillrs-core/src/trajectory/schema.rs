//! The columns of a store's records.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::codec::{CodecSpec, Dtype};
use crate::{Error, Result};

/// Most columns of a schema.
pub const MAX_COLUMNS: usize = 256;
/// Longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;
/// Most bytes of a record's column.
const MAX_RECORD_BYTES: u64 = 1 << 46;
const MAX_DIMENSIONS: usize = 32;

/// One column: what each record holds under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, an identifier.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape of a record, or of one row of it if ragged.
    pub shape: Vec<u64>,
    /// Whether records have a number of rows of their own.
    pub ragged: bool,
    /// How records are stored.
    pub codec: CodecSpec,
    /// Lengths of the tensors that lie one after the other in a record; empty for one.
    pub tensor_sizes: Vec<usize>,
    /// Elements of a record, or of one row.
    pub elements: usize,
    /// Bytes of a record, or of one row.
    pub bytes: usize,
}

/// The columns of a store. Every trajectory of it has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    columns: Vec<Column>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaForm {
    columns: Vec<ColumnForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnForm {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    #[serde(default)]
    ragged: bool,
    #[serde(default = "raw")]
    codec: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tensor_sizes: Vec<usize>,
}

fn raw() -> Value {
    CodecSpec::Raw.to_json()
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
    first && name.len() <= 64 && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

impl Column {
    fn new(form: ColumnForm) -> Result<Self> {
        let ColumnForm { name, dtype, shape, ragged, codec, tensor_sizes } = form;
        if !is_identifier(&name) {
            let allowed = "an identifier of at most 64 letters, digits and underscores";
            return Err(Error::argument("column name", format_args!("{name:?}"), allowed));
        }
        let dtype: Dtype = dtype.parse()?;
        let codec = CodecSpec::parse(&codec)?;
        codec.check_dtype(dtype)?;
        if ragged && codec != CodecSpec::Raw {
            return Err(Error::argument(format!("codec of ragged column {name:?}"), codec.name(), "raw"));
        }
        let bytes = shape.iter().try_fold(dtype.size() as u64, |product, &length| product.checked_mul(length));
        let bytes = bytes.filter(|&bytes| bytes <= MAX_RECORD_BYTES && shape.len() <= MAX_DIMENSIONS);
        let Some(bytes) = bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
            let allowed = format!("at most {MAX_DIMENSIONS} dimensions and {MAX_RECORD_BYTES} bytes");
            return Err(Error::argument(format!("shape of column {name:?}"), format_args!("{shape:?}"), allowed));
        };
        let elements = bytes / dtype.size();
        let total = tensor_sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if !tensor_sizes.is_empty() && total != Some(elements) {
            let got = total.map_or_else(|| "more than fits".to_owned(), |total| format!("a sum of {total}"));
            let allowed = format!("lengths that add up to {elements}");
            return Err(Error::argument(format!("tensor_sizes of column {name:?}"), got, allowed));
        }
        if codec.payload_bound(dtype, elements, tensor_sizes.len().max(1)).is_none() {
            let allowed = "a record that fits this machine's addresses";
            return Err(Error::argument(format!("shape of column {name:?}"), format_args!("{shape:?}"), allowed));
        }
        Ok(Self { name, dtype, shape, ragged, codec, tensor_sizes, elements, bytes })
    }

    fn form(&self) -> ColumnForm {
        ColumnForm {
            name: self.name.clone(),
            dtype: self.dtype.name().to_owned(),
            shape: self.shape.clone(),
            ragged: self.ragged,
            codec: self.codec.to_json(),
            tensor_sizes: self.tensor_sizes.clone(),
        }
    }

    /// Whether records lie on disk as they are.
    pub fn is_raw(&self) -> bool {
        self.codec == CodecSpec::Raw
    }

    /// Checks the stored length of a record against the schema, so that a hostile length is refused before it is used.
    pub(super) fn stored_length_is_possible(&self, length: u64, rows: u64) -> bool {
        if self.ragged {
            return (self.bytes as u64).checked_mul(rows) == Some(length);
        }
        if rows != 0 {
            return false;
        }
        if self.is_raw() {
            return length == self.bytes as u64;
        }
        let bound = self.codec.payload_bound(self.dtype, self.elements, self.tensor_sizes.len().max(1));
        bound.is_some_and(|bound| length <= bound as u64)
    }
}

impl Schema {
    /// Reads the JSON form; see `docs/store-format.md`.
    ///
    /// # Errors
    /// [`Error::Argument`] names the column and the field.
    pub fn parse(text: &str) -> Result<Self> {
        let form: SchemaForm = serde_json::from_str(text)
            .map_err(|error| Error::argument("schema", error, "an object with \"columns\""))?;
        if form.columns.is_empty() || form.columns.len() > MAX_COLUMNS {
            let got = format!("{} columns", form.columns.len());
            return Err(Error::argument("schema", got, format!("1 to {MAX_COLUMNS} columns")));
        }
        let columns = form.columns.into_iter().map(Column::new).collect::<Result<Vec<_>>>()?;
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].iter().any(|other| other.name == column.name) {
                return Err(Error::argument(
                    "schema",
                    format_args!("column {:?} twice", column.name),
                    "distinct names",
                ));
            }
        }
        Ok(Self { columns })
    }

    /// The full JSON form, with every default written out.
    pub fn to_json(&self) -> String {
        let form = SchemaForm { columns: self.columns.iter().map(Column::form).collect() };
        // Strings, integers and booleans cannot fail to serialise.
        serde_json::to_string(&form).unwrap_or_default()
    }

    /// The columns in the schema's order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Position of a column.
    ///
    /// # Errors
    /// [`Error::Argument`] lists the columns.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let names: Vec<_> = self.columns.iter().map(|column| column.name.as_str()).collect();
            Error::argument("column", format_args!("{name:?}"), format!("one of {}", names.join(", ")))
        })
    }

    /// The first thing in which `other` differs, for a message.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        for (ours, theirs) in self.columns.iter().zip(&other.columns) {
            if ours != theirs {
                let (ours, theirs) = (ours.form(), theirs.form());
                let text = |form| serde_json::to_string(&form).unwrap_or_default();
                return Some(format!("the store has column {}, asked for was {}", text(ours), text(theirs)));
            }
        }
        Some(format!("the store has {} columns, asked for were {}", self.columns.len(), other.columns.len()))
    }
}

/// Checks that a key can name a trajectory.
///
/// # Errors
/// [`Error::Argument`].
pub fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::argument("key", format_args!("{key:?}"), format!("1 to {MAX_KEY_BYTES} bytes of text")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(column: &str) -> Result<Schema> {
        Schema::parse(&format!("{{\"columns\": [{column}]}}"))
    }

    #[test]
    fn the_full_form_reads_back_as_itself() {
        let schema =
            one(r#"{"name": "theta", "dtype": "F32", "shape": [2, 3], "codec": "delta-int8", "tensor_sizes": [2, 4]},
            {"name": "rows", "dtype": "BF16", "shape": [], "ragged": true}"#)
            .unwrap();
        assert_eq!(Schema::parse(&schema.to_json()).unwrap(), schema);
        assert_eq!((schema.columns()[0].elements, schema.columns()[1].bytes), (6, 2));
        assert!(schema.to_json().contains("keyframe_every"));
    }

    #[test]
    fn bad_schemas_are_refused_by_name() {
        let refused = [
            (r#"{"name": "a b", "dtype": "F32", "shape": []}"#, "column name"),
            (r#"{"name": "a", "dtype": "F31", "shape": []}"#, "dtype"),
            (r#"{"name": "a", "dtype": "F32", "shape": [4294967296, 4294967296]}"#, "shape of column"),
            (r#"{"name": "a", "dtype": "F32", "shape": [-1]}"#, "schema"),
            (r#"{"name": "a", "dtype": "F32", "shape": [], "colour": 1}"#, "colour"),
            (r#"{"name": "a", "dtype": "F32", "shape": [3], "tensor_sizes": [2]}"#, "tensor_sizes"),
            (r#"{"name": "a", "dtype": "F32", "shape": [3], "ragged": true, "codec": "lossless"}"#, "ragged"),
            (r#"{"name": "a", "dtype": "F32", "shape": []}, {"name": "a", "dtype": "F32", "shape": []}"#, "twice"),
            ("", "0 columns"),
        ];
        for (column, word) in refused {
            let message = one(column).unwrap_err().to_string();
            assert!(message.contains(word), "{column}: {message}");
        }
    }

    #[test]
    fn a_difference_names_the_column() {
        let ours = one(r#"{"name": "a", "dtype": "F32", "shape": [3]}"#).unwrap();
        let theirs = one(r#"{"name": "a", "dtype": "F64", "shape": [3]}"#).unwrap();
        assert_eq!(ours.difference(&ours), None);
        assert!(ours.difference(&theirs).unwrap().contains("F64"));
    }
}
