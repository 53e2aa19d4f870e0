//! Codes of few bits as bytes: each in as many bits, or by a Huffman code where that is shorter.
//!
//! A stream begins with 16 bytes: kind (0 fixed, 1 Huffman), bits, six zeros, the number of codes (u64, little-endian).
//! Fixed: the codes, lowest bits first. Huffman: the length of each symbol's code word, two to a byte, lowest first; the
//! bytes of each block of [`BLOCK`] codes (u32); the blocks. Code words are canonical: shorter ones first, then by
//! symbol; their highest bit comes first. Bits after the last code of a block are 0.

use super::huffman::{Decoder, Words};
use crate::{Error, Result, parallel};

/// Codes of a block, which is coded and read on its own.
pub(super) const BLOCK: usize = 1 << 16;
const HEADER: usize = 16;
const FIXED: u8 = 0;
const HUFFMAN: u8 = 1;

fn damaged(reason: impl Into<String>) -> Error {
    Error::argument("codes", reason.into(), "a stream as encode_codes writes it")
}

fn check_bits(bits: u8) -> Result<()> {
    if (1..=8).contains(&bits) { Ok(()) } else { Err(Error::argument("bits", bits, "1 to 8")) }
}

/// The shorter of both streams of codes below `2^bits`.
///
/// # Errors
/// [`Error::Argument`] for a number of bits outside 1 to 8 or a code of more; whatever `check` returns.
pub fn encode_codes(codes: &[u8], bits: u8, check: &dyn Fn() -> Result<()>) -> Result<Vec<u8>> {
    check_bits(bits)?;
    if let Some(place) = codes.iter().position(|&code| u32::from(code) >> bits > 0) {
        let got = format!("{} in place {place}", codes[place]);
        return Err(Error::argument("codes", got, format!("codes of {bits} bits")));
    }
    check()?;
    let blocks: Vec<&[u8]> = codes.chunks(BLOCK).collect();
    let counts = parallel::map(blocks.clone(), |block: &[u8]| {
        let mut counts = vec![0u64; 1 << bits];
        block.iter().for_each(|&code| counts[usize::from(code)] += 1);
        counts
    });
    let mut total = vec![0u64; 1 << bits];
    for counts in counts {
        total.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let words = Words::of(&total);
    let fixed = (codes.len() * usize::from(bits)).div_ceil(8);
    let variable = words.bits(&total).div_ceil(8) as usize + blocks.len() * 5 + (1 << bits) / 2;
    check()?;
    let mut out = Vec::with_capacity(HEADER + fixed.min(variable));
    let kind = if variable < fixed { HUFFMAN } else { FIXED };
    out.extend_from_slice(&[kind, bits, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&(codes.len() as u64).to_le_bytes());
    let coded = parallel::map(blocks, |block: &[u8]| {
        let mut writer = Writer::default();
        if kind == HUFFMAN {
            block.iter().for_each(|&code| writer.put(words.word(code), words.length(code)));
        } else {
            block.iter().for_each(|&code| writer.put(u32::from(code), u32::from(bits)));
        }
        writer.finish()
    });
    if kind == HUFFMAN {
        out.extend(words.lengths().chunks(2).map(|pair| pair[0] | pair[1] << 4));
        for block in &coded {
            // At most 15 bits for each of BLOCK codes.
            out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        }
    }
    coded.iter().for_each(|block| out.extend_from_slice(block));
    Ok(out)
}

/// Reads a stream of `out.len()` codes of `bits` bits.
///
/// # Errors
/// [`Error::Argument`] for bytes that are no such stream; nothing that they say is trusted. Whatever `check` returns.
pub fn decode_codes(stream: &[u8], bits: u8, out: &mut [u8], check: &dyn Fn() -> Result<()>) -> Result<()> {
    check_bits(bits)?;
    let (header, body) = stream.split_at_checked(HEADER).ok_or_else(|| damaged(format!("{} bytes", stream.len())))?;
    let (about, count) = header.split_at(8);
    let count = u64::from_le_bytes(std::array::from_fn(|place| count[place]));
    if about[1] != bits || about[2..] != [0; 6] {
        return Err(damaged(format!("the header {about:?} for codes of {bits} bits")));
    }
    if usize::try_from(count) != Ok(out.len()) {
        return Err(damaged(format!("{count} codes where {} are due", out.len())));
    }
    check()?;
    match about[0] {
        FIXED => decode_fixed(body, bits, out),
        HUFFMAN => decode_huffman(body, bits, out),
        kind => Err(damaged(format!("the kind {kind}"))),
    }
}

fn decode_fixed(body: &[u8], bits: u8, out: &mut [u8]) -> Result<()> {
    let due = (out.len() as u128 * u128::from(bits)).div_ceil(8);
    if body.len() as u128 != due {
        return Err(damaged(format!("{} bytes of codes where {due} are due", body.len())));
    }
    let block_bytes = BLOCK / 8 * usize::from(bits);
    let blocks: Vec<_> = body.chunks(block_bytes).zip(out.chunks_mut(BLOCK)).collect();
    let results = parallel::map(blocks, |(bytes, out)| {
        let mut reader = Reader::new(bytes);
        for code in out {
            *code = (reader.peek() & ((1 << bits) - 1)) as u8;
            reader.skip(u32::from(bits));
        }
        reader.finish()
    });
    results.into_iter().collect()
}

fn decode_huffman(body: &[u8], bits: u8, out: &mut [u8]) -> Result<()> {
    let table = (1usize << bits) / 2;
    let count = out.len().div_ceil(BLOCK);
    let sizes = count.checked_mul(4).ok_or_else(|| damaged("too many blocks"))?;
    let short = || damaged(format!("{} bytes for the code words and the blocks' sizes", body.len()));
    let (lengths, rest) = body.split_at_checked(table).ok_or_else(short)?;
    let (sizes, mut rest) = rest.split_at_checked(sizes).ok_or_else(short)?;
    let lengths: Vec<u8> = lengths.iter().flat_map(|&byte| [byte & 15, byte >> 4]).collect();
    let decoder = Decoder::new(&lengths).ok_or_else(|| damaged("lengths of code words that make no code"))?;
    let mut blocks = Vec::with_capacity(count);
    for (size, out) in sizes.chunks_exact(4).zip(out.chunks_mut(BLOCK)) {
        let size = u32::from_le_bytes(std::array::from_fn(|place| size[place])) as usize;
        let (bytes, after) = rest.split_at_checked(size).ok_or_else(|| damaged(format!("a block of {size} bytes")))?;
        blocks.push((bytes, out));
        rest = after;
    }
    if !rest.is_empty() {
        return Err(damaged(format!("{} bytes after the last block", rest.len())));
    }
    let results = parallel::map(blocks, |(bytes, out)| {
        let mut reader = Reader::new(bytes);
        for code in out {
            let (symbol, length) =
                decoder.symbol(reader.peek()).ok_or_else(|| damaged("bits that are no code word"))?;
            *code = symbol;
            reader.skip(length);
        }
        reader.finish()
    });
    results.into_iter().collect()
}

/// Bits into bytes, lowest first.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    bits: u64,
    held: u32,
}

impl Writer {
    #[inline]
    fn put(&mut self, value: u32, length: u32) {
        self.bits |= u64::from(value) << self.held;
        self.held += length;
        if self.held >= 32 {
            self.bytes.extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.held -= 32;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&self.bits.to_le_bytes()[..self.held.div_ceil(8) as usize]);
        self.bytes
    }
}

/// Bytes as bits, lowest first; beyond the end there are zeros, which [`Reader::finish`] refuses.
struct Reader<'a> {
    rest: &'a [u8],
    bits: u64,
    held: u32,
    skipped: u64,
    total: u64,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, bits: 0, held: 0, skipped: 0, total: bytes.len() as u64 * 8 }
    }

    /// At least 15 bits.
    #[inline]
    fn peek(&mut self) -> u32 {
        if self.held < 16 {
            if let Some((word, after)) = self.rest.split_first_chunk::<4>() {
                self.bits |= u64::from(u32::from_le_bytes(*word)) << self.held;
                self.held += 32;
                self.rest = after;
            } else {
                while let Some((&byte, after)) = self.rest.split_first() {
                    self.bits |= u64::from(byte) << self.held;
                    self.held += 8;
                    self.rest = after;
                }
            }
        }
        self.bits as u32
    }

    #[inline]
    fn skip(&mut self, length: u32) {
        self.bits >>= length;
        self.held = self.held.saturating_sub(length);
        self.skipped += u64::from(length);
    }

    fn finish(mut self) -> Result<()> {
        self.peek();
        if self.skipped > self.total || self.total - self.skipped >= 8 || self.bits != 0 {
            return Err(damaged(format!("{} bits of codes in a block of {}", self.skipped, self.total)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state ^ (*state >> 29)) >> 16
    }

    /// Codes of which small ones are likelier, by a power.
    fn some(count: usize, bits: u8, skew: i32, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let top = f64::from(1u32 << bits);
        (0..count).map(|_| ((draw(&mut state) % 4096) as f64 / 4096.0).powi(skew).mul_add(top, 0.0) as u8).collect()
    }

    #[test]
    fn streams_come_back_whatever_the_codes() {
        for bits in 1..=8u8 {
            for (place, &count) in [0, 1, 7, 1000, BLOCK, BLOCK + 1, 2 * BLOCK + 77].iter().enumerate() {
                for skew in [1, 3, 9] {
                    let codes = some(count, bits, skew, place as u64 + 1);
                    let stream = encode_codes(&codes, bits, &|| Ok(())).unwrap();
                    let fixed = (count * usize::from(bits)).div_ceil(8) + HEADER;
                    assert!(stream.len() <= fixed);
                    let mut out = vec![255; count];
                    decode_codes(&stream, bits, &mut out, &|| Ok(())).unwrap();
                    assert_eq!(out, codes);
                }
            }
        }
    }

    #[test]
    fn likely_codes_are_short() {
        // Four codes with probabilities 1/2, 1/4, 1/8, 1/8 have an entropy of 1.75 bits, which Huffman's code reaches.
        let codes: Vec<u8> = (0..80_000).map(|place| [0, 0, 0, 0, 1, 1, 2, 3][place % 8]).collect();
        let stream = encode_codes(&codes, 2, &|| Ok(())).unwrap();
        assert_eq!(stream[0], HUFFMAN);
        assert!(stream.len() <= 80_000 * 7 / 32 + 40, "{}", stream.len());
        let constant = encode_codes(&[5; 80_000], 3, &|| Ok(())).unwrap();
        assert!(constant.len() <= 80_000 / 8 + 40);
    }

    #[test]
    fn code_words_stay_short_for_counts_that_double() {
        let counts: Vec<u64> = (0..40).map(|place| 1u64 << place).chain(std::iter::repeat_n(0, 24)).collect();
        let words = Words::of(&counts);
        assert!(words.lengths().iter().all(|&length| length <= 15));
        assert!(Decoder::new(words.lengths()).is_some());
    }

    #[test]
    fn wrong_arguments_are_refused() {
        assert!(encode_codes(&[4], 2, &|| Ok(())).unwrap_err().to_string().starts_with("codes: got 4 in place 0"));
        assert!(encode_codes(&[0], 9, &|| Ok(())).unwrap_err().to_string().starts_with("bits: got 9"));
        assert!(encode_codes(&[0], 1, &|| Err(Error::Interrupted)).is_err());
    }

    #[test]
    fn damaged_streams_are_refused_or_give_other_codes_and_never_panic() {
        let mut state = 7;
        for (bits, skew) in [(2, 1), (2, 5), (4, 4), (8, 6), (1, 9)] {
            let codes = some(3000, bits, skew, 3);
            let sound = encode_codes(&codes, bits, &|| Ok(())).unwrap();
            let mut out = vec![0; codes.len()];
            for length in 0..sound.len() {
                assert!(decode_codes(&sound[..length], bits, &mut out, &|| Ok(())).is_err());
            }
            let mut longer = sound.clone();
            longer.push(0);
            assert!(decode_codes(&longer, bits, &mut out, &|| Ok(())).is_err());
            assert!(decode_codes(&sound, bits, &mut out[1..], &|| Ok(())).is_err());
            for _ in 0..2000 {
                let mut damaged = sound.clone();
                let place = draw(&mut state) as usize % damaged.len().min(200);
                damaged[place] ^= 1 << (draw(&mut state) % 8);
                if decode_codes(&damaged, bits, &mut out, &|| Ok(())).is_ok() {
                    assert!(out.iter().all(|&code| u32::from(code) >> bits == 0));
                    assert!(place >= HEADER, "a header that says something else");
                }
            }
        }
    }
}
