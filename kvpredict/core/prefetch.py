"""Prefetching: telling the processor which memory will be looked up soon, so that nobody waits for it then."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from kvpredict.core.jit import interpreted

__all__ = ["prefetch"]


def _ignore(array: Any, index: Any) -> None:
    """Do nothing, as it is in plain Python."""


@intrinsic
def _prefetch(typing, array, index):
    """Ask for the cache line where ``array[index]`` begins; an index out of range does no harm."""

    def build(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = context.cast(builder, arguments[1], signature.args[1], types.intp)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        first = builder.bitcast(view.data, byte)
        place = builder.gep(first, [builder.mul(at, builder.extract_value(view.strides, 0))])
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(ask, [place, number(0), number(3), number(1)])  # to be read, to stay, data
        return context.get_dummy_value()

    return types.void(array, index), build


prefetch: Any = _ignore if interpreted() else _prefetch
