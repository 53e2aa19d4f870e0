//! The numerics and the storage of distillrs, free of Python.

mod digest;
mod error;
pub mod forms;
pub mod host;
pub mod ops;
pub mod parallel;
pub mod random;
pub mod schedule;
pub mod select;
mod simd;
pub mod trajectory;

pub use error::{Error, Result};
