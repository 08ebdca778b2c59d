"""Where a file goes that is written beside its place and renamed into it, which would replace whatever stands there."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "file_place"]


def file_place(path: "str | os.PathLike[str]") -> Path:
    """Return the place of the file ``path``: where it is a symbolic link, what that points to.

    Raises
    ------
    OSError
        Where something else than a regular file stands there, such as a folder, a pipe or a device.
    """
    place = Path(os.path.realpath(path))
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    if not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, "something stands there that is no regular file; choose another path", str(path))
    return place


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside the place of ``path`` and rename it into that when the block ends well.

    A reader never sees half of it, and on an error what stood there stays.
    """
    path = file_place(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    fresh = Path(name)
    try:
        os.fchmod(handle, 0o644)
        os.close(handle)
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        if error.filename is None:  # as when the disk is full
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        fresh.unlink(missing_ok=True)
