"""Forks: what becomes of a cache and its parts in a forked child, where of all threads only the forking one lives on.

Servers that load the service and then fork their workers do this to every cache. In the child, locks that another
thread held would never be let go of, loads under way would never land, and background threads are gone; so each part
says in ``_forked`` how it starts over there.
"""

import os
import weakref
from typing import Any

__all__ = ["starts_over_in_child"]

_parts: "weakref.WeakSet[Any]" = weakref.WeakSet()


def starts_over_in_child(part: Any) -> None:
    """Have ``part._forked()`` called in every child that is forked while it lives."""
    _parts.add(part)


def _in_child() -> None:
    for part in list(_parts):
        part._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
