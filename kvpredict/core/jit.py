"""The one decorator behind every compiled function.

``kernel`` compiles with Numba, releases the GIL and gives division NumPy's meaning. It never caches to disk:
a cached function does not notice that an imported kernel it calls has changed. With ``NUMBA_DISABLE_JIT=1``
it hands the plain Python function back, so everything built on it must mean the same in both worlds:
integers stay below 2**63 (no reliance on wrapping), and nothing divides by zero.
"""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["kernel", "lean_kernel"]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` on its first call (``nogil``, NumPy error model, no disk cache)."""
    compiled: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy")(function)
    return compiled


def lean_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function``, which allocates no array, without reference counts and always inline.

    Reading an array out of a state's NamedTuple costs two atomic operations, more where tuples nest, which Numba drops
    only in simple functions; a miss that passes through several kernels is 3 to 10 times as fast without them. The
    caller's references keep the arrays alive. A function that does allocate fails to compile. Inlining spares each
    call the copy of the state's arrays, seven words apiece: up to twice as fast again, at no cost in compilation.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True, "_nrt": False}
    compiled: Callable[..., Any] = numba.njit(**options)(function)
    return compiled
