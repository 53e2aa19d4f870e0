//! Trajectories on disk: a schema of columns, logs that are appended to, sealed segments, readers.

pub mod codec;
