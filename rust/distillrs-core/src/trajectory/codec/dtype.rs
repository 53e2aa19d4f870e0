//! Element types, under the names that safetensors gives them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Type of a column's elements. Values are little endian on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
}

impl Dtype {
    /// Every type, with its safetensors name and its size in bytes.
    pub const ALL: [(Self, &'static str, usize); 15] = [
        (Self::Bool, "BOOL", 1),
        (Self::U8, "U8", 1),
        (Self::I8, "I8", 1),
        (Self::I16, "I16", 2),
        (Self::U16, "U16", 2),
        (Self::I32, "I32", 4),
        (Self::U32, "U32", 4),
        (Self::I64, "I64", 8),
        (Self::U64, "U64", 8),
        (Self::F8E4M3, "F8_E4M3", 1),
        (Self::F8E5M2, "F8_E5M2", 1),
        (Self::F16, "F16", 2),
        (Self::BF16, "BF16", 2),
        (Self::F32, "F32", 4),
        (Self::F64, "F64", 8),
    ];

    /// Name in safetensors headers.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// Number that stands for the type in payload headers.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|entry| entry.1 == name);
        known.map(|entry| entry.0).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|entry| entry.1).collect();
            Error::argument("dtype", format_args!("{name:?}"), format!("one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for (code, (dtype, name, size)) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!((usize::from(dtype.code()), dtype.name(), dtype.size()), (code, name, size));
            assert_eq!(name.parse::<Dtype>().unwrap(), dtype);
        }
        assert!("F12".parse::<Dtype>().is_err());
    }
}
