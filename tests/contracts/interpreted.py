"""Replay one trace through every policy and print the hits as JSON, ``{policy: {unit: hex}}``.

``test_policy.py`` runs it in a second process with ``NUMBA_DISABLE_JIT=1`` and compares with the compiled answer.
"""

import json
import sys
import traceback

import numpy as np

from kvpredict.policies import policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.factories import make
from tests.strategies import wide_keys, zipf_mix

__all__ = ["CAPACITY", "contract_trace", "hits_of", "main"]

CAPACITY = {"objects": 23, "bytes": 260}  # the keys of contract_trace take about 1,100 bytes


def contract_trace(n: int = 1500, keys: int = 90, seed: int = 5, columns: tuple[str, ...] = ()) -> Trace:
    """Return a mixed trace with keys of any bit pattern; sizes, costs and extra columns are constant for a key."""
    ids = zipf_mix(n, keys, seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 25, int(ids.max()) + 1)[ids]
    costs = rng.uniform(0.5, 20.0, int(ids.max()) + 1)[ids]
    extra = {name: rng.uniform(0.0, 4.0, int(ids.max()) + 1)[ids] for name in columns}
    times = np.cumsum(rng.exponential(0.5, n))
    return Trace(wide_keys(ids, seed), times=times, sizes=sizes, columns={"cost": costs, **extra})


def hits_of(name: str, unit: str) -> np.ndarray:
    """Return which requests of the contract trace hit, uint8 ``[n]``."""
    policy = make(name)
    return simulate(contract_trace(columns=policy.extra), policy, CAPACITY[unit], unit=unit, seed=3).hit


def main() -> None:
    answer: dict[str, dict[str, str]] = {}
    for name in policy_names():
        try:
            answer[name] = {unit: np.packbits(hits_of(name, unit)).tobytes().hex() for unit in CAPACITY}
        except Exception:  # one broken policy must not hide the others' answers
            answer[name] = {"error": traceback.format_exc()}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
