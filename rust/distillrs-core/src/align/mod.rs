//! Alignment of two tokenizers: where both streams of tokens reach the same byte, and which tokens both know.

mod chunks;
mod ranks;
mod vocabulary;

pub use chunks::{Boundary, Spans, merge};
pub use vocabulary::{Vocabulary, shared_tokens};
