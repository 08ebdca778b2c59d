"""The simulator: a whole trace through a policy in one compiled call."""

import time
from typing import Any

import numpy as np

from kvpredict.core.engine import Engine, bind, make_host
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.core.policy import Policy
from kvpredict.policies import policy as make_policy
from kvpredict.simulate.result import Result
from kvpredict.trace.trace import Trace

__all__ = ["as_policy", "simulate"]


def simulate(
    trace: Trace,
    policy: str | Policy,
    capacity: int,
    *,
    unit: str = "objects",
    warmup: float = 0.0,
    seed: int = 0,
) -> Result:
    """Replay ``trace`` through ``policy`` and count its misses.

    Parameters
    ----------
    trace : Trace
    policy : str or Policy
        A name (see ``policy_names``), a policy, or a loaded one.
    capacity : int
        Objects, or bytes with ``unit="bytes"``; an object larger than it is never admitted.
    unit : {"objects", "bytes"}, default "objects"
        With "objects" sizes only weigh the byte miss ratio.
    warmup : float or int, default 0.0
        Requests before it, a fraction (float below 1) or a count, are replayed and not counted.
    seed : int, default 0
        Seed of a stochastic policy.

    Returns
    -------
    Result

    >>> trace = Trace.from_keys([1, 2, 1, 3, 1])
    >>> simulate(trace, "lru", capacity=2).hits
    2
    """
    policy = as_policy(policy)
    if not isinstance(trace, Trace):
        raise KvpredictError(f"expected a Trace, got {type(trace).__name__}; read_trace or Trace.from_keys make one")
    if unit not in ("objects", "bytes"):
        raise unknown_name("unit", unit, ["objects", "bytes"])
    if int(capacity) != capacity:
        raise KvpredictError(f"capacity is a whole number of {unit}, got {capacity}; see Trace.capacity for fractions")
    if capacity < 1:
        raise KvpredictError(f"capacity must be at least 1, got {capacity}")
    cut = trace.position(warmup)
    sized = unit == "bytes" and trace.sizes is not None
    slots = _slots(trace, int(capacity), sized)
    engine = bind(policy)
    arguments = _columns(trace, policy, sized)
    _compile(engine, policy, arguments)
    # The state exists before the clock starts only as far as machine code is concerned: making it is the policy's cost.
    started = time.perf_counter()
    state = policy.state(int(capacity), seed, slots)
    hit = np.empty(len(trace), np.uint8)
    host = make_host(int(capacity), slots, len(policy.extra))
    engine.replay(state, host, trace.ids, trace.keys, *arguments, np.full(trace.unique, -1, np.int32), hit)
    seconds = time.perf_counter() - started
    counted = hit[cut:]
    hits = int(np.count_nonzero(counted))
    if trace.sizes is None:
        total_bytes, hit_bytes = counted.size, hits
    else:
        sizes = np.maximum(trace.sizes[cut:], 1)
        total_bytes, hit_bytes = int(sizes.sum()), int(sizes[counted != 0].sum())
    return Result(
        policy=policy.name,
        capacity=int(capacity),
        unit=unit,
        requests=int(counted.size),
        hits=hits,
        bytes=total_bytes,
        hit_bytes=hit_bytes,
        total_requests=len(trace),
        seconds=seconds,
        warmup=cut,
        seed=seed,
        hit=hit,
        sizes=trace.sizes,
        costs=trace.columns.get("cost"),
    )


def as_policy(policy: str | Policy) -> Policy:
    """Return ``policy`` itself, or the one that the name stands for."""
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str):
        return make_policy(policy)
    raise KvpredictError(f"expected a policy or its name, got {type(policy).__name__}")


def _slots(trace: Trace, capacity: int, sized: bool) -> int:
    """Return the most objects that ``capacity`` can hold at once."""
    if not sized:
        return max(1, min(capacity, trace.unique))
    smallest = max(1, int(trace.sizes.min())) if len(trace) else 1  # type: ignore[union-attr]
    return max(1, min(capacity // smallest, trace.unique))


def _columns(trace: Trace, policy: Policy, sized: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, times, hints and extra as ``Engine.replay`` takes them; an absent column has no elements."""
    sizes = trace.sizes if sized and trace.sizes is not None else np.empty(0, np.int64)
    times = np.empty(0, np.float64) if trace.times is None else trace.times
    if policy.traits.oracle:
        hints = trace.next_use
    else:
        hints = np.asarray(trace.columns.get("cost", np.empty(0)), np.float64)
    names = policy.extra
    extra = np.empty((len(trace) if names else 1, len(names)), np.float64)
    for j, name in enumerate(names):
        extra[:, j] = trace.column(name)
    return sizes, times, hints, extra


def _compile(engine: Engine, policy: Policy, arguments: tuple[Any, ...]) -> None:
    """Make the machine code of ``replay`` before the clock starts."""
    sizes, times, hints, extra = arguments
    nothing = np.empty(0, np.int32)
    engine.replay(
        policy.state(1),
        make_host(1, 1, len(policy.extra)),
        nothing,
        np.empty(0, np.int64),
        sizes[:0],
        times[:0],
        hints[:0],
        extra[:0],
        nothing,
        np.empty(0, np.uint8),
    )
