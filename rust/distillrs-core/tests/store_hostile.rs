//! The fuzzing corpus, and every one-byte change of it with its checksums put right: no panic, no unbounded allocation.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;

use distillrs_core::trajectory::hostile;
use distillrs_core::trajectory::{Store, Verify};
use proptest::prelude::*;
use support::simulated::SimulatedFs;
use support::{NAMES, append_columns};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] =
    [("frame", hostile::frame), ("log", hostile::log), ("manifest", hostile::manifest), ("segment", hostile::segment)];

fn run(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    target(bytes);
    target(&hostile::with_checksums(name, bytes));
}

#[test]
fn the_corpus_and_its_neighbours_do_no_harm() {
    for (name, target) in TARGETS {
        let mut seeds = 0;
        for entry in fs::read_dir(hostile::corpus(name)).unwrap() {
            let seed = fs::read(entry.unwrap().path()).unwrap();
            run(name, target, &seed);
            seeds += 1;
            // Data behind the first bytes only changes digests.
            for byte in 0..seed.len().min(2500) {
                for mask in [0x01, 0x80, 0xff] {
                    let mut changed = seed.clone();
                    changed[byte] ^= mask;
                    run(name, target, &changed);
                }
            }
            for length in (0..seed.len()).step_by(13) {
                run(name, target, &seed[..length]);
            }
        }
        assert!(seeds > 0, "no corpus for {name}");
    }
}

#[test]
fn the_corpus_is_what_this_build_reads() {
    let seed = |name: &str| fs::read(hostile::corpus(name).join("sound")).unwrap();
    let fs = SimulatedFs::default();
    let directory = Path::new("/store");
    let put = |name: &str, content: Vec<u8>| {
        use distillrs_core::trajectory::filesystem::{Existing, FileSystem};
        let path = directory.join(name);
        drop(fs.create(&path, Existing::Keep).unwrap());
        fs.set_content(&path, content);
    };
    put("seg-0123456789abcdef.safetensors", seed("segment"));
    put(LOG_OF_UNSEALED, seed("log"));
    let store = Store::open_in(std::sync::Arc::new(fs.clone()), directory, Verify::First).unwrap();
    support::check(&store, "sealed", 4);
    support::check(&store, "unsealed", 3);
    assert_eq!(store.verify().unwrap().damage.len(), 0);
}

/// The name of the log of the key "unsealed".
const LOG_OF_UNSEALED: &str = "log-06dd83e1afac41b55dcd59e1aabc8219.dlog";

#[test]
fn a_header_that_promises_more_than_its_file_has_is_refused_before_anything_is_allocated() {
    let sound = fs::read(hostile::corpus("segment").join("sound")).unwrap();
    let length = u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    let steps = 1u64 << 50;
    let metadata = format!(
        r#"{}0000000000000000","distillrs.format_version":"0","distillrs.metadata":"{{}}","distillrs.minimum_reader":"0","distillrs.replaces":"[]","distillrs.schema":"{{\"columns\":[{{\"name\":\"a\",\"dtype\":\"U8\",\"shape\":[0]}}]}}","distillrs.trajectories":"[[\"k\",{steps},[],{{}}]]"}},"k/a":{{"dtype":"U8","shape":[{steps},0],"data_offsets":[0,0]}},"k/a.xxh3":{{"dtype":"U64","shape":[{steps}],"data_offsets":[0,{}]}}}}"#,
        r#"{"__metadata__":{"distillrs.digest":""#,
        8 * steps
    );
    assert!(metadata.len() < length);
    let mut bytes = (metadata.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(metadata.as_bytes());
    hostile::segment(&hostile::with_checksums("segment", &bytes));
    let fs = SimulatedFs::default();
    use distillrs_core::trajectory::filesystem::{Existing, FileSystem};
    let path = Path::new("/store/seg-0123456789abcdef.safetensors");
    drop(fs.create(path, Existing::Keep).unwrap());
    fs.set_content(path, hostile::with_checksums("segment", &bytes));
    let message = Store::open_in(std::sync::Arc::new(fs), Path::new("/store"), Verify::First).unwrap_err().to_string();
    assert!(message.contains("ends before the index of \"k\""), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for (name, target) in TARGETS {
            run(name, target, &bytes);
        }
    }

    #[test]
    fn several_changed_bytes_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        for (name, target) in TARGETS {
            let mut seed = fs::read(hostile::corpus(name).join("sound")).unwrap();
            for (index, value) in &changes {
                let position = index.index(seed.len());
                seed[position] = *value;
            }
            run(name, target, &seed);
        }
    }
}

/// Writes the seeds: `cargo test -p distillrs-core --test store_hostile -- --ignored`, after a change of the format.
#[test]
#[ignore = "writes the committed corpus"]
fn write_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let store = support::create(folder.path());
    support::write(&store, "sealed", 4);
    store.seal().unwrap();
    let mut writer = store.begin("unsealed", None).unwrap();
    for step in 0..3 {
        append_columns(&mut writer, "unsealed", step, &NAMES).unwrap();
    }
    writer.complete().unwrap();
    let mut record = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        let target = match path.extension().and_then(|end| end.to_str()) {
            Some("dlog") => {
                let is_record = |chunk: &[u8]| chunk.starts_with(b"DTLG") && chunk[6] == 3;
                let start = 64 * content.chunks(64).position(is_record).unwrap();
                record = content[start..start + 64 * (1 + NAMES.len())].to_vec();
                "log"
            }
            Some("safetensors") => "segment",
            Some("json") => "manifest",
            _ => continue,
        };
        fs::create_dir_all(hostile::corpus(target)).unwrap();
        fs::write(hostile::corpus(target).join("sound"), content).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(target != "log" || name == LOG_OF_UNSEALED, "{name}");
    }
    fs::create_dir_all(hostile::corpus("frame")).unwrap();
    fs::write(hostile::corpus("frame").join("sound"), record).unwrap();
}
