"""The hash tables against dicts, with keys that collide and keys of any bit pattern."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.index import check_index, index_drop, index_get, index_guess, index_put, make_index
from kvpredict.core.table import hash_key, make_table, table_get, table_put
from tests.strategies import THOROUGH

EDGES = [0, 1, -1, 2**31, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]
N = 6


def colliding(cells: int, count: int) -> list[int]:
    """Return keys that all hash to the last cell, so that runs wrap round the end of the table."""
    found = [k for k in range(200_000) if int(hash_key(k)) & (cells - 1) == cells - 1]
    return found[:count]


KEYS = [*EDGES, *colliding(16, 8)]


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 2**31 - 1)), max_size=60))
def test_table_equals_a_dict(operations: list[tuple[int, int]]) -> None:
    table = make_table(N)
    model: dict[int, int] = {}
    for key, value in operations:
        if len(model) < N or key in model:
            table_put(table, key, value)
            model[key] = value
        for known in KEYS:
            assert table_get(table, known) == model.get(known, -1)
        assert int((table.values >= 0).sum()) == len(model)


@THOROUGH
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS)), max_size=60))
def test_index_equals_a_dict(operations: list[tuple[bool, int]]) -> None:
    cells = make_index(N)
    rows = np.zeros(3 * N, np.int64)  # keys stand at every third place
    model: dict[int, int] = {}
    free = list(range(N))
    for put, key in operations:
        if put and free and key not in model:
            row = free.pop()
            rows[3 * row] = key
            index_put(cells, key, row)
            model[key] = row
        elif not put and key in model:
            row = model.pop(key)
            index_drop(cells, key, row)
            free.append(row)
        for known in KEYS:
            assert index_get(cells, rows, 3, known) == model.get(known, -1)
            assert index_guess(cells, known) in {-1, *model.values()}
        check_index(cells, rows, 3, list(model.values()))


def test_a_guess_is_right_unless_keys_are_in_each_others_way() -> None:
    cells, keys = make_index(1000), np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 1000, dtype=np.int64)
    for row, key in enumerate(keys):
        index_put(cells, key, row)
    assert np.mean([index_guess(cells, key) == row for row, key in enumerate(keys)]) > 0.7


def test_a_full_table_finds_every_key() -> None:
    keys = np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 5_000, dtype=np.int64)
    table = make_table(keys.size)
    for i, key in enumerate(keys):
        table_put(table, key, i)
    assert [table_get(table, key) for key in keys] == list(range(keys.size))


def test_hash_spreads_consecutive_keys() -> None:
    for step in (1, 8, 4096, 2**32, 2**48):
        cells = np.bincount([int(hash_key(np.int64(k * step))) & 255 for k in range(25_600)], minlength=256)
        # 100 expected in each of 256 cells, standard deviation 10.
        assert cells.min() > 40, step
        assert cells.max() < 170, step
