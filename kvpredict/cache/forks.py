"""Forks: what becomes of a cache and its parts in a forked child, where of all threads only the forking one lives on.

Servers that load the service and then fork their workers do this to every cache. In the child, locks that another
thread held would never be let go of, loads under way would never land, and background threads are gone; so each part
says in ``_forked`` how it starts over there, in the order in which they were made: what others rely on comes first.

Numba's compiler has a lock, too, which a thread that loads or makes machine code holds: a fork waits for that.
"""

import os
import threading
import weakref
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

__all__ = ["starts_over_in_child"]

_parts: "weakref.WeakKeyDictionary[Any, None]" = weakref.WeakKeyDictionary()


def starts_over_in_child(part: Any) -> None:
    """Have ``part._forked()`` called in every child that is forked while it lives."""
    _parts[part] = None


def _in_child() -> None:
    try:
        global_compiler_lock.release()
    except RuntimeError:  # an interrupt came while it was waited for, so another thread may have held it
        global_compiler_lock._lock = threading.RLock()
    for part in list(_parts):
        part._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire, after_in_parent=global_compiler_lock.release, after_in_child=_in_child
    )
