"""Prefetching changes nothing but time, so what can be seen of it is the instruction."""

import platform

import numba
import numpy as np
import pytest

from kvpredict.core.jit import interpreted, kernel
from kvpredict.core.prefetch import prefetch


@kernel
def ask(array, index):
    prefetch(array, index)


@pytest.mark.parametrize("array", [np.arange(5), np.ones((3, 4), np.float32), np.ones((4, 3)).T, np.arange(10)[::2]])
@pytest.mark.parametrize("index", [0, 2, -1, 2**40, np.int32(1)])
def test_any_place_may_be_asked_for(array: np.ndarray, index: int) -> None:
    before = array.copy()
    ask(array, index)
    np.testing.assert_array_equal(array, before)


@pytest.mark.skipif(interpreted() or platform.machine() not in ("x86_64", "AMD64"), reason="of compiled code for x86")
def test_the_processor_is_asked_for_the_place() -> None:
    fresh = numba.njit(lambda array, index: prefetch(array, index))  # nothing kept on disk can be looked into
    fresh(np.zeros((7, 3, 8)), 5)
    (code,) = fresh.inspect_asm().values()
    assert "prefetcht0" in code.split()
