"""Matrices whose rows begin where a cache line does, so that a small row never lies on two."""

import math
from typing import Any

import numpy as np

__all__ = ["make_rows"]

LINE = 64  # bytes


def make_rows(shape: tuple[int, ...], dtype: Any = np.int64) -> np.ndarray:
    """Return zeros of ``shape`` from the boundary of a cache line on; NumPy's own begin 16 bytes behind one."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)
