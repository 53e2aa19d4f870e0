//! Writing, reading, sealing and resuming on a real directory.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use distillrs_core::trajectory::{ColumnData, SealLimits, Store, Verify};
use distillrs_core::{Error, Result};
use support::{SCHEMA, append, check, create, value, write};

#[test]
fn what_is_written_is_read_from_logs_and_from_segments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = create(&path);
    write(&store, "a", 20);
    write(&store, "b/c with a name…", 3);
    write(&store, "empty", 0);
    let keys = ["a".to_owned(), "b/c with a name…".to_owned(), "empty".to_owned()];
    assert_eq!(store.keys(false).unwrap(), keys);
    check(&store, "a", 20);
    let report = store.seal().unwrap();
    assert_eq!((report.sealed.len(), report.segments.len(), report.skipped.len()), (3, 1, 0));
    assert_eq!(store.keys(false).unwrap(), keys);
    check(&store, "a", 20);
    let reader = Store::open(&path, Verify::Always).unwrap();
    assert_eq!(reader.keys(false).unwrap(), keys);
    check(&reader, "a", 20);
    check(&reader, &keys[1], 3);
    let verified = reader.verify().unwrap();
    assert_eq!((verified.records, verified.damage.len(), verified.missing), (23, 0, 0));
    assert_eq!(reader.codec_error("a", "exact").unwrap().records, 0);
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
}

#[test]
fn several_steps_in_any_order_and_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path());
    write(&store, "a", 40);
    for sealed in [false, true] {
        if sealed {
            store.seal().unwrap();
        }
        for column in ["theta", "packed", "exact", "half"] {
            let steps = [33u64, 2, 16, 17, 2, 39, 0, 18];
            let size = value("a", 0, column).len();
            let mut outs = vec![vec![0; size]; steps.len()];
            let mut wanted: Vec<_> = steps.iter().copied().zip(outs.iter_mut().map(Vec::as_mut_slice)).collect();
            store.read("a", column, &mut wanted).unwrap();
            for (step, out) in steps.iter().zip(&outs) {
                let mut single = vec![0; size];
                store.read("a", column, &mut [(*step, &mut single)]).unwrap();
                assert_eq!(*out, single, "{column} {step}");
            }
        }
    }
}

#[test]
fn an_unfinished_trajectory_is_hidden_resumable_and_locked() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path());
    let mut writer = store.begin("a", None).unwrap();
    for step in 0..5 {
        append(&mut writer, "a", step);
    }
    writer.flush().unwrap();
    let other = create(folder.path());
    match other.begin("a", None) {
        Err(Error::StoreLocked { process, .. }) => assert_eq!(process, std::process::id().to_string()),
        result => panic!("{result:?}"),
    }
    drop(writer);
    assert!(store.keys(false).unwrap().is_empty());
    store.refresh().unwrap();
    assert_eq!(store.lengths(true).unwrap(), [("a".to_owned(), 5)]);
    let mut writer = other.begin("a", Some(3)).unwrap();
    assert_eq!((writer.steps(), writer.discarded().records), (3, 2));
    for step in 3..30 {
        append(&mut writer, "a", step);
    }
    writer.complete().unwrap();
    check(&other, "a", 30);
    assert!(matches!(store.begin("a", None), Err(Error::KeyConflict { .. })));
    other.seal().unwrap();
    assert!(matches!(store.begin("a", None), Err(Error::KeyConflict { .. })));
    check(&other, "a", 30);
}

#[test]
fn limits_split_segments_and_a_lost_manifest_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path());
    for index in 0..7 {
        write(&store, &format!("key {index}"), 2);
    }
    let report = store.seal_with(SealLimits { bytes: u64::MAX, trajectories: 3 }).unwrap();
    assert_eq!(report.segments.len(), 3);
    write(&store, "late", 4);
    for damage in [None, Some(&b"{\"body\": {}"[..])] {
        let manifest = folder.path().join("manifest.json");
        match damage {
            None => std::fs::remove_file(&manifest).unwrap(),
            Some(bytes) => std::fs::write(&manifest, bytes).unwrap(),
        }
        let reader = Store::open(folder.path(), Verify::First).unwrap();
        assert_eq!(reader.keys(false).unwrap().len(), 8);
        assert_eq!(reader.metadata(), r#"{"purpose": "test"}"#);
        check(&reader, "key 4", 2);
        check(&reader, "late", 4);
        assert!(reader.info().unwrap().manifest.contains("rebuilt"));
    }
    create(folder.path());
    assert_eq!(Store::open(folder.path(), Verify::First).unwrap().info().unwrap().manifest, "sound");
}

fn says<T: std::fmt::Debug>(result: Result<T>, words: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(words), "{message}");
}

#[test]
fn bad_arguments_name_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    assert!(matches!(Store::open(&path, Verify::First), Err(Error::StoreMissing { .. })));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(Store::open(&path, Verify::First), Err(Error::StoreMissing { .. })));
    let store = create(&path);
    assert!(matches!(Store::create(&path, SCHEMA, "{}", false), Err(Error::StoreExists { .. })));
    assert!(matches!(Store::create(&path, SCHEMA, "{}", true), Err(Error::SchemaMismatch { .. })));
    let other = r#"{"columns": [{"name": "theta", "dtype": "F32", "shape": [6]}]}"#;
    assert!(matches!(Store::create(&path, other, r#"{"purpose": "test"}"#, true), Err(Error::SchemaMismatch { .. })));
    write(&store, "a", 2);
    says(store.read("a", "thetas", &mut []), "theta, images");
    says(store.read("b", "theta", &mut []), "\"b\" is not in");
    says(store.read("a", "theta", &mut [(2, &mut [0; 20])]), "below 2");
    says(store.read("a", "theta", &mut [(1, &mut [0; 19])]), "20 bytes");
    says(store.read("a", "packed", &mut [(1, &mut [0; 19])]), "1200 bytes");
    says(store.begin("", None), "key");
    says(store.begin("b", Some(1)), "resume_at");
    says(Store::open(&path, Verify::First).unwrap().begin("b", None), "opened to read");
    let mut writer = store.begin("b", None).unwrap();
    let theta = ColumnData { name: "theta", bytes: &[0; 20], rows: None };
    says(writer.append(&[theta]), "without \"images\"");
    says(writer.append(&[theta, theta]), "twice");
    says(writer.append(&[ColumnData { rows: Some(1), ..theta }]), "fixed shape");
    says(writer.append(&[ColumnData { bytes: &[0; 16], ..theta }]), "20 bytes");
    append(&mut writer, "b", 0);
    writer.complete().unwrap();
    says(writer.flush(), "closed");
    std::fs::write(folder.path().join("notes.txt"), "").unwrap();
    says(Store::create(folder.path(), SCHEMA, "{}", true), "notes.txt");
}
