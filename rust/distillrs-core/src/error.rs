//! The one error type of the core. Its variants carry the names of the Python exceptions that mirror them.

use std::path::PathBuf;

/// Result of every fallible function of the core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, told so that the reader knows what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside what the function takes.
    #[error("{name}: got {got}, allowed is {allowed}")]
    Argument {
        /// The argument's name, as the caller wrote it.
        name: String,
        /// What was passed.
        got: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// A key that the store does not hold.
    #[error("{key:?} is not in {path}")]
    KeyNotFound {
        /// The key that was asked for.
        key: String,
        /// The store.
        path: PathBuf,
    },
    /// A key that the store already holds with other content.
    #[error("{key:?} is already in {path}: {reason}")]
    KeyConflict {
        /// The key that was to be written.
        key: String,
        /// The store.
        path: PathBuf,
        /// Why the two cannot be one.
        reason: String,
    },
    /// A store or a file of it that does not exist.
    #[error("no store at {path}: {reason}")]
    StoreMissing {
        /// The path that was opened.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A store that exists where a new one was to be made.
    #[error("a store is already at {path}; pass exist_ok=True to join it")]
    StoreExists {
        /// The path that was to be created.
        path: PathBuf,
    },
    /// The schema on disk and the schema asked for differ.
    #[error("the schema of {path} differs: {reason}")]
    SchemaMismatch {
        /// The store.
        path: PathBuf,
        /// The first difference.
        reason: String,
    },
    /// Another living writer holds the lock.
    #[error("{what} in {path} is being written by process {process} on {host}")]
    StoreLocked {
        /// What is locked: a key, or the store.
        what: String,
        /// The store.
        path: PathBuf,
        /// Host of the holder.
        host: String,
        /// Process id of the holder, or a word where it is not known.
        process: String,
    },
    /// Bytes on disk that contradict their checksum or the format.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    StoreCorrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What contradicts what.
        reason: String,
    },
    /// A file of a format version that this build cannot read.
    #[error("{path} has format version {found}; this build reads {supported}")]
    StoreVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The versions this build reads.
        supported: String,
    },
    /// The operating system refused.
    #[error("{path}: {action} failed: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The caller asked for a stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An argument error from anything that can be shown.
    pub fn argument(name: impl Into<String>, got: impl ToString, allowed: impl Into<String>) -> Self {
        Self::Argument { name: name.into(), got: got.to_string(), allowed: allowed.into() }
    }
}
