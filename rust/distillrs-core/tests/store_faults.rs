//! Crashes, failing calls and full disks at every point of a small scenario: acknowledged records stay, as they were.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use distillrs_core::trajectory::filesystem::FileSystem;
use distillrs_core::trajectory::{Store, Verify, Writer};
use distillrs_core::{Error, Result};
use support::simulated::{Plan, SimulatedFs, Survivors};
use support::{append_columns, value};

const SCHEMA: &str = r#"{"columns": [
    {"name": "theta", "dtype": "F32", "shape": [5]},
    {"name": "exact", "dtype": "U8", "shape": [7], "codec": "lossless"},
    {"name": "images", "dtype": "BF16", "shape": [2, 3], "ragged": true}
]}"#;
const COLUMNS: [&str; 3] = ["theta", "exact", "images"];
const STEPS: u64 = 4;

/// What was acknowledged: records that are durable, and whether the trajectory is complete.
#[derive(Debug, Clone, Default)]
struct Acknowledged {
    store: bool,
    trajectories: BTreeMap<String, (u64, bool)>,
}

impl Acknowledged {
    fn flushed(&mut self, writer: &Writer) {
        self.trajectories.insert(writer.key().to_owned(), (writer.steps(), false));
    }

    fn completed(&mut self, writer: &Writer) {
        self.trajectories.insert(writer.key().to_owned(), (writer.steps(), true));
    }
}

fn directory() -> &'static Path {
    Path::new("/stores/one")
}

fn join(fs: &SimulatedFs) -> Result<Store> {
    Store::create_in(Arc::new(fs.clone()), directory(), SCHEMA, "{}", true)
}

fn append(writer: &mut Writer) -> Result<()> {
    let (key, step) = (writer.key().to_owned(), writer.steps());
    append_columns(writer, &key, step, &COLUMNS).map(drop)
}

/// Two interleaved trajectories, one that is left and resumed, and two rounds of sealing.
fn scenario(fs: &SimulatedFs, acknowledged: &mut Acknowledged) -> Result<()> {
    let store = join(fs)?;
    acknowledged.store = true;
    let mut first = store.begin("first", None)?;
    append(&mut first)?;
    first.flush()?;
    acknowledged.flushed(&first);
    let mut second = store.begin("second", None)?;
    append(&mut second)?;
    append(&mut first)?;
    append(&mut first)?;
    first.flush()?;
    acknowledged.flushed(&first);
    append(&mut first)?;
    first.complete()?;
    acknowledged.completed(&first);
    append(&mut second)?;
    second.flush()?;
    acknowledged.flushed(&second);
    store.seal()?;
    append(&mut second)?;
    drop(second);
    let mut second = store.begin("second", Some(2))?;
    append(&mut second)?;
    append(&mut second)?;
    second.complete()?;
    acknowledged.completed(&second);
    store.seal()?;
    Ok(())
}

/// Checks that a record is right, or unreadable where `may_fail`.
fn check_record(store: &Store, key: &str, step: u64, may_fail: bool, context: &str) {
    for column in COLUMNS {
        match store.view(key, column, step) {
            Ok(view) => assert_eq!(view.bytes(), value(key, step, column), "{key} {step} {column}: {context}"),
            Err(Error::StoreCorrupt { .. }) if may_fail => {}
            Err(error) => panic!("{key} {step} {column}: {error}: {context}"),
        }
    }
}

fn check(fs: &SimulatedFs, acknowledged: &Acknowledged, context: &str) {
    let store = match Store::open_in(Arc::new(fs.clone()), directory(), Verify::First) {
        Ok(store) => store,
        Err(Error::StoreMissing { .. }) if !acknowledged.store => return,
        Err(error) => panic!("{error}: {context}"),
    };
    let lengths: BTreeMap<_, _> = store.lengths(true).unwrap().into_iter().collect();
    let complete = store.keys(false).unwrap();
    for (key, (steps, is_complete)) in &acknowledged.trajectories {
        let found = lengths.get(key).copied().unwrap_or(0);
        assert!(found >= *steps, "{key} has {found} of {steps} steps: {context}");
        assert!(!is_complete || (complete.contains(key) && found == *steps), "{key} is not complete: {context}");
    }
    for (key, steps) in lengths {
        let sure = acknowledged.trajectories.get(&key).map_or(0, |(steps, _)| *steps);
        for step in 0..steps {
            check_record(&store, &key, step, step >= sure && !complete.contains(&key), context);
        }
    }
}

/// Goes on after a crash as a user would, and finds everything.
fn recover(fs: &SimulatedFs, acknowledged: &Acknowledged, context: &str) {
    let fail = |error: Error| -> ! { panic!("{error}: {context}") };
    let store = join(fs).unwrap_or_else(|error| fail(error));
    store.seal().unwrap_or_else(|error| fail(error));
    for key in ["first", "second"] {
        let sure = acknowledged.trajectories.get(key).map_or(0, |(steps, _)| *steps);
        let mut writer = match store.begin(key, None) {
            Ok(writer) => writer,
            Err(Error::KeyConflict { .. }) => continue,
            // A power cut kept a later record and lost an earlier one; neither was acknowledged.
            Err(Error::StoreCorrupt { .. }) => store.begin(key, Some(sure)).unwrap_or_else(|error| fail(error)),
            Err(error) => fail(error),
        };
        assert!(writer.steps() >= sure, "{key} resumes at {} of {sure}: {context}", writer.steps());
        while writer.steps() < STEPS {
            append(&mut writer).unwrap_or_else(|error| fail(error));
        }
        writer.complete().unwrap_or_else(|error| fail(error));
    }
    let report = store.seal().unwrap_or_else(|error| fail(error));
    assert_eq!(report.skipped, [], "{context}");
    let all = ["first", "second"].map(|key| (key.to_owned(), (STEPS, true)));
    check(fs, &Acknowledged { store: true, trajectories: all.into() }, context);
    let verified = Store::open_in(Arc::new(fs.clone()), directory(), Verify::First).unwrap().verify().unwrap();
    assert_eq!((verified.records, verified.damage.len()), (2 * STEPS, 0), "{verified:?}: {context}");
    let left = fs.list(directory()).unwrap();
    assert!(!left.iter().any(|name| name.ends_with("log") || name.ends_with("tmp")), "{left:?}: {context}");
}

fn calls_of_scenario() -> u64 {
    let fs = SimulatedFs::default();
    let mut acknowledged = Acknowledged::default();
    scenario(&fs, &mut acknowledged).unwrap();
    check(&fs, &acknowledged, "without a fault");
    assert_eq!(acknowledged.trajectories.len(), 2);
    assert!(acknowledged.trajectories.values().all(|state| *state == (STEPS, true)));
    fs.calls()
}

#[test]
fn a_power_cut_at_any_call_with_any_subset_of_unsynced_changes() {
    for crash in 0..=calls_of_scenario() {
        let fs = SimulatedFs::default();
        fs.set_plan(Plan { crash_at: Some(crash), ..Plan::default() });
        let mut acknowledged = Acknowledged::default();
        let result = scenario(&fs, &mut acknowledged);
        for survivors in Survivors::each(fs.pending()) {
            let context = format!("power cut at call {crash}, {survivors:?}, {result:?}");
            let disk = fs.after_crash(survivors);
            check(&disk, &acknowledged, &context);
            recover(&disk, &acknowledged, &context);
        }
    }
}

#[test]
fn a_killed_process_at_any_call_loses_nothing_that_it_wrote() {
    for crash in 0..=calls_of_scenario() {
        let fs = SimulatedFs::default();
        fs.set_plan(Plan { crash_at: Some(crash), ..Plan::default() });
        let mut acknowledged = Acknowledged::default();
        let _ = scenario(&fs, &mut acknowledged);
        let disk = fs.copy();
        let context = format!("killed at call {crash}");
        check(&disk, &acknowledged, &context);
        recover(&disk, &acknowledged, &context);
    }
}

#[test]
fn a_power_cut_during_the_recovery_from_a_power_cut() {
    for crash in (0..=calls_of_scenario()).step_by(5) {
        let fs = SimulatedFs::default();
        fs.set_plan(Plan { crash_at: Some(crash), ..Plan::default() });
        let mut acknowledged = Acknowledged::default();
        let _ = scenario(&fs, &mut acknowledged);
        for second in 0..40 {
            let disk = fs.after_crash(Survivors::All);
            disk.set_plan(Plan { crash_at: Some(second), ..Plan::default() });
            let _ = join(&disk).and_then(|store| {
                store.seal()?;
                store.begin("second", None).map(drop)
            });
            for survivors in [Survivors::None, Survivors::All, Survivors::Only(0), Survivors::AllBut(0)] {
                let disk = disk.after_crash(survivors);
                let context = format!("power cut at call {crash}, then at call {second}, {survivors:?}");
                check(&disk, &acknowledged, &context);
                recover(&disk, &acknowledged, &context);
            }
        }
    }
}

/// Writes one trajectory, trying again whatever failed.
fn stubborn(fs: &SimulatedFs, acknowledged: &mut Acknowledged) -> Result<()> {
    let twice = |action: &mut dyn FnMut() -> Result<()>| action().or_else(|_| action());
    let mut store = None;
    twice(&mut || join(fs).map(|joined| store = Some(joined)))?;
    let store = store.unwrap();
    acknowledged.store = true;
    let mut writer = None;
    twice(&mut || store.begin("first", None).map(|begun| writer = Some(begun)))?;
    let mut writer = writer.unwrap();
    while writer.steps() < STEPS {
        twice(&mut || append(&mut writer))?;
        if writer.flush().is_err() {
            // Nobody knows what reached the disk: what is acknowledged is there, the rest is written again.
            drop(writer);
            writer = store.begin("first", None)?;
            continue;
        }
        acknowledged.flushed(&writer);
    }
    if writer.complete().is_err() {
        drop(writer);
        match store.begin("first", None) {
            Ok(again) => writer = again,
            Err(Error::KeyConflict { .. }) => return store.seal().map(drop),
            Err(error) => return Err(error),
        }
        while writer.steps() < STEPS {
            append(&mut writer)?;
        }
        writer.complete()?;
    }
    acknowledged.completed(&writer);
    twice(&mut || store.seal().map(drop))
}

#[test]
fn any_call_may_fail_once_and_the_same_process_goes_on() {
    let total = {
        let fs = SimulatedFs::default();
        stubborn(&fs, &mut Acknowledged::default()).unwrap();
        fs.calls()
    };
    let mut syncs = 0;
    for fail in 0..total {
        for forget in [false, true] {
            let fs = SimulatedFs::default();
            fs.set_plan(Plan { fail_at: Some(fail), forget_on_failed_sync: forget, ..Plan::default() });
            let mut acknowledged = Acknowledged::default();
            let context = format!("call {fail} fails, forgetting {forget}");
            stubborn(&fs, &mut acknowledged).unwrap_or_else(|error| panic!("{error}: {context}"));
            assert!(fs.calls() > fail);
            syncs += fs.failed_syncs();
            check(&fs, &acknowledged, &context);
            check(&fs.after_crash(Survivors::None), &acknowledged, &context);
            recover(&fs, &acknowledged, &context);
        }
    }
    assert!(syncs > 4, "{syncs}");
}

/// The records of a killed writer are in memory alone. Whoever takes over meets a failing disk, and then another takes over.
#[test]
fn a_resumption_whose_sync_failed_is_not_trusted_by_the_next() {
    let killed = || {
        let fs = SimulatedFs::default();
        let mut writer = join(&fs).unwrap().begin("first", None).unwrap();
        append(&mut writer).unwrap();
        append(&mut writer).unwrap();
        drop(writer);
        fs
    };
    let total = {
        let fs = killed();
        fs.set_plan(Plan::default());
        join(&fs).unwrap().begin("first", None).unwrap();
        fs.calls()
    };
    let mut failed = 0;
    for fail in 0..total {
        for forget in [false, true] {
            let fs = killed();
            fs.set_plan(Plan { fail_at: Some(fail), forget_on_failed_sync: forget, ..Plan::default() });
            failed += u32::from(join(&fs).and_then(|store| store.begin("first", None)).is_err());
            fs.set_plan(Plan::default());
            let mut acknowledged = Acknowledged { store: true, ..Acknowledged::default() };
            let mut writer = join(&fs).unwrap().begin("first", None).unwrap();
            writer.flush().unwrap();
            acknowledged.flushed(&writer);
            let context = format!("call {fail} fails, forgetting {forget}");
            assert_eq!(writer.steps(), 2, "{context}");
            drop(writer);
            check(&fs.after_crash(Survivors::None), &acknowledged, &context);
            recover(&fs, &acknowledged, &context);
            let left = fs.paths().iter().any(|path| path.extension().is_some_and(|extension| extension == "unsynced"));
            assert!(!left, "{context}");
        }
    }
    assert!(failed > 4, "{failed}");
}

#[test]
fn a_disk_that_is_full_at_any_byte_keeps_what_was_acknowledged() {
    let whole = {
        let fs = SimulatedFs::default();
        scenario(&fs, &mut Acknowledged::default()).unwrap();
        fs.paths().iter().map(|path| fs.content(path).len()).sum::<usize>()
    };
    let mut full = 0;
    for capacity in (0..4 * whole).step_by(37) {
        let fs = SimulatedFs::default();
        fs.set_plan(Plan { capacity: Some(capacity), ..Plan::default() });
        let mut acknowledged = Acknowledged::default();
        let context = format!("{capacity} bytes fit");
        match scenario(&fs, &mut acknowledged) {
            Ok(()) => {}
            Err(Error::Io { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{context}");
                full += 1;
            }
            Err(error) => panic!("{error}: {context}"),
        }
        check(&fs, &acknowledged, &context);
        check(&fs.after_crash(Survivors::None), &acknowledged, &context);
        fs.set_plan(Plan::default());
        recover(&fs, &acknowledged, &context);
    }
    assert!(full > 20, "{full}");
}

#[test]
fn a_writer_goes_on_when_there_is_room_again() {
    let fs = SimulatedFs::default();
    let store = join(&fs).unwrap();
    let mut writer = store.begin("first", None).unwrap();
    append(&mut writer).unwrap();
    writer.flush().unwrap();
    let used = fs.paths().iter().map(|path| fs.content(path).len()).sum::<usize>();
    for room in 0..200 {
        fs.set_plan(Plan { capacity: Some(used + room), ..Plan::default() });
        assert!(matches!(append(&mut writer), Err(Error::Io { .. })));
        assert_eq!(writer.steps(), 1);
    }
    fs.set_plan(Plan::default());
    while writer.steps() < STEPS {
        append(&mut writer).unwrap();
    }
    writer.complete().unwrap();
    let acknowledged = Acknowledged { store: true, trajectories: [("first".to_owned(), (STEPS, true))].into() };
    check(&fs.after_crash(Survivors::None), &acknowledged, "after room was made");
}
