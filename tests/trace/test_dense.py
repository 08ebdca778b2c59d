"""Dense ids and next uses equal their slow, obvious twins."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvpredict.trace.dense import dense_ids, next_uses


def naive_ids(keys):
    known = {}
    return [known.setdefault(key, len(known)) for key in keys.tolist()]


def naive_next(keys):
    keys = keys.tolist()
    return [next((float(j) for j in range(i + 1, len(keys)) if keys[j] == keys[i]), np.inf) for i in range(len(keys))]


KEYS = hnp.arrays(
    np.int64,
    st.integers(0, 60),
    elements=st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0, 2**32]),
)


@settings(deadline=None)  # the first call compiles
@given(KEYS)
def test_ids(keys):
    ids, unique = dense_ids(keys)
    assert ids.dtype == np.int32
    assert ids.tolist() == naive_ids(keys)
    assert unique == len(set(keys.tolist()))


@settings(deadline=None)  # the first call compiles
@given(KEYS)
def test_next_uses(keys):
    assert next_uses(*dense_ids(keys)).tolist() == naive_next(keys)


@pytest.mark.parametrize("spread", [1, 2**40])
def test_many_keys(spread):
    # The hash table doubles several times; keys of a narrow range go through the direct table.
    keys = np.random.default_rng(5).integers(0, 300_000, 600_000) * spread - spread
    ids, unique = dense_ids(keys)
    assert ids.tolist() == naive_ids(keys)
    assert unique == np.unique(keys).size


def test_keys_that_collide():
    # Equal low bits, as addresses and block numbers have them.
    keys = np.concatenate([np.arange(50_000) << 40, np.arange(50_000) << 20])
    assert dense_ids(keys)[0].tolist() == naive_ids(keys)


def test_other_dtypes_and_strides():
    keys = np.arange(20, dtype=np.int32)[::-2]
    assert dense_ids(keys)[0].tolist() == list(range(10))


def test_interpreted_equals_compiled():
    script = """
import numpy as np
from kvpredict.trace.dense import dense_ids, next_uses
rng = np.random.default_rng(3)
for keys in (rng.integers(-9, 9, 500), rng.integers(-(2**63), 2**63 - 1, 40)[rng.integers(0, 40, 500)]):
    ids, unique = dense_ids(keys)
    print(ids.tolist(), unique, next_uses(ids, unique).tolist())
"""
    outs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env={"NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert outs[0] == outs[1]
    assert len(outs[0]) > 1000
