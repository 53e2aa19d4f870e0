//! Records whose bytes follow from key, step and column.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(dead_code, reason = "every test file uses a part")]

pub mod simulated;

use std::path::Path;

use distillrs_core::Result;
use distillrs_core::trajectory::{ColumnData, Store, Writer};

pub const SCHEMA: &str = r#"{"columns": [
    {"name": "theta", "dtype": "F32", "shape": [5]},
    {"name": "images", "dtype": "BF16", "shape": [2, 3], "ragged": true},
    {"name": "loss", "dtype": "F64", "shape": []},
    {"name": "packed", "dtype": "F32", "shape": [300], "codec": "delta-int8"},
    {"name": "exact", "dtype": "U8", "shape": [7], "codec": "lossless"},
    {"name": "half", "dtype": "F32", "shape": [4], "codec": "half-delta", "tensor_sizes": [1, 3]}
]}"#;
pub const NAMES: [&str; 6] = ["theta", "images", "loss", "packed", "exact", "half"];

/// The bytes of one column of one record.
pub fn value(key: &str, step: u64, column: &str) -> Vec<u8> {
    let start = key.bytes().map(u64::from).sum::<u64>() as f32 + step as f32 * 0.125;
    let floats = |count: usize| (0..count).flat_map(|index| (start + index as f32).to_le_bytes()).collect::<Vec<_>>();
    match column {
        "theta" => floats(5),
        "images" => floats(3 * (step as usize % 3)),
        "loss" => f64::from(start).to_le_bytes().to_vec(),
        "packed" => floats(300),
        "exact" => (0..7).map(|index| (step as u8).wrapping_mul(31).wrapping_add(index)).collect(),
        _ => floats(4),
    }
}

pub fn append(writer: &mut Writer, key: &str, step: u64) {
    assert_eq!(append_columns(writer, key, step, &NAMES).unwrap(), step);
}

pub fn append_columns(writer: &mut Writer, key: &str, step: u64, names: &[&str]) -> Result<u64> {
    let bytes: Vec<_> = names.iter().map(|name| value(key, step, name)).collect();
    let rows = |name: &str, bytes: &[u8]| (name == "images").then_some(bytes.len() as u64 / 12);
    let data: Vec<_> =
        names.iter().zip(&bytes).map(|(name, bytes)| ColumnData { name, bytes, rows: rows(name, bytes) }).collect();
    writer.append(&data)
}

pub fn write(store: &Store, key: &str, steps: u64) {
    let mut writer = store.begin(key, None).unwrap();
    for step in 0..steps {
        append(&mut writer, key, step);
        writer.flush().unwrap();
    }
    writer.complete().unwrap();
}

/// Compares every record that the store gives with what was written.
pub fn check(store: &Store, key: &str, steps: u64) {
    for step in 0..steps {
        for column in NAMES {
            let expected = value(key, step, column);
            let mut out = vec![0; expected.len()];
            store.read(key, column, &mut [(step, &mut out)]).unwrap();
            assert_eq!(store.view(key, column, step).unwrap().bytes(), out, "{key} {step} {column}");
            assert!(is_near(column, &out, &expected), "{key} {step} {column}");
        }
        assert_eq!(store.rows(key, "images", step).unwrap(), step % 3);
    }
}

/// Equal, or for the two lossy columns within their quantisation step.
pub fn is_near(column: &str, got: &[u8], due: &[u8]) -> bool {
    if !matches!(column, "packed" | "half") {
        return got == due;
    }
    let read = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    got.len() == due.len()
        && got.chunks_exact(4).zip(due.chunks_exact(4)).all(|(got, due)| (read(got) - read(due)).abs() < 2e-3)
}

pub fn create(path: &Path) -> Store {
    Store::create(path, SCHEMA, r#"{"purpose": "test"}"#, true).unwrap()
}
