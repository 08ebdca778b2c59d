"""Block hashes: equal exactly where prefixes are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.blocks import block_hashes

TOKENS = st.lists(st.integers(0, 3), max_size=20)


@given(a=TOKENS, b=TOKENS, size=st.integers(1, 5), partial=st.booleans())
def test_blocks_are_shared_exactly_where_prefixes_are(a: list[int], b: list[int], size: int, partial: bool) -> None:
    left, right = block_hashes(a, size, partial=partial), block_hashes(b, size, partial=partial)
    assert len(left) == (-(-len(a) // size) if partial else len(a) // size)
    for k in range(min(len(left), len(right))):
        assert (left[k] == right[k]) == (a[: (k + 1) * size] == b[: (k + 1) * size])


def test_salts_part_tenants() -> None:
    assert block_hashes([1, 2], 2)[0] != block_hashes([1, 2], 2, salt=b"tenant")[0]


def test_ids_do_not_change() -> None:
    assert block_hashes([7], 1).tolist() == [-1997559956479359049]


@pytest.mark.parametrize("arguments", [([1], 0), ([[1]], 1), ([1], 1, b"x" * 65)])
def test_mistakes_are_named(arguments: tuple) -> None:
    tokens, size, *salt = arguments
    with pytest.raises(KvpredictError, match=r"block_size|tokens|salt"):
        block_hashes(tokens, size, salt=salt[0] if salt else b"")
