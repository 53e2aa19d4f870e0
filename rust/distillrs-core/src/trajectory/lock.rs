//! Locks: one short one for the store's directory, one for each trajectory that is being written.
//!
//! A trajectory's lock file is made and removed under the store's lock only. So nobody ever holds the lock of a file that
//! has been removed, while another holds the lock of a new file of the same name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::filesystem::{Existing, File, FileSystem, at, read_all};
use super::{names, platform};
use crate::{Error, Result};

/// Who holds a lock. It stands in a file of its own: Windows lets nobody read a locked one.
#[derive(Serialize, Deserialize)]
struct Owner {
    host: String,
    process: u32,
}

/// Held while files of the store's directory are made, renamed or removed.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: Arc<dyn File>,
}

impl StoreLock {
    /// Waits for the lock. Nobody keeps it for long.
    pub fn acquire(fs: &dyn FileSystem, directory: &Path) -> Result<Self> {
        let path = directory.join(names::STORE_LOCK);
        let file = fs.create(&path, Existing::Keep).map_err(at(&path, "opening"))?;
        file.lock().map_err(at(&path, "locking"))?;
        Ok(Self { file })
    }

    /// The lock if it is free now.
    fn try_acquire(fs: &dyn FileSystem, directory: &Path) -> Option<Self> {
        let file = fs.create(&directory.join(names::STORE_LOCK), Existing::Keep).ok()?;
        file.try_lock().is_ok_and(|free| free).then_some(Self { file })
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked meanwhile (a data loader's worker) has the file open too.
        let _ = self.file.unlock();
    }
}

/// Held by the one writer of a trajectory. The system frees it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct KeyLock {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    key: String,
    file: Option<Arc<dyn File>>,
    process: u32,
}

impl KeyLock {
    /// Takes the lock of `key`.
    ///
    /// # Errors
    /// [`Error::StoreLocked`] names the holder.
    pub fn acquire(fs: &Arc<dyn FileSystem>, directory: &Path, key: &str, _store: &StoreLock) -> Result<Self> {
        let path = directory.join(names::lock_name(key));
        let file = fs.create(&path, Existing::Keep).map_err(at(&path, "opening"))?;
        if !file.try_lock().map_err(at(&path, "locking"))? {
            let owner = holder(&**fs, &directory.join(names::owner_name(key)));
            let (host, process) = owner.unwrap_or_else(|| ("an unknown host".to_owned(), "unknown".to_owned()));
            let what = format!("trajectory {key:?}");
            return Err(Error::StoreLocked { what, path: directory.to_path_buf(), host, process });
        }
        let process = std::process::id();
        let lock =
            Self { fs: fs.clone(), directory: directory.to_path_buf(), key: key.to_owned(), file: Some(file), process };
        lock.sign()?;
        Ok(lock)
    }

    fn sign(&self) -> Result<()> {
        let path = self.directory.join(names::owner_name(&self.key));
        let owner = Owner { host: platform::host_name(), process: self.process };
        let text = serde_json::to_vec(&owner).unwrap_or_default();
        let file = self.fs.create(&path, Existing::Keep).map_err(at(&path, "creating"))?;
        file.set_length(0).map_err(at(&path, "writing"))?;
        file.write_at(&text, 0).map_err(at(&path, "writing"))
    }

    /// The trajectory.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this process took the lock; a forked child must leave its parent's alone.
    pub fn is_own(&self) -> bool {
        self.process == std::process::id()
    }

    /// Takes the store's lock, gives this one back and removes its files.
    pub fn release_alone(self) -> Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        let store = StoreLock::acquire(&*self.fs, &self.directory)?;
        self.release(&store)
    }

    /// Gives the lock back and removes its files. `_store` is held by the caller.
    pub fn release(mut self, _store: &StoreLock) -> Result<()> {
        self.remove_files()
    }

    fn remove_files(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        if !self.is_own() {
            return Ok(());
        }
        let mut result = Ok(());
        for name in [names::owner_name(&self.key), names::lock_name(&self.key)] {
            let path = self.directory.join(name);
            match self.fs.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(at(&path, "removing")(error)),
                _ => {}
            }
        }
        // Freed only now: removed first, the name cannot be locked by another before it goes.
        let _ = file.unlock();
        result
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        if self.file.is_none() || !self.is_own() {
            return;
        }
        // Never waits: the store's lock may be held further up in this very call. Without it the files stay, unlocked, and
        // the next writer of this key takes them over.
        if let Some(_store) = StoreLock::try_acquire(&*self.fs, &self.directory) {
            let _ = self.remove_files();
        }
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

fn holder(fs: &dyn FileSystem, path: &Path) -> Option<(String, String)> {
    let file = fs.open(path).ok()?;
    let text = read_all(&*file, path, 4096).ok()?;
    let owner: Owner = serde_json::from_slice(&text).ok()?;
    Some((owner.host, owner.process.to_string()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::filesystem::RealFs;
    use super::*;

    #[test]
    fn a_child_that_was_forked_meanwhile_does_not_keep_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let held = StoreLock::acquire(&RealFs, directory.path()).unwrap();
        // SAFETY: the child calls nothing but `pause`, which may be called after a fork from any thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: it has no preconditions.
                unsafe { libc::pause() };
            }
        }
        assert!(StoreLock::try_acquire(&RealFs, directory.path()).is_none());
        drop(held);
        let free = StoreLock::try_acquire(&RealFs, directory.path()).is_some();
        // SAFETY: `child` is this process's own child, and is not waited for anywhere else.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert!(free);
    }
}
