"""Atomic writes: a file appears whole under its name, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvpredict.core.place import file_place

__all__ = ["atomic_path", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` and rename it to ``path`` when the block ends well; see ``file_place``."""
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


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``."""
    with atomic_path(path) as fresh:
        fresh.write_text(text, "utf-8")
