"""Values of parameters are checked against their annotations."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.core.fields import check_fields


@dataclass
class Made:
    whole: int = 1
    number: float = 1.0
    text: str = "a"
    flag: bool = False
    row: tuple[float, ...] | None = None
    path: dict[str, int] | None = None
    anything: Any = None
    way: Literal["up", "down"] = "up"
    pair: tuple[int, str] = (1, "a")

    def __post_init__(self) -> None:
        check_fields(self, "thing 'made'")


def test_what_fits_is_taken() -> None:
    Made(np.int32(3), 2, "b", True, [1, 2.5], {"a": 1}, object())
    Made(-1, np.float32(2), "", np.True_, np.ones(3))  # type: ignore[arg-type]
    Made(number=float("inf"), row=(), pair=(2, "b"))


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("whole", 1.0, "a whole number"),
        ("whole", True, "a whole number"),
        ("number", float("nan"), "a number"),
        ("number", "1", "a number"),
        ("text", None, "a text"),
        ("flag", 0, "true or false"),
        ("row", "abc", "a sequence, each of it a number or None"),
        ("row", [1.0, "x"], "a sequence, each of it a number or None"),
        ("path", [], "of type dict or None"),
        ("pair", [1, "a"], "of type tuple"),
    ],
)
def test_what_does_not_fit_is_named(name: str, given: Any, wanted: str) -> None:
    with pytest.raises(KvpredictError) as found:
        Made(**{name: given})
    assert str(found.value) == f"thing 'made': {name} must be {wanted}, got {given!r}"
