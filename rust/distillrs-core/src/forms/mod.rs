//! Student forms: the codes of quantised weights in few bytes, and what to keep of two kinds of parts.

mod codes;
pub mod hostile;
mod huffman;
mod scan;

pub use codes::{decode_codes, encode_codes};
pub use scan::{Kind, best_of_two_kinds};
