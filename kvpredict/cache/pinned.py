"""Pinned arguments: a tuple of arrays taken apart once, not on every call.

Handing a policy's state to a compiled function costs about 50 ns an array, each time, to look it up and wrap it;
for a state of twenty arrays that is more than the decision itself. ``pin`` stores the unwrapped form of a tuple in
memory, and a compiled function made with the ``open_pinned`` of the same type reads it back from the address alone.
The pinned form borrows: it holds no reference, so the owner keeps the arrays alive as long as the address is used.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from kvpredict.core.jit import interpreted, sole_kernel

__all__ = ["Pinned", "entry", "open_pinned", "pin"]


class Pinned:
    """An unwrapped tuple at ``handle``, kept alive together with the arrays it points to."""

    __slots__ = ("_memory", "handle", "value")

    def __init__(self, value: Any, memory: Any, handle: Any) -> None:
        self.value, self._memory, self.handle = value, memory, handle


def pin(value: Any) -> Pinned:
    """Pin a (nested) tuple of arrays and scalars; with Numba disabled the handle is the tuple itself."""
    if interpreted():
        return Pinned(value, None, value)
    size, store = _store(numba.typeof(value))
    memory = np.zeros(size(value) // 8 + 1, np.int64)
    store(memory.ctypes.data, value)
    return Pinned(value, memory, memory.ctypes.data)


@lru_cache(maxsize=256)
def open_pinned(kind: types.Type | None) -> Callable[..., Any]:
    """Return the kernel that reads a pinned tuple of Numba type ``kind`` from its handle."""
    if kind is None:

        def same(handle):
            return handle

        return same

    @intrinsic
    def opened(typing, handle):
        def build(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer())
            return builder.load(pointer, align=8)

        return kind(types.int64), build

    opened_: Callable[..., Any] = opened
    return opened_


@lru_cache(maxsize=256)
def _store(kind: types.Type) -> tuple[Callable[..., int], Callable[..., None]]:
    """Return ``size(value)``, the bytes of the unwrapped form, and ``store(address, value)``."""

    @intrinsic
    def size_of(typing, value):
        def build(context, builder, signature, arguments):
            bytes_ = context.get_abi_sizeof(context.get_value_type(signature.args[0]))
            return context.get_constant(types.int64, bytes_)

        return types.int64(value), build

    @intrinsic
    def store_at(typing, address, value):
        def build(context, builder, signature, arguments):
            borrowed = _borrow(context, builder, signature.args[1], arguments[1])
            pointer = builder.inttoptr(arguments[0], borrowed.type.as_pointer())
            builder.store(borrowed, pointer, align=8)
            return context.get_dummy_value()

        return types.void(types.int64, value), build

    def size(value):
        return size_of(value)  # type: ignore[call-arg]

    def store(address, value):
        store_at(address, value)  # type: ignore[call-arg]

    return entry(size, types.int64(kind)), entry(store, types.void(types.int64, kind))


def entry(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile ``function`` for one signature, and return what lies behind its dispatcher.

    Choosing among signatures costs a third of a call; and Numba chooses by a fingerprint that takes two NamedTuples
    of the same fields for one type, though it then refuses the one for the other.
    """
    behind: Callable[..., Any] = sole_kernel(function).compile(signature)
    return behind


def _borrow(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:
    """Clear the owner of every array in ``value``: reference counting then passes it over."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value=value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        array.parent = ir.Constant(array.parent.type, None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for i, member in enumerate(kind.types):  # type: ignore[attr-defined]
            item = _borrow(context, builder, member, builder.extract_value(value, i))
            value = builder.insert_value(value, item, i)
    return value
