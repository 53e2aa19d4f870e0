//! What differs between operating systems. Run on Linux; written for macOS and Windows by their documentation.

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    let mut done = 0;
    while done < buffer.len() {
        match file.seek_read(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    let mut done = 0;
    while done < data.len() {
        match file.seek_write(&data[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A large write is handed to the disk at once instead of at the next sync. Whole pages only: one that the next write
/// touches again would be written twice.
#[cfg(target_os = "linux")]
pub(super) fn start_writing(file: &File, offset: u64, length: u64) {
    use std::os::fd::AsRawFd;
    const PAGE: u64 = 4096;
    const WORTH_A_CALL: u64 = 256 << 10;
    let start = offset.next_multiple_of(PAGE);
    let end = offset.saturating_add(length) / PAGE * PAGE;
    let range = (libc::off64_t::try_from(start), libc::off64_t::try_from(end.saturating_sub(start)));
    if let (Ok(start), Ok(length)) = range
        && length >= WORTH_A_CALL as libc::off64_t
    {
        // SAFETY: the call takes numbers alone, and the descriptor is that of the open `file`. It fails where a file system
        // does not know it; the sync that follows writes everything in any case.
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// Other systems have no call for it.
#[cfg(not(target_os = "linux"))]
pub(super) fn start_writing(_file: &File, _offset: u64, _length: u64) {}

/// Makes creations, renames and removals in a directory durable.
#[cfg(unix)]
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Windows has no call for it; NTFS journals names itself.
#[cfg(windows)]
pub(super) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// This machine's name, for the message to a second writer.
#[cfg(unix)]
pub(super) fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
    let status = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    if status != 0 || end == 0 {
        return "an unknown host".to_owned();
    }
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

/// This machine's name, for the message to a second writer.
#[cfg(windows)]
pub(super) fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "an unknown host".to_owned())
}
