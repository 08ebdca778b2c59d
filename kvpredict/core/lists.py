"""Circular doubly linked lists over slots, in one int32 array.

Node ``i`` keeps its previous node at ``links[2 * i]`` and its next at ``links[2 * i + 1]``, so one cache line
holds both. List ``k`` is headed by the sentinel node ``slots + k``; with a sentinel neither ``push`` nor
``unlink`` has a branch. The front of a list is its newest end by convention.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = [
    "back",
    "front",
    "is_empty",
    "make_links",
    "move_to_front",
    "newer",
    "older",
    "push_back",
    "push_front",
    "unlink",
]


def make_links(slots: int, lists: int = 1) -> np.ndarray:
    """Return links, int32 ``[2 * (slots + lists)]``, for ``lists`` empty lists that share ``slots`` nodes."""
    links = np.full(2 * (slots + lists), -1, np.int32)
    for sentinel in range(slots, slots + lists):
        links[2 * sentinel] = links[2 * sentinel + 1] = sentinel
    return links


@lean_kernel
def push_front(links, sentinel, node):
    """Link a free ``node`` in at the front."""
    second = links[2 * sentinel + 1]
    links[2 * node] = sentinel
    links[2 * node + 1] = second
    links[2 * second] = node
    links[2 * sentinel + 1] = node


@lean_kernel
def push_back(links, sentinel, node):
    """Link a free ``node`` in at the back."""
    last = links[2 * sentinel]
    links[2 * node] = last
    links[2 * node + 1] = sentinel
    links[2 * last + 1] = node
    links[2 * sentinel] = node


@lean_kernel
def unlink(links, node):
    """Take ``node`` out of whichever list holds it."""
    before = links[2 * node]
    after = links[2 * node + 1]
    links[2 * before + 1] = after
    links[2 * after] = before


@lean_kernel
def move_to_front(links, sentinel, node):
    """Move a linked ``node`` to the front of the list headed by ``sentinel``."""
    unlink(links, node)
    push_front(links, sentinel, node)


@lean_kernel
def front(links, sentinel):
    """Return the newest node, or the sentinel itself when the list is empty."""
    return links[2 * sentinel + 1]


@lean_kernel
def back(links, sentinel):
    """Return the oldest node, or the sentinel itself when the list is empty."""
    return links[2 * sentinel]


@lean_kernel
def newer(links, node):
    """Return the neighbour towards the front (the sentinel, past the front)."""
    return links[2 * node]


@lean_kernel
def older(links, node):
    """Return the neighbour towards the back (the sentinel, past the back)."""
    return links[2 * node + 1]


@lean_kernel
def is_empty(links, sentinel):
    """Tell whether the list holds no node."""
    return links[2 * sentinel + 1] == sentinel
