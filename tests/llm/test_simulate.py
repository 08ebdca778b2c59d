"""The compiled simulator against its twin, and the server's rules."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.errors import KvpredictError
from kvpredict.core.heap import Heap, check_heap
from kvpredict.llm.prefix import Server, prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix import simulate as module
from kvpredict.llm.prefix.policies.s3fifo import SMALL
from kvpredict.llm.prefix.pool import Pool
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from tests.llm.draws import request_traces
from tests.llm.naive import naive_hits

SERVERS = (Server(), Server(decode_seconds=0.5, flops=1e12))
SIMPLE = [name for name in prefix_policy_names() if name != "learned"]


@settings(max_examples=300, deadline=None)
@given(
    trace=request_traces(hinted=True),
    policy=st.sampled_from(["lru", "lfu", "belady"]),
    capacity=st.one_of(st.integers(1, 3), st.integers(1, 12)),
    host=st.sampled_from([0, 0, 1, 4]),
    server=st.sampled_from(SERVERS),
    store=st.sampled_from(["arrival", "end"]),
)
def test_equals_its_twin(
    trace: RequestTrace, policy: str, capacity: int, host: int, server: Server, store: str
) -> None:
    got = simulate_prefix(trace, policy, capacity, host_capacity=host, server=server, store=store).hit_blocks
    expected = np.array(naive_hits(trace, policy, capacity, host, server, store))
    assert got.tolist() == expected[:, : got.shape[1]].tolist()


def check_pool(p: Pool, heaps: int, stored_by_engine: bool = False) -> None:
    """Assert what must hold of every cache at any time; an engine that stores blocks itself may strand some."""
    for c in range(len(p.used)):
        held = np.flatnonzero(p.resident[:, c])
        assert len(held) == p.used[c]
        assert stored_by_engine or len(held) <= max(0, p.capacity[c])
        above = p.parent[held]
        expected = np.bincount(above[above >= 0], minlength=len(p.parent))
        assert (p.children[:, c] == expected).all()
        if c == 0 and not stored_by_engine:  # nothing is stranded without its prefix
            assert all(p.resident[a, : 2 if len(p.used) > 1 else 1].any() for a in above[above >= 0])
        rows = range(c * heaps, (c + 1) * heaps)
        listed = sorted(
            node for h in rows for node in check_heap(Heap(p.slots[h], p.place[h], p.rank[h], p.order, p.held[h]))
        )
        assert listed == [n for n in held if p.running[n] == 0 and p.children[n, c] == 0]


@settings(max_examples=60, deadline=None)
@given(
    trace=request_traces(), policy=st.sampled_from(SIMPLE), capacity=st.integers(1, 12), host=st.sampled_from([0, 3])
)
def test_invariants_hold_for_every_policy(trace: RequestTrace, policy: str, capacity: int, host: int) -> None:
    pools = []
    original = module._Run.__call__

    def watched(run: module._Run, state: object, first: int, last: int) -> None:
        for i in range(first, last):
            original(run, state, i, i + 1)
            check_pool(run.pool, prefix_policy(policy).traits.heaps)
        pools.append(run.pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Run, "__call__", watched)
        stepped = simulate_prefix(trace, policy, capacity, host_capacity=host)
    whole = simulate_prefix(trace, policy, capacity, host_capacity=host)
    assert pools
    assert (stepped.hit_blocks == whole.hit_blocks).all()


COUNTING = ["arc", "slru", "s3fifo"]


def check_counts(policy: str, state: Any, p: Pool) -> None:
    """Assert that a policy that counts what the device holds counts right, whatever the host tier holds."""
    device = p.resident[:, 0] > 0
    if policy == "s3fifo":
        assert state.tally[SMALL] == (device & (state.main == 0)).sum()
        assert not state.main[~device].any()
        return
    again = (device & (state.kept == 3)).sum()
    assert ((state.kept > 0) == device).all()
    counted = state.held.tolist() if policy == "arc" else [p.used[0] - state.protected[0], state.protected[0]]
    assert counted == [device.sum() - again, again]


@pytest.mark.parametrize("store", ["arrival", "end"])
@pytest.mark.parametrize("host", [0, 1, 5, 20, 80])
@pytest.mark.parametrize("policy", COUNTING)
def test_policies_count_what_the_device_holds(
    policy: str, host: int, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = generate_requests("mixed", requests=300, seed=4, block_size=256)
    original = module._Run.__call__
    moved = []

    def watched(run: module._Run, state: Any, first: int, last: int) -> None:
        for i in range(first, last):
            original(run, state, i, i + 1)
            check_counts(policy, state, run.pool)
            check_pool(run.pool, 2)
        moved.append(run.pool.tally[2])

    monkeypatch.setattr(module._Run, "__call__", watched)
    found = simulate_prefix(trace, policy, 20, host_capacity=host, store=store)
    assert moved[-1] > 100
    assert (found.host_hits > 0) == (host > 0)


@pytest.mark.parametrize("policy", COUNTING)
def test_a_host_tier_takes_no_hits_from_the_device(policy: str) -> None:
    trace = generate_requests("chat", requests=2000, seed=5)
    capacity = trace.capacity(0.03)
    alone = simulate_prefix(trace, policy, capacity).hits
    for host in (capacity, 4 * capacity):
        both = simulate_prefix(trace, policy, capacity, host_capacity=host)
        assert both.hits - both.host_hits > 0.995 * alone


@settings(max_examples=40, deadline=None)
@given(trace=request_traces(), policy=st.sampled_from(SIMPLE), capacity=st.integers(1, 12))
def test_no_policy_beats_belady_where_nothing_is_pinned(trace: RequestTrace, policy: str, capacity: int) -> None:
    chains = [trace.blocks[a:b] for a, b in itertools.pairwise(trace.starts)]
    spread = RequestTrace.from_lists(np.arange(len(trace)) * 1e4, chains, 16)
    assert simulate_prefix(spread, policy, capacity).hits <= simulate_prefix(spread, "belady", capacity).hits


def chain(*lengths: int) -> list[list[int]]:
    """Return one chain cut at these lengths."""
    return [list(range(n)) for n in lengths]


def test_a_block_counts_only_if_all_before_it_hit() -> None:
    trace = RequestTrace.from_lists([0, 1e3, 2e3], [[1, 2, 3], [7, 8], [1, 2, 3]], 16)
    assert simulate_prefix(trace, "lru", 3).hit_blocks[:, 0].tolist() == [0, 0, 1]  # tails went first, the head stayed


def test_blocks_of_running_requests_stay() -> None:
    # The first request runs for 2,000 s, so the second finds no room, and the third hits all of the first.
    trace = RequestTrace.from_lists([0, 10, 20], [[1, 2], [3, 4], [1, 2]], 16, output_tokens=[100_000, 1, 1])
    assert simulate_prefix(trace, "lru", 2).hit_blocks[:, 0].tolist() == [0, 0, 2]
    at_once = Server(decode_seconds=0)
    assert simulate_prefix(trace, "lru", 2, server=at_once).hit_blocks[:, 0].tolist() == [0, 0, 0]


def test_what_falls_from_the_device_is_found_in_the_host_tier() -> None:
    trace = RequestTrace.from_lists([0, 1e3, 2e3], [[1, 2], [3, 4], [1, 2]], 16)
    r = simulate_prefix(trace, "lru", 2, host_capacity=2)
    assert r.hit_blocks.tolist() == [[0, 0], [0, 0], [0, 2]]
    assert (r.hits, r.host_hits) == (2, 2)
    assert simulate_prefix(trace, "lru", 4).ttft_mean < r.ttft_mean < simulate_prefix(trace, "lru", 2).ttft_mean


def test_tokens_and_flops_follow_partial_blocks_and_depth() -> None:
    trace = RequestTrace.from_lists([0, 1e3], [[1, 2], [1, 2]], 16, input_tokens=[20, 20])
    r = simulate_prefix(trace, "lru", 2, warmup=1)
    assert (r.tokens, r.tokens_saved, r.prefix_hit_ratio, r.token_hit_ratio) == (20, 20, 1.0, 1.0)
    server = Server()
    first, later = (server.prefill_flops(np.array([32]), np.array([known]))[0] for known in (16, 0))
    assert first > later - first  # the second block attends to the first


def test_hints_pin_expire_and_rank() -> None:
    blocks = [[1], [2], [3], [1]]
    nothing = [np.nan] * 4

    def hit(**hints: list[float]) -> bool:
        trace = RequestTrace.from_lists([0, 1e3, 2e3, 3e3], blocks, 16).with_hints(**hints)
        return bool(simulate_prefix(trace, "lru", 2).hit_blocks[3, 0])

    assert not hit()
    assert hit(pin_tokens=[16, *nothing[1:]], pin_seconds=[1e4, *nothing[1:]])
    assert not hit(pin_tokens=[16, *nothing[1:]], pin_seconds=[10.0, *nothing[1:]])
    assert hit(pin_tokens=[16, *nothing[1:]], pin_seconds=[1e4, *nothing[1:]], priority=[np.nan, 100, 100, np.nan])
    assert hit(priority=[1.0, *nothing[1:]])
    assert hit(ttl=[np.nan, 5.0, np.nan, np.nan])


@pytest.mark.parametrize("store", ["arrival", "end"])
@pytest.mark.parametrize("hint", [{"pin_tokens": 96.0, "pin_seconds": 5.0}, {"ttl": 5.0}])
@pytest.mark.parametrize("policy", prefix_policy_names())
def test_pins_and_ttl_that_have_run_out_bind_nobody(policy: str, hint: dict[str, float], store: str) -> None:
    blocks = [list(range(6)), *[list(range(10, 16))] * 20]
    hints = {name: np.array([value, *[np.nan] * 20]) for name, value in hint.items()}
    trace = RequestTrace.from_lists(60.0 * np.arange(21), blocks, 16, hints=hints)
    # A policy that stores at the end may ask for a second use first.
    assert simulate_prefix(trace, policy, 6, store=store).hits >= 6 * 18


@pytest.mark.parametrize(("tokens", "kept"), [(16, 1), (17, 2), (32, 2), (33, 3)])
def test_pins_count_full_blocks(tokens: int, kept: int) -> None:
    # 33 tokens lie in three blocks, the last one of a single token; four others follow, where there is room for one.
    blocks = [[1, 2, 3], [4], [5], [6], [7], [1, 2, 3]]
    trace = RequestTrace.from_lists(np.arange(6) * 1e3, blocks, 16, [33, 16, 16, 16, 16, 33])
    said = np.array([True] + [False] * 5)
    trace = trace.with_hints(pin_tokens=np.where(said, tokens, np.nan), pin_seconds=np.where(said, 1e5, np.nan))
    assert simulate_prefix(trace, "lru", 4).hit_blocks[5, 0] == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "at least 1"),
        ({"capacity": 2, "host_capacity": -1}, "at least 0"),
        ({"capacity": 2, "warmup": 5}, "leave some of the trace's 1 requests"),
        ({"capacity": 2, "warmup": 1}, "leave some"),
        ({"capacity": 2, "warmup": 1.0}, r"cannot split at 1.0: give a share in \[0, 1\)"),
        ({"capacity": 2, "policy": "lruu"}, "Did you mean 'lru'"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    trace = RequestTrace.from_lists([0], [[1]], 16)
    with pytest.raises(KvpredictError, match=message):
        simulate_prefix(trace, **{"policy": "lru", **arguments})
