"""Where a file goes that is written beside its place and renamed into it, which would replace whatever stands there."""

import errno
import os
import stat
from pathlib import Path

__all__ = ["file_place"]


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
