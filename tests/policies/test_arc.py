"""ARC against its slow twin, and what its paper says of it."""

import numpy as np

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.driver import DictHost
from tests.naive import NaiveARC, compare_with_twin


def test_equals_its_twin() -> None:
    compare_with_twin(policy("arc"), NaiveARC, examples=400)


def test_the_target_follows_the_ghosts() -> None:
    host = DictHost(policy("arc"), 4)
    for key in (1, 2, 1, 2, 3, 4, 5):
        host.access(key)
    assert host.state.target[0] == 0.0
    host.access(3)  # a ghost of T1: that list was too short
    assert host.state.target[0] == 1.0


def test_a_scan_leaves_what_was_used_twice() -> None:
    keys = [1, 1, 2, 2, *range(100, 200), 1, 2]
    assert simulate(Trace.from_keys(keys), "arc", 4).hit[-2:].tolist() == [1, 1]


def test_the_directory_never_exceeds_twice_the_cache() -> None:
    host = DictHost(policy("arc"), 20)
    rng = np.random.default_rng(1)
    for _ in range(4000):
        host.access(int(rng.zipf(1.2)) % 200)
        if rng.random() < 0.05 and host.key_of:
            host.delete(host.key_of[int(rng.choice(host.resident()))])
        host.validate()
