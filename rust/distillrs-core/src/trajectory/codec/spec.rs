//! Which codec a column has, as its schema says it.

use serde_json::{Map, Value, json};

use super::{Dtype, HEADER, delta_int8, half_delta, lossless};
use crate::{Error, Result};

/// Default number of records from one keyframe to the next: 51 records of a trajectory then cost 0.298 of `f32`.
pub const DEFAULT_KEYFRAME_EVERY: u32 = 17;

/// Longest chain that a schema may ask for.
pub const MAX_KEYFRAME_EVERY: u32 = 65_536;

/// A codec with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecSpec {
    /// The bytes as they are. The store keeps them itself, no payload header.
    Raw,
    /// `int8` difference to the reconstructed predecessor, one scale for 256 elements.
    DeltaInt8 {
        /// Records from one keyframe to the next.
        keyframe_every: u32,
    },
    /// `f16` difference to the trajectory's first record, one scale for each tensor.
    HalfDelta,
    /// Difference to the predecessor by XOR, byte shuffle, LZ4.
    Lossless {
        /// Records from one keyframe to the next.
        keyframe_every: u32,
    },
}

impl CodecSpec {
    /// Names that a schema may use.
    pub const NAMES: [&'static str; 4] = ["raw", "delta-int8", "half-delta", "lossless"];

    /// Reads `"delta-int8"` or `{"name": "delta-int8", "keyframe_every": 17}`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name, an unknown parameter, or a value out of range.
    pub fn parse(value: &Value) -> Result<Self> {
        let none = Map::new();
        let (name, fields) = match value {
            Value::String(name) => (name.as_str(), &none),
            Value::Object(fields) => match fields.get("name") {
                Some(Value::String(name)) => (name.as_str(), fields),
                _ => return Err(Error::argument("codec", value, "an object with a \"name\"")),
            },
            _ => return Err(Error::argument("codec", value, "a name or an object with a \"name\"")),
        };
        let allowed: &[&str] = match name {
            "delta-int8" | "lossless" => &["keyframe_every"],
            _ => &[],
        };
        if let Some(unknown) = fields.keys().find(|key| *key != "name" && !allowed.contains(&key.as_str())) {
            let allowed = if allowed.is_empty() { "no parameter".into() } else { allowed.join(", ") };
            return Err(Error::argument(format!("codec {name:?}"), format_args!("{unknown:?}"), allowed));
        }
        let keyframe_every = match fields.get("keyframe_every") {
            None => DEFAULT_KEYFRAME_EVERY,
            Some(value) => value
                .as_u64()
                .and_then(|count| u32::try_from(count).ok())
                .filter(|count| (1..=MAX_KEYFRAME_EVERY).contains(count))
                .ok_or_else(|| {
                    Error::argument("keyframe_every", value, format!("an integer from 1 to {MAX_KEYFRAME_EVERY}"))
                })?,
        };
        match name {
            "raw" => Ok(Self::Raw),
            "delta-int8" => Ok(Self::DeltaInt8 { keyframe_every }),
            "half-delta" => Ok(Self::HalfDelta),
            "lossless" => Ok(Self::Lossless { keyframe_every }),
            _ => Err(Error::argument("codec", format_args!("{name:?}"), format!("one of {}", Self::NAMES.join(", ")))),
        }
    }

    /// The full form, with every parameter, that [`CodecSpec::parse`] reads.
    pub fn to_json(&self) -> Value {
        match self {
            Self::DeltaInt8 { keyframe_every } | Self::Lossless { keyframe_every } => {
                json!({"name": self.name(), "keyframe_every": keyframe_every})
            }
            Self::Raw | Self::HalfDelta => json!({"name": self.name()}),
        }
    }

    /// Name in schemas.
    pub fn name(&self) -> &'static str {
        Self::NAMES[usize::from(self.code())]
    }

    /// Number in payload headers.
    pub fn code(&self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::DeltaInt8 { .. } => 1,
            Self::HalfDelta => 2,
            Self::Lossless { .. } => 3,
        }
    }

    /// Whether decoded records are, bit for bit, what was given.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Raw | Self::Lossless { .. })
    }

    /// Checks that the codec can hold a column of this type.
    ///
    /// # Errors
    /// [`Error::Argument`] names the dtype and the codecs that take it.
    pub fn check_dtype(&self, dtype: Dtype) -> Result<()> {
        match self {
            Self::DeltaInt8 { .. } | Self::HalfDelta if !matches!(dtype, Dtype::F32 | Dtype::F64) => {
                Err(Error::argument(
                    format!("dtype of codec {:?}", self.name()),
                    dtype,
                    "F32 or F64; raw and lossless take any",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Most bytes that an encoded record can have; a longer payload is damage and need not be read.
    ///
    /// `None` when the size does not fit this machine's addresses.
    pub fn payload_bound(&self, dtype: Dtype, elements: usize, tensors: usize) -> Option<usize> {
        let bytes = elements.checked_mul(dtype.size())?;
        let body = match self {
            Self::Raw => return Some(bytes),
            Self::DeltaInt8 { .. } => bytes.max(delta_int8::delta_bytes(elements)?),
            Self::HalfDelta => bytes.max(half_delta::delta_bytes(elements, tensors)?),
            Self::Lossless { .. } => lossless::bound(bytes)?,
        };
        body.checked_add(HEADER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_itself() {
        for text in CodecSpec::NAMES {
            let spec = CodecSpec::parse(&json!(text)).unwrap();
            assert_eq!(spec.name(), text);
            assert_eq!(CodecSpec::parse(&spec.to_json()).unwrap(), spec);
        }
        let spec = CodecSpec::parse(&json!({"name": "lossless", "keyframe_every": 3})).unwrap();
        assert_eq!(spec, CodecSpec::Lossless { keyframe_every: 3 });
    }

    #[test]
    fn what_is_not_a_codec_is_refused_by_name() {
        let refused = [
            (json!("zip"), "delta-int8"),
            (json!(3), "a name"),
            (json!({"keyframe_every": 3}), "name"),
            (json!({"name": "raw", "keyframe_every": 3}), "no parameter"),
            (json!({"name": "lossless", "level": 3}), "keyframe_every"),
            (json!({"name": "lossless", "keyframe_every": 0}), "from 1"),
            (json!({"name": "lossless", "keyframe_every": -1}), "from 1"),
            (json!({"name": "lossless", "keyframe_every": 1.5}), "from 1"),
            (json!({"name": "lossless", "keyframe_every": 1e12 as u64}), "from 1"),
        ];
        for (value, word) in refused {
            let message = CodecSpec::parse(&value).unwrap_err().to_string();
            assert!(message.contains(word), "{value}: {message}");
        }
    }

    #[test]
    fn bounds_do_not_overflow() {
        for name in CodecSpec::NAMES {
            let spec = CodecSpec::parse(&json!(name)).unwrap();
            assert_eq!(spec.payload_bound(Dtype::F64, usize::MAX / 2, 1), None);
        }
    }
}
