"""The simulator: a whole trace through a policy in one compiled call."""

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from kvpredict.core.arguments import whole_number
from kvpredict.core.engine import ADMITTED, HIT, Engine, bind, make_host
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.core.objective import MOST_COST
from kvpredict.core.policy import Policy
from kvpredict.load import as_policy
from kvpredict.simulate.result import Result
from kvpredict.trace.trace import LARGEST, Trace, check_unit

__all__ = ["check_trace", "replay_arguments", "simulate", "whole_capacity"]

PREFIX_ARGUMENTS = ("host_capacity", "server", "store")  # of kvpredict.llm.prefix.simulate_prefix


@overload
def simulate(
    trace: Trace,
    policy: str | Policy,
    capacity: int,
    *,
    unit: str = "objects",
    warmup: float = 0.0,
    seed: int = 0,
    semantics: Literal["objects"] = "objects",
) -> Result: ...
@overload
def simulate(
    trace: Any,
    policy: Any,
    capacity: int,
    *,
    warmup: float = 0.0,
    seed: int = 0,
    semantics: Literal["prefix"],
    **server: Any,
) -> Any: ...
def simulate(
    trace: Any,
    policy: Any,
    capacity: int,
    *,
    unit: str = "objects",
    warmup: float = 0.0,
    seed: int = 0,
    semantics: str = "objects",
    **server: Any,
) -> Any:
    """Replay ``trace`` through ``policy`` and count its misses.

    Parameters
    ----------
    trace : Trace
    policy : str or Policy
        A name (see ``policy_names``), a policy, or the folder or MLflow URI of a saved one.
    capacity : int
        Objects, or bytes with ``unit="bytes"``; an object larger than it is never admitted.
    unit : {"objects", "bytes"}, default "objects"
        With "objects" sizes only weigh the byte miss ratio.
    warmup : float or int, default 0.0
        Requests before it, a fraction (float below 1) or a count, are replayed and not counted.
    seed : int, default 0
        Seed of a stochastic policy.
    semantics : {"objects", "prefix"}, default "objects"
        With "prefix" the trace is a ``RequestTrace``, replayed with an LLM server's rules, ``capacity`` is blocks, and
        further arguments go to ``kvpredict.llm.prefix.simulate_prefix``.

    Returns
    -------
    Result, or PrefixResult with ``semantics="prefix"``

    Raises
    ------
    KvpredictError
        On a capacity below 1 or not whole, an unknown unit or policy, a warm-up that is negative, or a column "cost"
        that holds negative or no finite numbers.

    >>> trace = Trace.from_keys([1, 2, 1, 3, 1])
    >>> simulate(trace, "lru", capacity=2).hits
    2
    """
    if semantics == "prefix":
        from kvpredict.llm.prefix import simulate_prefix

        if unit != "objects":
            raise KvpredictError(
                f"unit={unit!r} has no effect with semantics='prefix', which counts blocks: leave it out"
            )
        for name in server:
            if name not in PREFIX_ARGUMENTS:
                raise unknown_name("argument of simulate", name, ["warmup", "seed", "semantics", *PREFIX_ARGUMENTS])
        return simulate_prefix(trace, policy, capacity, warmup=warmup, seed=seed, **server)
    if semantics != "objects":
        raise unknown_name("semantics", semantics, ["objects", "prefix"])
    for name in server:
        raise unknown_name("argument of simulate", name, ["unit", "warmup", "seed", "semantics"])
    policy = as_policy(policy)
    check_trace(trace)
    capacity, seed = whole_capacity(capacity, unit), whole_number("seed", seed, least=None)
    cut = trace.position(warmup)
    engine = bind(policy)
    _, slots, arguments = replay_arguments(trace, policy, capacity, unit)
    _compile(engine, policy, arguments)
    ids, unique = trace.ids, trace.unique
    started = time.perf_counter()  # making the state is part of a policy's cost, numbering the trace's keys is not
    state = policy.state(capacity, seed, slots)
    outcome = np.empty(len(trace), np.uint8)
    host = make_host(capacity, slots, len(policy.extra))
    engine.replay(state, host, ids, trace.keys, *arguments, np.full(unique, -1, np.int32), outcome)
    seconds = time.perf_counter() - started
    writes = int(np.count_nonzero(outcome[cut:] == ADMITTED))
    hit = outcome & HIT
    counted = hit[cut:]
    hits = int(np.count_nonzero(counted))
    if trace.sizes is None:
        total_bytes, hit_bytes = counted.size, hits
    else:
        sizes = np.maximum(trace.sizes[cut:], 1)
        total_bytes, hit_bytes = int(sizes.sum()), int(sizes[counted != 0].sum())
    costs = trace.columns.get("cost")
    return Result(
        policy=policy.name,
        capacity=capacity,
        unit=unit,
        requests=int(counted.size),
        hits=hits,
        bytes=total_bytes,
        hit_bytes=hit_bytes,
        total_requests=len(trace),
        seconds=seconds,
        warmup=cut,
        seed=seed,
        writes=writes,
        account=policy.account(state),
        miss_cost=None if costs is None else float(costs[cut:][counted == 0].sum()),
        hit=hit,
        sizes=trace.sizes,
    )


def check_trace(trace: Any) -> None:
    """Raise unless ``trace`` is one."""
    if not isinstance(trace, Trace):
        raise KvpredictError(f"expected a Trace, got {type(trace).__name__}; read_trace or Trace.from_keys make one")


def _no_number(texts: Sequence[str]) -> str:
    """Return the first text that is no finite number, or the first one."""

    def finite(text: str) -> bool:
        try:
            return math.isfinite(float(text))
        except ValueError:
            return False

    return next((text for text in texts if not finite(text)), texts[0])


def whole_capacity(capacity: Any, unit: str) -> int:
    """Return ``capacity`` as an int of at least 1, or raise; for an unknown ``unit``, too."""
    check_unit(unit)
    try:
        whole = int(capacity)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != capacity:
        raise KvpredictError(
            f"capacity is a whole number of {unit}, got {capacity!r}; see Trace.capacity for fractions"
        )
    if not 1 <= whole <= LARGEST:
        raise KvpredictError(f"capacity must be at least 1 and at most 2**62, got {capacity}")
    return whole


def replay_arguments(
    trace: Trace, policy: Policy, capacity: int, unit: str
) -> tuple[bool, int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Return what ``Engine.replay`` needs of a trace.

    Whether sizes count, the most objects that ``capacity`` can hold at once, and the columns sizes, times, hints and
    extra; an absent column has no elements.
    """
    n = len(trace)
    sizes = trace.sizes if unit == "bytes" and trace.sizes is not None else np.empty(0, np.int64)
    smallest = max(1, int(sizes.min())) if sizes.size else 1
    slots = max(1, min(capacity // smallest, trace.unique))
    times = np.empty(0, np.float64) if trace.times is None else trace.times
    if policy.traits.oracle:
        hints = trace.next_use
    else:
        hints = np.asarray(trace.columns.get("cost", np.empty(0)), np.float64)
        texts = trace.categories.get("cost", ()) if hints.size else ()
        if texts:
            raise KvpredictError(
                f"{trace.name}: the column 'cost' must hold numbers, but was read as text, for it has cells such as "
                f"{_no_number(texts)!r}. Make them numbers, or read the trace without that column"
            )
        bad = np.flatnonzero(~((hints >= 0.0) & (hints <= MOST_COST)))
        if bad.size:  # one such number would be in every sum from then on
            raise KvpredictError(
                f"{trace.name}: the column 'cost' must hold finite numbers, at least 0 and at most {MOST_COST:g}; "
                f"{bad.size} are not, the first at request {bad[0]}: {hints[bad[0]]}. Fill them in, or read the trace "
                "without that column"
            )
    names = policy.extra
    extra = np.empty((n if names else 1, len(names)), np.float64)
    for j, name in enumerate(names):
        extra[:, j] = trace.column(name)
    return sizes.size > 0, slots, (sizes, times, hints, extra)


def _compile(engine: Engine, policy: Policy, arguments: tuple[Any, ...]) -> None:
    """Make the machine code of ``replay`` before the clock starts."""
    sizes, times, hints, extra = arguments
    nothing = np.empty(0, np.int32)
    engine.replay(
        policy.state(8),  # columns of one element count as contiguous, which is another type
        make_host(8, 8, len(policy.extra)),
        nothing,
        np.empty(0, np.int64),
        sizes[:0],
        times[:0],
        hints[:0],
        extra[:0],
        nothing,
        np.empty(0, np.uint8),
    )
