//! Trajectories on disk: a schema of columns, logs that are appended to, sealed segments, readers.
//!
//! `docs/store-format.md` describes the bytes.

mod catalogue;
pub mod codec;
pub mod filesystem;
pub mod frame;
#[doc(hidden)]
pub mod hostile;
mod lock;
mod log;
mod manifest;
mod names;
mod platform;
mod records;
mod repair;
mod report;
mod schema;
mod seal;
mod segment;
mod segment_writer;
mod store;
pub mod teacher;
mod writer;

pub use records::Verify;
pub use repair::{KeyStep, RepairReport, repair, repair_in};
pub use report::{Damage, FileInfo, Info, Tail, VerifyReport};
pub use schema::{Column, MAX_COLUMNS, MAX_KEY_BYTES, Schema, check_key};
pub use seal::{SealLimits, SealReport, Skipped};
pub use store::{Store, View};
pub use writer::{ColumnData, Discarded, Writer};
