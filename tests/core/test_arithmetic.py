"""Exponentials and logarithms against the C library's."""

import math

from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.arithmetic import compress, exponential, half_lives, logarithm
from tests.strategies import THOROUGH


@THOROUGH
@given(st.floats(-42.0, 42.0))
def test_exponential(x: float) -> None:
    assert math.isclose(exponential(x), math.exp(x), rel_tol=1e-7)


def test_exponential_of_large_numbers_stays_finite() -> None:
    assert 0.0 <= exponential(-1e300) <= 1e-18
    assert math.exp(42) <= exponential(1e300) < 1e20


@THOROUGH
@given(st.floats(-80.0, 80.0))
def test_logarithm(power: float) -> None:
    assert math.isclose(logarithm(math.exp(power)), power, abs_tol=1e-6)


@THOROUGH
@given(st.floats(-1e12, 1e12))
def test_compress(x: float) -> None:
    assert math.isclose(compress(x), math.copysign(math.log1p(abs(x)), x), abs_tol=1e-6)


@THOROUGH
@given(st.floats(0.0, 1e6))
def test_half_lives(x: float) -> None:
    assert math.isclose(half_lives(x), 2.0**-x if x < 63.0 else 0.0, rel_tol=1e-7)
