//! Names of the files in a store's directory.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::digest::xxh3_128;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const STORE_LOCK: &str = "store.lock";

/// Files named by a trajectory's key.
pub(super) fn log_name(key: &str) -> String {
    format!("log-{}.dlog", key_id(key))
}

pub(super) fn lock_name(key: &str) -> String {
    format!("log-{}.lock", key_id(key))
}

pub(super) fn owner_name(key: &str) -> String {
    format!("log-{}.owner", key_id(key))
}

/// Says that the log's last sync failed before anybody wrote to it.
pub(super) fn unsynced_name(key: &str) -> String {
    format!("log-{}.unsynced", key_id(key))
}

/// 32 hex digits that stand for a key in file names, whatever characters it has.
fn key_id(key: &str) -> String {
    format!("{:032x}", xxh3_128(key.as_bytes()))
}

pub(super) fn new_segment_name() -> String {
    format!("seg-{}.safetensors", unique())
}

pub(super) fn is_segment(name: &str) -> bool {
    name.strip_prefix("seg-").and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(is_hex)
}

pub(super) fn is_log(name: &str) -> bool {
    name.strip_prefix("log-").and_then(|rest| rest.strip_suffix(".dlog")).is_some_and(is_hex)
}

pub(super) fn is_temporary(name: &str) -> bool {
    name.ends_with(".tmp") && (name.starts_with("seg-") || name.starts_with("log-") || name.starts_with("manifest."))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A number that no other process draws: the system's own randomness, which seeds every `RandomState`.
pub(super) fn unique_number() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// 16 hex digits of [`unique_number`].
pub(super) fn unique() -> String {
    format!("{:016x}", unique_number())
}
