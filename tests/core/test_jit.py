"""Indices of compiled kernels, which do not count from the end of an array unless they are constants."""

from typing import Literal

import numba
import numpy as np
import pytest
from numba.core.errors import UnsupportedError

from kvpredict.core.jit import interpreted, kernel, lean_kernel, lean_subroutine

LOWEST = -3


@kernel
def last(values):
    return values[-1], values[len(values) - 1], values[LOWEST]


@lean_kernel
def corner(table, row):
    table[-1][-1] = table[row][-1] + table[-1][row]


def whole(table):
    return table[-1, -1]


def part(table, row):
    return table[row, -1]


def written(table, row):
    table[-2, row] = 1.0


K, LAST = 2, -1


def worked_out(table):
    return table[-K, 0]


def worked_out_alone(table):
    return table[LAST - 1]


@numba.njit(inline="always")
def corner_of(table):
    return table[0, -1]


def inlined(table):
    return corner_of(table)


@lean_subroutine
def pick(values, at):
    return values[at]


def test_constants_count_from_the_end() -> None:
    assert last(np.arange(5)) == (4, 4, 2)
    table = np.arange(9).reshape(3, 3)
    corner(table, 1)
    assert table[2, 2] == 5 + 7


@pytest.mark.skipif(interpreted(), reason="nothing is compiled")
@pytest.mark.parametrize("decorate", [kernel, lean_kernel, lean_subroutine])
@pytest.mark.parametrize(
    ("function", "rows"),
    [(whole, 0), (part, 1), (written, 1), (worked_out, 0), (worked_out_alone, 0), (inlined, 0)],
)
def test_constants_that_would_be_misread_are_refused(decorate, function, rows) -> None:
    with pytest.raises(UnsupportedError, match="count from the start"):
        decorate(function)(np.zeros((3, 3)), *[1] * rows)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_indices_of_any_type(kind: type) -> None:
    values = np.arange(10.0, 20.0)
    for at in (kind(0), kind(1)):
        assert pick(values, at) == 10.0 + int(at)
    assert pick(values, kind(9)) == 19.0


@kernel
def move(table, rows, columns, values):
    for i in range(len(rows)):
        table[rows[i], columns[i]] += values[i]
        table[rows[i]][columns[i]] *= 2.0


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kinds", [(np.int32, np.uint8), (np.int64, np.int16)])
def test_indices_of_two_dimensions(order: Literal["C", "F"], kinds: tuple[type, type]) -> None:
    rng = np.random.default_rng(1)
    table = np.asarray(rng.random((7, 5)), order=order)
    rows, columns = rng.integers(0, 7, 40).astype(kinds[0]), rng.integers(0, 5, 40).astype(kinds[1])
    values = rng.random(40)
    expected = table.copy()
    for row, column, value in zip(rows, columns, values, strict=True):
        expected[row, column] = (expected[row, column] + value) * 2.0
    move(table, rows, columns, values)
    assert np.array_equal(table, expected)


CHOSEN = np.array([2, -1])


@kernel
def shaped(values):
    return values[..., None].ndim, values[None, ::-1].shape[1], values[CHOSEN].sum()


def test_indices_that_are_no_numbers() -> None:
    values = np.array([3.0, 9.0, 1.0, 5.0])
    assert shaped(values) == (2, 4, 6.0)


@kernel
def parts(values, start, end):
    inner = values[start:end]
    return inner.sum(), values[:-1].size, values[::2][1], np.argmax(values), np.sort(values)[0]


def test_slices_and_functions_of_numpy() -> None:
    values = np.array([3.0, 9.0, 1.0, 5.0])
    for start, end in ((1, 3), (-3, -1), (0, 4)):
        assert parts(values, start, end) == (values[start:end].sum(), 3, 1.0, 1, 1.0)


@pytest.mark.skipif(interpreted(), reason="compares compiled functions")
def test_functions_of_others_are_left_as_they_are() -> None:
    @numba.njit
    def before(values, at):
        return values[at]

    @kernel
    def through(values, at):
        return before(values, at), values[at + 3]

    @numba.njit
    def after(values, at):
        return values[at]

    values = np.arange(4)
    assert through(values, -2) == (2, 1)
    assert after(values, -1) == before(values, -1) == 3
