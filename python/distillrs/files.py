"""Writing files whole or not at all, and folders that one process has at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write that takes its name, durably, when the block ends without an error.

    A reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: The file; its folder must exist.

    Yields:
        The new file, binary.

    Raises:
        OSError: The system refused; what was there before is untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner only; a result should be readable like any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file by new content; see :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock goes with the process, also when it is killed.

    Args:
        folder: It must exist. A file system without locks grants every lock.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if sys.platform == "win32":
        import msvcrt

        # Windows locks files only.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as failure:
            os.close(handle)
            raise BlockingIOError(str(failure)) from failure
    else:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            # No lock is better than no work.
            pass
    try:
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    # The name is durable only with its folder. Windows cannot open folders, and some file systems refuse to sync them.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
