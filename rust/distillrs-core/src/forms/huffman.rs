//! Canonical Huffman codes of at most 256 symbols, with words of at most 15 bits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const LONGEST: u8 = 15;

/// The code words of symbols; a symbol that does not occur has none.
#[derive(Debug)]
pub(super) struct Words {
    lengths: Vec<u8>,
    words: Vec<u16>,
}

impl Words {
    /// The shortest code for symbols that occur so often (Huffman, 1952), as far as words of 15 bits allow. A symbol
    /// that is alone has a word of one bit.
    pub fn of(counts: &[u64]) -> Self {
        let mut counts = counts.to_vec();
        let lengths = loop {
            let lengths = tree_depths(&counts);
            if lengths.iter().all(|&length| length <= LONGEST) {
                break lengths;
            }
            // Counts that are closer together make a flatter tree; equal ones of 256 symbols one of 8 levels.
            counts.iter_mut().filter(|count| **count > 0).for_each(|count| *count = *count / 2 + 1);
        };
        let words = canonical(&lengths);
        Self { lengths, words }
    }

    pub fn lengths(&self) -> &[u8] {
        &self.lengths
    }

    /// The word with its first bit lowest.
    pub fn word(&self, symbol: u8) -> u32 {
        u32::from(self.words[usize::from(symbol)])
    }

    pub fn length(&self, symbol: u8) -> u32 {
        u32::from(self.lengths[usize::from(symbol)])
    }

    /// Bits of symbols that occur so often.
    pub fn bits(&self, counts: &[u64]) -> u64 {
        self.lengths.iter().zip(counts).map(|(&length, count)| u64::from(length) * count).sum()
    }
}

fn tree_depths(counts: &[u64]) -> Vec<u8> {
    let mut lengths = vec![0; counts.len()];
    // A parent's place in `parents` follows those of its children; leaves come first.
    let mut parents = vec![usize::MAX; counts.len()];
    let there = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let mut heap: BinaryHeap<_> = there.map(|(symbol, &count)| Reverse((count, symbol))).collect();
    if let (1, Some(Reverse((_, symbol)))) = (heap.len(), heap.peek()) {
        lengths[*symbol] = 1;
        return lengths;
    }
    while let (Some(Reverse((first, left))), Some(Reverse((second, right)))) = (heap.pop(), heap.pop()) {
        let parent = parents.len();
        parents.push(usize::MAX);
        (parents[left], parents[right]) = (parent, parent);
        heap.push(Reverse((first.saturating_add(second), parent)));
        if heap.len() == 1 {
            break;
        }
    }
    let mut depths = vec![0u8; parents.len()];
    for node in (0..parents.len()).rev() {
        if parents[node] != usize::MAX {
            depths[node] = depths[parents[node]].saturating_add(1);
        }
    }
    lengths.copy_from_slice(&depths[..counts.len()]);
    lengths
}

/// Words by length, then by symbol; reversed, as bits are read from the lowest.
fn canonical(lengths: &[u8]) -> Vec<u16> {
    let mut words = vec![0; lengths.len()];
    let mut next = 0u16;
    for length in 1..=LONGEST {
        for (symbol, _) in lengths.iter().enumerate().filter(|(_, own)| **own == length) {
            words[symbol] = next.reverse_bits() >> (16 - u32::from(length));
            next = next.wrapping_add(1);
        }
        next = next.wrapping_shl(1);
    }
    words
}

/// Reads code words: every sequence of as many bits as the longest word has, and what it begins with.
pub(super) struct Decoder {
    /// Symbol, and the length of its word; 0 for none.
    entries: Vec<(u8, u8)>,
    mask: u32,
}

impl Decoder {
    /// `None` for lengths that make no code: words would be prefixes of others, or sequences would have no word. A
    /// symbol that is alone is allowed.
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let longest = u32::from(*lengths.iter().max()?).max(1);
        let there = lengths.iter().filter(|&&length| length > 0).count();
        let filled: u64 = lengths.iter().filter(|&&length| length > 0).map(|&length| 1u64 << (15 - length)).sum();
        let is_alone = there == 1 && longest == 1;
        if (filled != 1 << 15 && !is_alone && there > 0) || lengths.iter().any(|&length| length > LONGEST) {
            return None;
        }
        let mut entries = vec![(0, 0); 1 << longest];
        let words = canonical(lengths);
        for (symbol, (&length, &word)) in lengths.iter().zip(&words).enumerate().filter(|(_, (length, _))| **length > 0)
        {
            for place in (usize::from(word)..entries.len()).step_by(1 << length) {
                entries[place] = (symbol as u8, length);
            }
        }
        Some(Self { entries, mask: (1 << longest) - 1 })
    }

    #[inline]
    pub fn symbol(&self, bits: u32) -> Option<(u8, u32)> {
        let (symbol, length) = self.entries[(bits & self.mask) as usize];
        (length > 0).then_some((symbol, u32::from(length)))
    }
}
