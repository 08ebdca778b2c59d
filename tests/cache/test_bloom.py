"""Every key that was added is found, and few others are."""

import pytest

from kvpredict.cache import BloomFilter
from kvpredict.core.errors import KvpredictError
from tests.cache.test_threads import together


@pytest.mark.parametrize("share", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("kind", [int, str, lambda n: ("key", n)])
def test_it_errs_as_seldom_as_it_says(share: float, kind: type) -> None:
    known = BloomFilter(2000, share)
    known.update(kind(n) for n in range(2000))
    assert all(kind(n) in known for n in range(2000))
    wrong = sum(kind(n) in known for n in range(2000, 22000))
    assert wrong <= 20000 * share * 1.3 + 5
    assert wrong > 0 or share < 0.01


def test_its_memory_is_bits() -> None:
    assert BloomFilter(10_000, 0.01).bits == pytest.approx(95_850, rel=0.01)


def test_threads_lose_no_key() -> None:
    known = BloomFilter(8000)
    together(lambda i: known.update(range(i * 1000, i * 1000 + 1000)))
    assert all(key in known for key in range(8000))


@pytest.mark.parametrize("arguments", [(0,), (10, 0.0), (10, 1.0), (10, 2), ("many",)])
def test_wrong_arguments_are_told(arguments: tuple[object, ...]) -> None:
    with pytest.raises(KvpredictError):
        BloomFilter(*arguments)  # type: ignore[arg-type]
