//! What the store asks of a file system: [`RealFs`], or a simulated one that fails and forgets on purpose.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::platform;
use crate::{Error, Result};

/// Whether [`FileSystem::create`] may find the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// A file that is there is an error.
    Refuse,
    /// A file that is there is opened with its content.
    Keep,
}

/// A tree of files. Errors are the system's own; callers add the path.
#[allow(clippy::missing_errors_doc, reason = "every method fails as the system call that it is named after")]
pub trait FileSystem: Debug + Send + Sync {
    /// Makes a directory and those above it; one that is there is fine.
    fn create_directories(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Opens a file to read.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file to read and write, and makes it.
    fn create(&self, path: &Path, existing: Existing) -> io::Result<Arc<dyn File>>;
    /// Gives a file another name in one step, over a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// An open file, read and written by position, so that threads and forked processes can share it.
#[allow(clippy::missing_errors_doc, reason = "every method fails as the system call that it is named after")]
pub trait File: Debug + Send + Sync {
    /// Bytes in the file.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`; the file grows, with zeros in a gap.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Lets the system start on what was written there, so that the disk works while the caller does; promises nothing.
    fn start_writing(&self, _offset: u64, _length: u64) {}
    /// Cuts or extends the file.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// The first `length` bytes, read-only.
    fn map(&self, length: usize) -> io::Result<Mapping>;
    /// Takes the exclusive lock, waiting for it. It goes with the file, also when the process is killed.
    fn lock(&self) -> io::Result<()>;
    /// Takes the exclusive lock if it is free; whether it was.
    fn try_lock(&self) -> io::Result<bool>;
    /// Gives the lock back, also for forked children that have the same open file.
    fn unlock(&self) -> io::Result<()>;
}

/// Bytes of a file.
#[derive(Debug)]
pub enum Mapping {
    /// Pages of the file.
    Mapped(Mmap),
    /// A copy.
    Copied(Vec<u8>),
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

#[derive(Debug)]
struct RealFile(fs::File);

impl FileSystem for RealFs {
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            // A name that is not Unicode is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(fs::File::open(path)?)))
    }

    fn create(&self, path: &Path, existing: Existing) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true);
        match existing {
            Existing::Refuse => options.create_new(true),
            Existing::Keep => options.create(true).truncate(false),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        platform::sync_directory(path)
    }
}

impl File for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        platform::read_exact_at(&self.0, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        platform::write_all_at(&self.0, data, offset)
    }

    fn start_writing(&self, offset: u64, length: u64) {
        platform::start_writing(&self.0, offset, length);
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn map(&self, length: usize) -> io::Result<Mapping> {
        // SAFETY: only sealed segments are mapped. They are never written or cut after their rename, and `length` was
        // compared with the file's before; the store's documentation forbids changing them from outside.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(&self.0)? };
        Ok(Mapping::Mapped(map))
    }

    fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }
}

/// Adds path and action to a system error.
pub(super) fn at<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { path: path.to_path_buf(), action, source }
}

/// The whole content of a file of at most `limit` bytes.
pub(super) fn read_all(file: &dyn File, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let length = file.length().map_err(at(path, "reading"))?;
    let size = usize::try_from(length).ok().filter(|_| length <= limit).ok_or_else(|| Error::StoreCorrupt {
        path: path.to_path_buf(),
        offset: limit,
        reason: format!("the file has {length} bytes; at most {limit} are allowed"),
    })?;
    let mut content = vec![0; size];
    file.read_at(&mut content, 0).map_err(at(path, "reading"))?;
    Ok(content)
}

/// Writes a file beside `path`, makes it durable, and renames it to `path`.
pub(super) fn write_whole(fs: &dyn FileSystem, path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension(format!("{}.tmp", super::names::unique()));
    let written = (|| {
        let file = fs.create(&temporary, Existing::Refuse).map_err(at(&temporary, "creating"))?;
        file.write_at(content, 0).map_err(at(&temporary, "writing"))?;
        file.sync().map_err(at(&temporary, "syncing"))?;
        drop(file);
        fs.rename(&temporary, path).map_err(at(path, "renaming"))
    })();
    if written.is_err() {
        // The first error is the one to report; a leftover is harmless and swept by the next writer.
        let _ = fs.remove(&temporary);
        return written;
    }
    fs.sync_directory(directory).map_err(at(directory, "syncing"))
}
