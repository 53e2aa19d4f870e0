//! A file system in memory that knows what is durable, fails where it is told to, and forgets in a crash.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use distillrs_core::trajectory::filesystem::{Existing, File, FileSystem, Mapping};

#[derive(Debug, Clone)]
enum Change {
    Write { inode: usize, offset: usize, data: Vec<u8> },
    SetLength { inode: usize, length: usize },
    Link { path: PathBuf, inode: usize },
    Rename { from: PathBuf, to: PathBuf, inode: usize },
    Unlink { path: PathBuf },
}

impl Change {
    fn inode(&self) -> Option<usize> {
        match self {
            Self::Write { inode, .. } | Self::SetLength { inode, .. } => Some(*inode),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Tree {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
}

impl Tree {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { inode, offset, data } => {
                let file = &mut self.files[*inode];
                let end = offset + data.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset..end].copy_from_slice(data);
            }
            Change::SetLength { inode, length } => self.files[*inode].resize(*length, 0),
            Change::Link { path, inode } => {
                self.names.insert(path.clone(), *inode);
            }
            Change::Rename { from, to, inode } => {
                self.names.remove(from);
                self.names.insert(to.clone(), *inode);
            }
            Change::Unlink { path } => {
                self.names.remove(path);
            }
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// The call, counted from 0 over all that change something, that fails.
    pub fail_at: Option<u64>,
    /// Every call from this one on fails: the process is dead.
    pub crash_at: Option<u64>,
    /// Bytes that fit on the disk.
    pub capacity: Option<usize>,
    /// A failed sync makes the system forget what it could not write, and the next sync succeed.
    pub forget_on_failed_sync: bool,
}

#[derive(Debug, Default)]
struct State {
    current: Tree,
    durable: Tree,
    pending: Vec<Change>,
    /// Lock holder of each inode.
    locks: BTreeMap<usize, u64>,
    handles: u64,
    calls: u64,
    plan: Plan,
    failed_syncs: u64,
}

/// What survives of the changes that were not synced.
#[derive(Debug, Clone, Copy)]
pub enum Survivors {
    None,
    All,
    Only(usize),
    AllBut(usize),
    /// Those before, and half of this one.
    Torn(usize),
}

impl Survivors {
    pub fn each(pending: usize) -> impl Iterator<Item = Self> {
        let single = (0..pending).flat_map(|index| [Self::Only(index), Self::AllBut(index), Self::Torn(index)]);
        [Self::None, Self::All].into_iter().chain(single)
    }
}

#[derive(Debug, Clone, Default)]
pub struct SimulatedFs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct SimulatedFile {
    state: Arc<Mutex<State>>,
    inode: usize,
    handle: u64,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

impl State {
    /// Counts a call that changes something, and says whether it is the one that fails.
    fn call(&mut self) -> io::Result<()> {
        let call = self.calls;
        self.calls += 1;
        if self.plan.crash_at.is_some_and(|crash| call >= crash) {
            return Err(io::Error::other("the process is dead"));
        }
        if self.plan.fail_at == Some(call) {
            return Err(io::Error::other("planned failure"));
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        self.current.apply(&change);
        self.pending.push(change);
    }

    fn settle(&mut self, belongs: impl Fn(&Change) -> bool) {
        let (settled, pending) = std::mem::take(&mut self.pending).into_iter().partition(belongs);
        self.pending = pending;
        let settled: Vec<Change> = settled;
        for change in &settled {
            self.durable.apply(change);
        }
    }

    fn used(&self) -> usize {
        let linked: std::collections::BTreeSet<_> = self.current.names.values().collect();
        linked.into_iter().map(|inode| self.current.files[*inode].len()).sum()
    }
}

impl SimulatedFs {
    pub fn set_plan(&self, plan: Plan) {
        let mut state = lock(&self.state);
        state.plan = plan;
        state.calls = 0;
    }

    /// Calls that changed something since the plan was set.
    pub fn calls(&self) -> u64 {
        lock(&self.state).calls
    }

    pub fn failed_syncs(&self) -> u64 {
        lock(&self.state).failed_syncs
    }

    pub fn pending(&self) -> usize {
        lock(&self.state).pending.len()
    }

    /// The disk after a power cut, in a new machine.
    pub fn after_crash(&self, survivors: Survivors) -> Self {
        let state = lock(&self.state);
        let mut tree = state.durable.clone();
        for (index, change) in state.pending.iter().enumerate() {
            let kept = match survivors {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Only(only) => index == only,
                Survivors::AllBut(but) => index != but,
                Survivors::Torn(torn) => index <= torn,
            };
            match (change, survivors) {
                (Change::Write { inode, offset, data }, Survivors::Torn(torn)) if index == torn => {
                    let data = data[..data.len() / 2].to_vec();
                    tree.apply(&Change::Write { inode: *inode, offset: *offset, data });
                }
                _ if kept => tree.apply(change),
                _ => {}
            }
        }
        Self::of(tree)
    }

    /// A copy of what is there now, all of it durable.
    pub fn copy(&self) -> Self {
        Self::of(lock(&self.state).current.clone())
    }

    fn of(tree: Tree) -> Self {
        let state = State { durable: tree.clone(), current: tree, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        lock(&self.state).current.names.keys().cloned().collect()
    }

    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = lock(&self.state);
        state.current.files[state.current.names[path]].clone()
    }

    pub fn set_content(&self, path: &Path, content: Vec<u8>) {
        let mut state = lock(&self.state);
        let inode = state.current.names[path];
        state.current.files[inode] = content.clone();
        state.durable.files[inode] = content;
    }

    fn open_inode(&self, state: &mut State, inode: usize) -> Arc<dyn File> {
        state.handles += 1;
        Arc::new(SimulatedFile { state: self.state.clone(), inode, handle: state.handles })
    }
}

impl FileSystem for SimulatedFs {
    fn create_directories(&self, _path: &Path) -> io::Result<()> {
        lock(&self.state).call()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = lock(&self.state);
        let inside = state.current.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = lock(&self.state);
        let inode = *state.current.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.open_inode(&mut state, inode))
    }

    fn create(&self, path: &Path, existing: Existing) -> io::Result<Arc<dyn File>> {
        let mut state = lock(&self.state);
        state.call()?;
        if let Some(&inode) = state.current.names.get(path) {
            return match existing {
                Existing::Refuse => Err(io::ErrorKind::AlreadyExists.into()),
                Existing::Keep => Ok(self.open_inode(&mut state, inode)),
            };
        }
        let inode = state.current.files.len();
        state.current.files.push(Vec::new());
        state.durable.files.push(Vec::new());
        state.change(Change::Link { path: path.to_path_buf(), inode });
        Ok(self.open_inode(&mut state, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.call()?;
        let inode = *state.current.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Rename { from: from.to_path_buf(), to: to.to_path_buf(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.call()?;
        if !state.current.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Unlink { path: path.to_path_buf() });
        Ok(())
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.call()?;
        state.settle(|change| change.inode().is_none());
        Ok(())
    }
}

impl File for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        Ok(lock(&self.state).current.files[self.inode].len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = lock(&self.state);
        let start = usize::try_from(offset).unwrap();
        let range = start..start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(state.current.files[self.inode].get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.call()?;
        let offset = usize::try_from(offset).unwrap();
        let length = state.current.files[self.inode].len();
        let growth = (offset + data.len()).saturating_sub(length);
        let room = state.plan.capacity.map(|capacity| capacity.saturating_sub(state.used()));
        let fits = room.map_or(data.len(), |room| data.len() - growth.saturating_sub(room).min(data.len()));
        state.change(Change::Write { inode: self.inode, offset, data: data[..fits].to_vec() });
        if fits < data.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.call()?;
        state.change(Change::SetLength { inode: self.inode, length: usize::try_from(length).unwrap() });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let inode = self.inode;
        if let Err(error) = state.call() {
            state.failed_syncs += 1;
            if state.plan.forget_on_failed_sync {
                state.pending.retain(|change| change.inode() != Some(inode));
            }
            return Err(error);
        }
        state.settle(|change| change.inode() == Some(inode));
        Ok(())
    }

    fn map(&self, length: usize) -> io::Result<Mapping> {
        Ok(Mapping::Copied(lock(&self.state).current.files[self.inode][..length].to_vec()))
    }

    fn lock(&self) -> io::Result<()> {
        // One thread runs the tests, so waiting for a lock would be a deadlock.
        if self.try_lock()? { Ok(()) } else { Err(io::Error::other("deadlock")) }
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = lock(&self.state);
        let holder = *state.locks.entry(self.inode).or_insert(self.handle);
        Ok(holder == self.handle)
    }

    fn unlock(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.locks.get(&self.inode) == Some(&self.handle) {
            state.locks.remove(&self.inode);
        }
        Ok(())
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if state.locks.get(&self.inode) == Some(&self.handle) {
            state.locks.remove(&self.inode);
        }
    }
}
