//! Logs that another process seals between two looks at the directory.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use distillrs_core::trajectory::filesystem::{Existing, File, FileSystem, RealFs};
use distillrs_core::trajectory::{Store, Verify};
use support::{check, create, write};

type Event = Box<dyn FnMut(&Path) + Send>;

/// The real file system, with an event before every opening of a log.
struct Eventful(Mutex<Event>);

impl std::fmt::Debug for Eventful {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Eventful")
    }
}

impl FileSystem for Eventful {
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        RealFs.create_directories(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        RealFs.list(directory)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if path.extension().is_some_and(|extension| extension == "dlog") {
            (self.0.lock().unwrap())(path);
        }
        RealFs.open(path)
    }

    fn create(&self, path: &Path, existing: Existing) -> io::Result<Arc<dyn File>> {
        RealFs.create(path, existing)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_directory(path)
    }
}

#[test]
fn what_is_sealed_while_the_directory_is_read_stays_visible() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path());
    write(&store, "a", 3);
    let mut round = 0;
    let event: Event = Box::new(move |_| {
        // Whatever the reader lists is sealed before it gets there, and there is more to list.
        store.seal().unwrap();
        if round < 5 {
            round += 1;
            write(&store, &format!("more {round}"), 2);
        }
    });
    let reader = Store::open_in(Arc::new(Eventful(Mutex::new(event))), folder.path(), Verify::First).unwrap();
    let keys = reader.keys(false).unwrap();
    assert_eq!(keys[..2], ["a", "more 1"], "{keys:?}");
    check(&reader, "a", 3);
    check(&reader, "more 1", 2);
}

#[test]
fn a_log_that_leads_nowhere_for_good_does_not_keep_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(folder.path());
    write(&store, "a", 3);
    let name = format!("log-{}.dlog", "0".repeat(32));
    std::os::unix::fs::symlink(folder.path().join("nowhere"), folder.path().join(name)).unwrap();
    let reader = Store::open(folder.path(), Verify::First).unwrap();
    assert_eq!(reader.keys(false).unwrap(), ["a"]);
    check(&reader, "a", 3);
}
