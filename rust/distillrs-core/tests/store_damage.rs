//! Truncation at every byte and a flip of every byte of a small store: never a wrong value without an error, and a
//! repair that drops the damaged records alone.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distillrs_core::Error;
use distillrs_core::trajectory::filesystem::{Existing, FileSystem};
use distillrs_core::trajectory::{RepairReport, Store, Verify, repair_in};
use support::simulated::SimulatedFs;
use support::{append_columns, is_near, value};

const SCHEMA: &str = r#"{"columns": [
    {"name": "theta", "dtype": "F32", "shape": [5]},
    {"name": "exact", "dtype": "U8", "shape": [7], "codec": {"name": "lossless", "keyframe_every": 3}},
    {"name": "images", "dtype": "BF16", "shape": [2, 3], "ragged": true}
]}"#;
const COLUMNS: [&str; 3] = ["theta", "exact", "images"];
const KEYS: [&str; 2] = ["a", "b/c"];
const STEPS: u64 = 5;

fn directory() -> &'static Path {
    Path::new("/stores/one")
}

fn store(sealed: bool) -> SimulatedFs {
    let fs = SimulatedFs::default();
    let store = Store::create_in(Arc::new(fs.clone()), directory(), SCHEMA, r#"{"seed": 3}"#, false).unwrap();
    for key in KEYS {
        let mut writer = store.begin(key, None).unwrap();
        for step in 0..STEPS {
            append_columns(&mut writer, key, step, &COLUMNS).unwrap();
        }
        writer.complete().unwrap();
    }
    if sealed {
        assert_eq!(store.seal().unwrap().sealed.len(), 2);
    }
    fs.copy()
}

fn open(fs: &SimulatedFs) -> Result<Store, Error> {
    Store::open_in(Arc::new(fs.clone()), directory(), Verify::First)
}

/// Records of which every column reads as it was written. Panics at a wrong value.
fn readable(fs: &SimulatedFs, context: &str) -> BTreeSet<(String, u64)> {
    let mut found = BTreeSet::new();
    let store = match open(fs) {
        Ok(store) => store,
        Err(Error::StoreCorrupt { .. } | Error::StoreVersion { .. }) => return found,
        Err(error) => panic!("{error}: {context}"),
    };
    for key in KEYS {
        for step in 0..STEPS {
            let right = COLUMNS.iter().filter(|column| match store.view(key, column, step) {
                Ok(view) => {
                    assert!(
                        is_near(column, view.bytes(), &value(key, step, column)),
                        "{key} {step} {column}: {context}"
                    );
                    true
                }
                Err(Error::Argument { .. } | Error::KeyNotFound { .. }) => {
                    assert!(store.keys(false).unwrap().len() < KEYS.len() || step > 0, "{key} {step}: {context}");
                    false
                }
                Err(Error::StoreCorrupt { .. }) => false,
                Err(error) => panic!("{key} {step} {column}: {error}: {context}"),
            });
            if right.count() == COLUMNS.len() {
                found.insert((key.to_owned(), step));
            }
        }
        if let Ok(rows) = store.rows(key, "images", 2) {
            assert_eq!(rows, 2, "{key}: {context}");
        }
    }
    found
}

fn everything() -> BTreeSet<(String, u64)> {
    KEYS.iter().flat_map(|key| (0..STEPS).map(|step| ((*key).to_owned(), step))).collect()
}

/// Whether the store says so: it does not open, a trajectory is unfinished, or `verify` finds something.
fn is_noticed(fs: &SimulatedFs) -> bool {
    let Ok(store) = open(fs) else { return true };
    if store.keys(false).unwrap().len() < KEYS.len() {
        return true;
    }
    let Ok(report) = store.verify() else { return true };
    !report.damage.is_empty() || !report.tails.is_empty() || report.records < 2 * STEPS
}

fn repaired(fs: &SimulatedFs) -> RepairReport {
    let fs: Arc<dyn FileSystem> = Arc::new(fs.clone());
    repair_in(&fs, directory()).unwrap()
}

/// A repair keeps every record that could be read, and leaves nothing that is damaged.
fn check_repair(fs: &SimulatedFs, before: &BTreeSet<(String, u64)>, context: &str) {
    let report = repaired(fs);
    let after = readable(fs, context);
    let of = |steps: &[distillrs_core::trajectory::KeyStep]| -> BTreeSet<(String, u64)> {
        steps.iter().map(|one| (one.key.clone(), one.step)).collect()
    };
    let dependants = of(&report.dependants);
    let dropped = of(&report.dropped);
    assert!(before.is_subset(&after.union(&dependants).cloned().collect()), "{report:?}: {context}");
    assert!(after.is_disjoint(&dropped) && after.is_disjoint(&dependants), "{report:?}: {context}");
    assert_eq!(report.kept, after.len() as u64, "{report:?}: {context}");
    let verified = open(fs).unwrap().verify().unwrap();
    assert_eq!(verified.damage, [], "{report:?}: {context}");
    assert_eq!(verified.missing, (dropped.len() + dependants.len()) as u64, "{report:?}: {context}");
    let again = repaired(fs);
    assert_eq!((again.dropped.len(), again.files.len(), again.kept), (0, 0, report.kept), "{again:?}: {context}");
}

fn data_files(fs: &SimulatedFs) -> Vec<PathBuf> {
    let names = fs.paths();
    names.into_iter().filter(|path| path.extension().is_none_or(|end| end != "lock" && end != "owner")).collect()
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "dlog")
}

#[test]
fn a_flip_of_every_byte() {
    for sealed in [false, true] {
        let whole = store(sealed);
        assert_eq!(readable(&whole, "undamaged"), everything());
        for path in data_files(&whole) {
            let content = whole.content(&path);
            for byte in 0..content.len() {
                let disk = whole.copy();
                let mut flipped = content.clone();
                flipped[byte] ^= 1 << (byte % 8);
                disk.set_content(&path, flipped);
                let context = format!("byte {byte} of {} is flipped", path.display());
                let before = readable(&disk, &context);
                // Only the padding between a log's columns vouches for nothing.
                assert!(is_noticed(&disk) || (is_log(&path) && before == everything()), "{context}");
                if !is_log(&path) || before != everything() {
                    check_repair(&disk, &before, &context);
                }
            }
        }
    }
}

#[test]
fn a_truncation_at_every_byte() {
    for sealed in [false, true] {
        let whole = store(sealed);
        for path in data_files(&whole) {
            let content = whole.content(&path);
            for length in 0..content.len() {
                let disk = whole.copy();
                disk.set_content(&path, content[..length].to_vec());
                let context = format!("{} ends at byte {length} of {}", path.display(), content.len());
                let before = readable(&disk, &context);
                assert!(is_noticed(&disk), "{context}");
                check_repair(&disk, &before, &context);
            }
        }
    }
}

#[test]
fn a_repair_names_what_it_drops_and_what_depends_on_it() {
    for sealed in [false, true] {
        let disk = store(sealed);
        let path = data_files(&disk).into_iter().find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("seg") || (is_log(path) && disk.content(path).windows(3).any(|three| three == b"b/c"))
        });
        let path = path.unwrap();
        let mut content = disk.content(&path);
        let wanted = value("b/c", 1, "theta");
        let position = content.windows(wanted.len()).position(|window| window == wanted).unwrap();
        content[position] ^= 1;
        disk.set_content(&path, content);
        let damage = open(&disk).unwrap().verify().unwrap().damage;
        assert_eq!(damage.len(), 1);
        assert_eq!(
            (damage[0].key.as_deref(), damage[0].step, damage[0].column.as_deref()),
            (Some("b/c"), Some(1), Some("theta"))
        );
        assert_eq!((damage[0].offset, damage[0].path.clone()), (position as u64, path.display().to_string()));
        let report = repaired(&disk);
        assert_eq!(report.dropped.len(), 1);
        assert_eq!((report.dropped[0].key.as_str(), report.dropped[0].step), ("b/c", 1));
        let dependants: Vec<_> = report.dependants.iter().map(|one| one.step).collect();
        assert_eq!(report.kept + 1 + dependants.len() as u64, 2 * STEPS);
        let store = open(&disk).unwrap();
        let mut missing = dependants.clone();
        missing.insert(0, 1);
        assert_eq!(store.missing("b/c").unwrap(), missing);
        assert_eq!(store.lengths(false).unwrap(), [("a".to_owned(), STEPS), ("b/c".to_owned(), STEPS)]);
        let message = store.view("b/c", "theta", 1).unwrap_err().to_string();
        assert!(message.contains("dropped by a repair"), "{message}");
    }
}

#[test]
fn a_step_that_a_repair_dropped_survives_sealing_and_resuming() {
    let disk = SimulatedFs::default();
    let home = Store::create_in(Arc::new(disk.clone()), directory(), SCHEMA, "{}", false).unwrap();
    let mut writer = home.begin("a", None).unwrap();
    for step in 0..3 {
        append_columns(&mut writer, "a", step, &COLUMNS).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    let path = data_files(&disk).into_iter().find(|path| is_log(path)).unwrap();
    let mut content = disk.content(&path);
    let wanted = value("a", 1, "theta");
    let position = content.windows(wanted.len()).position(|window| window == wanted).unwrap();
    content[position] ^= 1;
    disk.set_content(&path, content);
    assert!(matches!(home.begin("a", None), Err(Error::StoreCorrupt { .. })));
    let report = repaired(&disk);
    assert_eq!(report.dropped.len(), 1);
    let mut writer = home.begin("a", None).unwrap();
    assert_eq!(writer.steps(), 3);
    for step in 3..STEPS {
        append_columns(&mut writer, "a", step, &COLUMNS).unwrap();
    }
    writer.complete().unwrap();
    for round in 0..2 {
        for step in [0, 3, 4] {
            for column in COLUMNS {
                assert_eq!(home.view("a", column, step).unwrap().bytes(), value("a", step, column), "{round} {step}");
            }
        }
        assert!(home.missing("a").unwrap().contains(&1));
        home.seal().unwrap();
    }
}

#[test]
fn a_live_writer_keeps_a_repair_out() {
    let fs = store(true);
    let home = Store::create_in(Arc::new(fs.clone()), directory(), SCHEMA, r#"{"seed": 3}"#, true).unwrap();
    let mut writer = home.begin("late", None).unwrap();
    append_columns(&mut writer, "late", 0, &COLUMNS).unwrap();
    let shared: Arc<dyn FileSystem> = Arc::new(fs.clone());
    assert!(matches!(repair_in(&shared, directory()), Err(Error::StoreLocked { .. })));
    append_columns(&mut writer, "late", 1, &COLUMNS).unwrap();
    writer.complete().unwrap();
    assert_eq!(repaired(&fs).kept, 2 * STEPS + 2);
}

fn put(fs: &SimulatedFs, path: &Path, content: &[u8]) {
    let file = fs.create(path, Existing::Keep).unwrap();
    file.set_length(0).unwrap();
    file.write_at(content, 0).unwrap();
}

fn segment_of(fs: &SimulatedFs) -> (PathBuf, Vec<u8>) {
    let path =
        data_files(fs).into_iter().find(|path| path.extension().is_some_and(|end| end == "safetensors")).unwrap();
    let content = fs.content(&path);
    (path, content)
}

/// A crash between the manifest and the logs' removal, and after it a flipped byte in the segment.
#[test]
fn a_repair_takes_what_the_segment_lost_from_the_log_that_was_left() {
    let logs = store(false);
    let fs = logs.copy();
    Store::create_in(Arc::new(fs.clone()), directory(), SCHEMA, r#"{"seed": 3}"#, true).unwrap().seal().unwrap();
    for path in data_files(&logs).into_iter().filter(|path| is_log(path)) {
        put(&fs, &path, &logs.content(&path));
    }
    let (segment, mut content) = segment_of(&fs);
    let wanted = value("a", 3, "theta");
    let place = content.windows(wanted.len()).position(|window| window == wanted).unwrap();
    content[place] ^= 1;
    put(&fs, &segment, &content);
    let report = repaired(&fs);
    assert_eq!((report.dropped, report.dependants, report.lost), (vec![], vec![], vec![]));
    assert_eq!(report.kept, 2 * STEPS);
    assert_eq!(readable(&fs, "the log serves"), everything());
    Store::create_in(Arc::new(fs.clone()), directory(), SCHEMA, r#"{"seed": 3}"#, true).unwrap().seal().unwrap();
    assert_eq!(readable(&fs, "sealed again"), everything());
    assert!(data_files(&fs).iter().all(|path| !is_log(path)));
}

/// Eight-byte columns lie among the checksums, so that a cut file keeps data whose checksums are gone.
#[test]
fn a_cut_segment_of_wide_elements_keeps_what_lies_before_the_cut() {
    let schema = r#"{"columns": [{"name": "loss", "dtype": "F64", "shape": []}]}"#;
    let fs = SimulatedFs::default();
    let store = Store::create_in(Arc::new(fs.clone()), directory(), schema, "{}", false).unwrap();
    for key in KEYS {
        let mut writer = store.begin(key, None).unwrap();
        for step in 0..STEPS {
            append_columns(&mut writer, key, step, &["loss"]).unwrap();
        }
        writer.complete().unwrap();
    }
    store.seal().unwrap();
    drop(store);
    let (segment, content) = segment_of(&fs);
    // The trajectories stand in the order of their logs' names.
    let ends = KEYS.iter().map(|key| {
        let last = value(key, STEPS - 1, "loss");
        content.windows(8).position(|window| window == last).unwrap() + 8
    });
    let end = ends.max().unwrap();
    put(&fs, &segment, &content[..end + 16]);
    let report = repaired(&fs);
    assert_eq!(report.kept, STEPS + 2, "the first trajectory, and two records whose checksums are there");
    assert_eq!(report.dropped.len() as u64, STEPS - 2);
}
