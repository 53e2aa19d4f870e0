//! A committed fuzzing corpus, held to the seeds that this build writes, and every one-byte change and truncation of it.

use std::fs;
use std::path::PathBuf;

/// The seeds of one fuzz target by their file names, and the code that reads a hostile input.
pub struct Corpus {
    pub target: &'static str,
    pub seeds: Vec<(String, Vec<u8>)>,
    pub read: fn(&[u8]),
}

impl Corpus {
    fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(self.target)
    }

    /// Reads each file, its one-byte changes and its truncations; `read` must return.
    pub fn does_no_harm(&self) {
        let mut count = 0;
        for entry in fs::read_dir(self.folder()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            (self.read)(&bytes);
            for place in 0..bytes.len() {
                let mut changed = bytes.clone();
                for value in [0, 1, 0x7F, 0x80, 0xFF, bytes[place].wrapping_add(1)] {
                    changed[place] = value;
                    (self.read)(&changed);
                }
                (self.read)(&bytes[..place]);
            }
            count += 1;
        }
        assert_eq!(count, self.seeds.len());
    }

    /// Fails when a format changed and its corpus did not.
    pub fn is_what_this_build_writes(&self) {
        for (name, bytes) in &self.seeds {
            assert!(&fs::read(self.folder().join(name)).unwrap() == bytes, "{name}: the format changed");
        }
    }

    /// Writes the committed files.
    pub fn write(&self) {
        fs::create_dir_all(self.folder()).unwrap();
        for (name, bytes) in &self.seeds {
            fs::write(self.folder().join(name), bytes).unwrap();
        }
    }
}
