"""What Linux does for a file beyond Python's os module."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


def reserve(fd: int, size: int) -> None:
    """Raises OSError where there is no room. A file system that cannot reserve is left to its writes: posix_fallocate
    would write a byte into each of its blocks."""
    while _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        if (code := ctypes.get_errno()) in _CANNOT:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def begin_to_flush(fd: int, first: int, size: int) -> None:
    """The kernel begins to write a range, and nobody waits for it. A hint: what comes of it, fsync says."""
    _libc.sync_file_range(fd, ctypes.c_int64(first), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)
