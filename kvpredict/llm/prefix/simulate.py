"""simulate_prefix: a trace of requests through a prefix policy, with a server's rules."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.core.heap import make_heap
from kvpredict.llm.hints import HINTS
from kvpredict.llm.prefix.engine import bind
from kvpredict.llm.prefix.policies import prefix_policy, prefix_policy_names
from kvpredict.llm.prefix.policy import PrefixPolicy
from kvpredict.llm.prefix.pool import Requests, make_pool
from kvpredict.llm.prefix.result import PrefixResult, Server
from kvpredict.llm.requests import RequestTrace

__all__ = ["as_prefix_policy", "check_requests", "compiled_requests", "simulate_prefix"]


def simulate_prefix(
    trace: RequestTrace,
    policy: str | Path | PrefixPolicy,
    capacity: int,
    *,
    host_capacity: int = 0,
    warmup: float = 0.0,
    server: Server | None = None,
    store: str = "arrival",
    seed: int = 0,
) -> PrefixResult:
    """Replay requests through ``policy`` and measure what the cache saves.

    Parameters
    ----------
    trace : RequestTrace
    policy : str, path or PrefixPolicy
        A name (see ``prefix_policy_names``), the folder or MLflow URI of a saved policy, or a policy.
    capacity : int
        Blocks on the device.
    host_capacity : int, default 0
        Blocks in host memory below it.
    warmup : float or int, default 0.0
        Requests before it, a fraction (float below 1) or a count, are replayed and not counted.
    server : Server, optional
        Durations; default: ``Server()``.
    store : {"arrival", "end"}, default "arrival"
        When a request's new blocks enter the cache, as in vLLM, or once it is over and only if they rank above the
        lowest there, as ``PrefixCache`` does it; ARC, SLRU and S3-FIFO refuse nothing. ``learned`` stores at the end,
        unless the ranking that it follows stores on arrival.
    seed : int, default 0
        Of a policy that learns while it runs.

    Raises
    ------
    KvpredictError
        On a capacity below 1, a negative warm-up, or something that is no trace or policy.

    >>> trace = RequestTrace.from_lists([0, 100, 200], [[1, 2, 3], [1, 2, 4], [1, 2, 3]], block_size=16)
    >>> simulate_prefix(trace, "lru", capacity=4).hits
    5
    """
    policy = as_prefix_policy(policy)
    check_requests(trace)
    server = server or Server()
    if not isinstance(server, Server):
        raise KvpredictError(f"server must be a kvpredict.llm.prefix.Server, got {server!r:.60}")
    capacity = whole_number("capacity", capacity, most=2**60)
    host_capacity = whole_number("host_capacity", host_capacity, least=0, most=2**60)
    seed = whole_number("seed", seed, least=0)
    if store not in ("arrival", "end"):
        raise unknown_name("store", store, ("arrival", "end"))
    n = len(trace)
    cut = trace.position(warmup)
    if cut >= n:
        raise KvpredictError(f"warmup must leave some of the trace's {n} requests to count, got {warmup}")
    traits = policy.traits
    tiers = 2 if host_capacity else 1
    shadows = traits.rankings if traits.rankings > 1 else 0
    total = capacity + host_capacity
    requests = compiled_requests(trace, traits.oracle)
    engine = bind(policy, late=store == "end")
    _compile(engine, policy, requests, tiers)
    started = time.perf_counter()
    rows = [capacity] + [host_capacity] * (tiers - 1) + [total] * shadows
    timed = traits.timed or bool({"ttl", "pin_seconds"} & set(trace.hints))
    pool = make_pool(trace.parent, trace.depth, rows, traits.heaps, timed)
    pool.follows[len(rows) - shadows :] = np.arange(shadows)
    state = policy.state(trace.unique, total, n)
    hits = np.zeros((n, max(2, len(rows))), np.int32)
    replay = getattr(policy, "replay", None)
    run = _Run(engine, pool, requests, make_heap(max(n, 1)), server.coefficients(), tiers, hits, policy, shadows)
    info: dict[str, Any] = {}
    if replay is None:
        run(state, 0, n)
    else:
        info = replay(run, state, seed)
    seconds = time.perf_counter() - started
    return _result(policy.name, trace, hits[:, :2] if tiers == 2 else hits[:, :1], run, cut, seconds, server, info)


class _Run:
    """One replay, which a policy that learns advances piece by piece."""

    def __init__(
        self,
        engine: Any,
        pool: Any,
        requests: Requests,
        clock: Any,
        server: np.ndarray,
        tiers: int,
        hits: np.ndarray,
        policy: Any,
        shadows: int,
    ) -> None:
        self.engine, self.pool, self.requests, self.clock = engine, pool, requests, clock
        self.server, self.tiers, self.hits = server, tiers, hits
        self.steer = np.array(policy.steer, np.float64)
        self.shadows = np.zeros(shadows, np.float64)

    def __call__(self, state: Any, first: int, last: int) -> None:
        """Run the requests ``first … last - 1``."""
        self.engine.replay(state, self.pool, self.requests, self.clock, first, last, self.server, self.tiers,
                           self.hits, self.steer, self.shadows)  # fmt: skip


def as_prefix_policy(policy: str | Path | PrefixPolicy) -> PrefixPolicy:
    """Return a policy given as such, by name, or by what ``load_policy`` takes: a folder or an MLflow URI."""
    from kvpredict.load import policy_of_kind

    return policy_of_kind(policy, PrefixPolicy, "prefix policy", prefix_policy_names(), prefix_policy)


def check_requests(trace: Any) -> None:
    """Raise unless ``trace`` is one of requests, and holds some."""
    if not isinstance(trace, RequestTrace):
        raise KvpredictError(
            f"expected a RequestTrace, got {type(trace).__name__}; read_requests reads one, RequestTrace.from_lists "
            "makes one"
        )
    if not len(trace):
        raise KvpredictError(f"{trace.name} has no requests: nothing to do")


def compiled_requests(trace: RequestTrace, oracle: bool = False) -> Requests:
    """Return a trace's columns as kernels take them."""
    n = len(trace)
    hint = np.full((n, len(HINTS)), np.nan)
    for name, column in trace.hints.items():
        hint[:, HINTS.index(name)] = column
    return Requests(
        np.ascontiguousarray(trace.starts[:-1], np.int64),
        np.ascontiguousarray(trace.starts[1:], np.int64),
        np.ascontiguousarray(trace.ids, np.int32),
        np.ascontiguousarray(trace.prompts, np.int64),
        np.ascontiguousarray(trace.times, np.float64),
        np.stack([trace.input_tokens, trace.output_tokens], axis=1).astype(np.float64),
        np.full(n, trace.block_size, np.float64),
        np.full(n, -1, np.int64) if trace.sessions is None else np.ascontiguousarray(trace.sessions, np.int64),
        hint,
        trace.next_use if oracle else np.zeros(0, np.float64),
    )


def _compile(engine: Any, policy: PrefixPolicy, requests: Requests, tiers: int) -> None:
    """Make the machine code before the clock starts."""
    shadows = policy.traits.rankings if policy.traits.rankings > 1 else 0
    rows = [1] * (tiers + shadows)
    pool = make_pool(np.full(1, -1), np.zeros(1), rows, policy.traits.heaps, policy.traits.timed)
    hits = np.zeros((1, max(2, len(rows))), np.int32)
    engine.replay(policy.state(1, 1, 1), pool, requests, make_heap(1), 0, 0, np.zeros(3), tiers, hits, np.zeros(5),
                  np.zeros(shadows))  # fmt: skip


def _result(
    name: str,
    trace: RequestTrace,
    hits: np.ndarray,
    run: _Run,
    cut: int,
    seconds: float,
    server: Server,
    info: dict[str, Any],
) -> PrefixResult:
    prompts, tokens = trace.prompts[cut:], trace.input_tokens[cut:].astype(np.int64)
    found = hits[cut:].sum(axis=1)
    # All blocks but a prompt's last are full.
    known = np.minimum(found * trace.block_size, tokens)
    device = np.minimum(hits[cut:, 0] * trace.block_size, tokens)
    flops, none = server.prefill_flops(tokens, known), server.prefill_flops(tokens, np.zeros_like(known))
    load = (known - device) * server.kv_bytes / server.host_bandwidth
    ttft = server.overhead_seconds + flops / server.flops + load
    p50, p90, p99 = np.percentile(ttft, [50, 90, 99]) if len(ttft) else (float("nan"),) * 3
    return PrefixResult(
        policy=name,
        capacity=int(run.pool.capacity[0]),
        host_capacity=int(run.pool.capacity[1]) if run.tiers == 2 else 0,
        requests=len(tokens),
        blocks=int(prompts.sum()),
        hits=int(found.sum()),
        host_hits=int(hits[cut:, 1].sum()) if hits.shape[1] > 1 else 0,
        tokens=int(tokens.sum()),
        tokens_saved=int(known.sum()),
        flops=float(none.sum()),
        flops_saved=float(none.sum() - flops.sum()),
        ttft_p50=float(p50),
        ttft_p90=float(p90),
        ttft_p99=float(p99),
        ttft_mean=float(ttft.mean()) if len(ttft) else float("nan"),
        seconds=seconds,
        touches=len(trace.blocks),
        warmup=cut,
        hit_blocks=hits,
        info=info,
    )
