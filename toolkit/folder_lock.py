"""One process at a time in a folder: a lock that the kernel takes back when its holder dies, however it dies."""

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import UserError

LOCK = ".lock"
"""The file that is locked; that it is there means nothing."""


class FolderLock:
    """Held until `release`, until nobody refers to it any more, or until the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)

    @property
    def held(self) -> bool:
        """Whether it has not been given back."""
        return self._close.alive

    def release(self) -> None:
        """Give it back."""
        self._close()


_HELD: weakref.WeakValueDictionary[tuple[int, int], FolderLock] = weakref.WeakValueDictionary()
"""Locks of this process by device and inode: what holds a folder already is not kept out of it."""


def lock(folder: Path, *, wait: bool = False) -> FolderLock | None:
    """The folder's lock, or None where another process has it. Shared by all of this process that ask for it.

    Args:
        wait: until it is free.

    Raises:
        OSError: the folder is not there (any more), or cannot be written.
    """
    path = folder / LOCK
    while True:
        mine = _mine(path)
        if mine is not None and mine.held:
            return mine
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _locked(descriptor, wait):
            os.close(descriptor)
            return None
        # The holder before may have renamed the folder or removed the file since it was opened here.
        if path.exists() and _identity(path) == (key := _identity(descriptor)):
            taken = _HELD[key] = FolderLock(descriptor)
            return taken
        os.close(descriptor)


def take(folder: Path) -> FolderLock:
    """The lock of an unfinished folder.

    Raises:
        UserError: another process has it.
        OSError: see `lock`.
    """
    held = lock(folder)
    if held is None:
        raise UserError(f"{folder} is in use: another command is at work in it; wait for its end")
    return held


@contextmanager
def let_go_on_failure(folder: Path) -> Iterator[None]:
    """Give back this process's lock of a folder where work on it fails: what failed may be referred to for long."""
    try:
        yield
    except BaseException:
        if (mine := _mine(folder / LOCK)) is not None:
            mine.release()
        raise


def _mine(path: Path) -> FolderLock | None:
    return _HELD.get(_identity(path)) if path.exists() else None


def _identity(file: Path | int) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _locked(descriptor: int, wait: bool) -> bool:
    if sys.platform == "win32":  # no such locks there
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: as well go on as refuse every run there
        return True
    return True
