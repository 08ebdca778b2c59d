"""Entry: what a cache keeps of a key, the value and the ticket of its stay in one object.

A ticket is a float (see ``ranking``), and an entry is one that carries a value. So a hit notes the entry itself, and an
entry takes 48 bytes, where a tuple of value and ticket takes 96.
"""

from typing import Any

from kvpredict.cache.ranking import SLOT_MASK

__all__ = ["Entry", "Seen", "make_entry", "slot_of"]


class Entry(float):
    """A ticket with the ``value``, which a later put of the key exchanges."""

    __slots__ = ("value",)

    value: Any


class Seen(Entry):
    """An entry that a caller holds as a token of one put: a later one takes its place and leaves it as it is."""

    __slots__ = ()
    __eq__ = object.__eq__  # tokens of two puts differ, though it be the same stay
    __ne__ = object.__ne__
    __hash__ = object.__hash__


def make_entry(ticket: float, value: Any) -> Entry:
    """Return the entry of a stay."""
    entry = Entry(ticket)
    entry.value = value
    return entry


def slot_of(ticket: float) -> int:
    """Return the slot that a ticket names."""
    return int(ticket) & SLOT_MASK
