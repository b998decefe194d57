"""What Linux does for a file beyond Python's os module."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


def create(path: Path, size: int) -> int:
    """A new file that `write` fills from its first byte on, open past the page cache where the file system can do that.
    Raises OSError where there is no room for `size` bytes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # Linux creates it before it refuses
        fd = os.open(path, flags, 0o666)
    try:
        reserve(fd, size)
    except OSError as error:
        os.close(fd)
        error.filename = str(path)
        raise
    return fd


def write(fd: int, data: memoryview) -> None:
    """All of it, from the first part on that cannot go past the page cache through it: so does the end of a file. The
    kernel begins to write what lies there at once; what comes of that, fsync says."""
    while len(data):
        try:
            data = data[os.write(fd, data) :]
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def reserve(fd: int, size: int) -> None:
    """Raises OSError where there is no room. A file system that cannot reserve is left to its writes: posix_fallocate
    would write a byte into each of its blocks."""
    while _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        if (code := ctypes.get_errno()) in _CANNOT:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
