"""Matrices whose rows do not lie on two cache lines where they need not."""

import numpy as np
import pytest

from kvpredict.core.rows import LINE, make_rows


@pytest.mark.parametrize("shape", [(1,), (7, 8), (3, 1000, 4)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_rows_begin_on_a_line_and_are_zero(shape: tuple[int, ...], dtype: type) -> None:
    for _ in range(5):
        rows = make_rows(shape, dtype)
        assert rows.ctypes.data % LINE == 0
        assert rows.shape == shape
        assert rows.dtype == dtype
        assert rows.flags.c_contiguous
        assert not rows.any()
        rows[...] = 1
