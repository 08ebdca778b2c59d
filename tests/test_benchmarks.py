"""Benchmarks measure what they say."""

import numpy as np

from benchmarks import start
from kvpredict.policies import policy


def test_the_memory_of_a_state_is_that_of_its_arrays() -> None:
    for name in ("lru", "guarded"):
        found = start.state_bytes(policy(name))
        for slots in (1_000, 100_000):
            whole = sum(array.nbytes for _, array in start.arrays(policy(name).state(slots)))
            assert np.isclose(found[str(slots)] * slots + found["fixed"], whole)
    assert found["fixed"] > 20_000 * 23 * 4 * 2, "the samples of guarded, and the copy that it is trained on"
