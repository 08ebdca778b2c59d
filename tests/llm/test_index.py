"""The live index: it decides as the simulator does, forgets without harm, and keeps its books."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.hints import HINTS
from kvpredict.llm.prefix import Server, prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix.engine import EXTERN
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from tests.llm.draws import request_traces
from tests.llm.test_simulate import COUNTING, check_counts, check_pool

# Those that store on arrival, and know no future.
TRAITS = {name: prefix_policy(name).traits for name in prefix_policy_names()}
SERVING = [name for name, traits in TRAITS.items() if not (traits.oracle or traits.late)]


def drive(
    index: PrefixIndex, trace: RequestTrace, server: Server, engine: "EngineBooks | None" = None
) -> list[tuple[int, int]]:
    """Serve a trace as the simulator does; return the hits of each request on the device and in the host tier."""
    a, b, c = server.coefficients()
    running: list[tuple[float, int, int]] = []
    out = []
    tiers = EXTERN if engine else None

    def end(until: float) -> None:
        while running and min(running)[0] <= until:
            when, i, ticket = min(running)
            running.remove((when, i, ticket))
            low, high = trace.starts[i], trace.starts[i + 1]
            generated = trace.blocks[low + trace.prompts[i] : high]
            index.end(ticket, generated.tolist(), int(trace.output_tokens[i]), now=when, tiers=tiers)

    for i in range(len(trace)):
        now = float(trace.times[i])
        end(now)
        low = trace.starts[i]
        hints = {n: v[i] for n, v in trace.hints.items() if not np.isnan(v[i])}
        prompt = trace.blocks[low : low + trace.prompts[i]].tolist()
        ticket, device, host = index.begin(
            prompt,
            int(trace.input_tokens[i]),
            session=None if trace.sessions is None else int(trace.sessions[i]),
            hints=hints,
            block_size=trace.block_size,
            now=now,
            tiers=tiers,
        )
        if engine:
            engine.store(prompt, now)
        out.append((device, host))
        whole = float(trace.input_tokens[i])
        known = whole * min(1.0, (device + host) / max(1, int(trace.prompts[i])))
        busy = a * (whole - known) + b * (whole**2 - known**2) + c * float(trace.output_tokens[i])
        running.append((now + busy, i, ticket))
    end(np.inf)
    return out


class EngineBooks:
    """An engine that stores what a prompt lacks itself, and asks the index for one block to evict at a time."""

    def __init__(self, index: PrefixIndex, by_batch: bool) -> None:
        self.index, self.by_batch = index, by_batch
        self.held: set[int] = set()

    def store(self, prompt: list[int], now: float) -> None:
        for block, parent in zip(prompt, [None, *prompt], strict=False):
            if block in self.held:
                continue
            if len(self.held) == self.index.capacity:
                index = self.index
                victims = index.pop_some(1, self.held.__contains__, now) if self.by_batch else [index.pop(now)]
                if victims in ([], [None]):
                    return
                self.held.remove(victims[0])
            self.index.put(block, parent, now)
            self.held.add(block)


def prompts_of(trace: RequestTrace) -> RequestTrace:
    """Return the trace without what was generated, which an engine stores before its request ends."""
    ends = zip(trace.starts[:-1], trace.prompts, strict=True)
    return RequestTrace.from_lists(
        trace.times, [trace.blocks[low : low + held] for low, held in ends], trace.block_size, trace.input_tokens,
        trace.output_tokens,
    )  # fmt: skip


def check_engine(trace: RequestTrace, policy: str, capacity: int, by_batch: bool, server: Server) -> int:
    """Assert that an engine's books come to what the simulator does; return the hits."""
    index = PrefixIndex(capacity, policy, requests=1024)
    engine = EngineBooks(index, by_batch)
    got = [device for device, _ in drive(index, trace, server, engine)]
    assert got == simulate_prefix(trace, policy, capacity, server=server).hit_blocks[:, 0].tolist()
    assert sorted(index.held()) == sorted(engine.held)
    check_pool(index.pool, index.policy.traits.heaps)
    return sum(got)


@settings(max_examples=100, deadline=None)
@given(trace=request_traces(), policy=st.sampled_from(SERVING), capacity=st.integers(1, 12), by_batch=st.booleans())
def test_an_engine_with_its_own_books_decides_as_the_simulator_does(
    trace: RequestTrace, policy: str, capacity: int, by_batch: bool
) -> None:
    check_engine(prompts_of(trace), policy, capacity, by_batch, Server(decode_seconds=0.5))


@pytest.mark.parametrize("policy", SERVING)
def test_an_engine_decides_as_the_simulator_does_at_length(policy: str) -> None:
    trace = prompts_of(generate_requests("mixed", requests=400, seed=8, block_size=256))
    hits = [check_engine(trace, policy, trace.capacity(0.1), by_batch, Server()) for by_batch in (False, True)]
    assert hits[0] == hits[1] > 0


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(SERVING),
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "pop", "drop", "used", "refuse"]), st.integers(0, 9)), max_size=60
    ),
)
def test_blocks_stored_without_a_request_stand_in_the_heap_of_their_kind(
    policy: str, steps: list[tuple[str, int]]
) -> None:
    index, heaps = PrefixIndex(4, policy, requests=4), prefix_policy(policy).traits.heaps
    side = prefix_policy(policy).kernels().side
    for now, (what, block) in enumerate(steps, start=1):
        if what == "put" and block not in index:
            if len(index) == 4:
                index.pop(now)
            index.put(block, None, now)
        elif what == "pop":
            index.pop(now)
        elif what == "drop":
            index.drop(block, now)
        elif what == "used":
            index.used([block], 1, (16, 0), times=(now, now))
        elif what == "refuse":
            index.pop_some(1, lambda _: False, now)
        check_pool(index.pool, heaps)
        for held in index.held():
            node = index.node(held)
            assert index.pool.place[side(index.state, node), node] >= 0


@pytest.mark.parametrize("policy", ["arc", "slru", "gdsf", "workload"])
def test_what_the_engine_refuses_to_evict_stays_what_it_was(policy: str) -> None:
    index = PrefixIndex(8, policy, requests=4)
    for block in range(8):
        index.put(block, None, now=0.0)
        for use in range(1 + (block < 3)):
            index.used([block], 1, (16, 0), times=(1.0 + use, 1.5 + use))
    before = [array.copy() for array in index.state]
    assert index.pop_some(2, lambda _: False, now=9.0) == []
    assert all((now == then).all() for now, then in zip(index.state, before, strict=True))


@pytest.mark.parametrize("host", [0, 3, 10, 40])
@pytest.mark.parametrize("policy", COUNTING)
def test_policies_count_what_the_device_holds(policy: str, host: int) -> None:
    index, rng = PrefixIndex(10, policy, host_capacity=host), np.random.default_rng(3)
    chains: list[list[int]] = [[]]
    running: list[int] = []
    for now in range(1500):
        if rng.random() < 0.5 and len(running) < 6:
            base = chains[rng.integers(max(0, len(chains) - 15), len(chains))]
            chains.append([*base, *range(4 * now, 4 * now + int(rng.integers(1, 4)))][:8])
            running.append(index.begin(chains[-1], 16 * len(chains[-1]), now=now)[0])
        elif running:
            ticket = running.pop(rng.integers(len(running)))
            if rng.random() < 0.1:
                index.cancel(ticket, now)
            else:
                index.end(ticket, [10**6 + now], 3, now=now)
        elif rng.random() < 0.5:
            index.drop(chains[-1][-1], now)
        check_counts(policy, index.state, index.pool)
        check_pool(index.pool, 2, stored_by_engine=True)
    assert index.pool.used[: index.tiers].all()


@pytest.mark.parametrize("policy", ["arc", "slru"])
def test_what_the_engine_drops_no_longer_counts(policy: str) -> None:
    index = PrefixIndex(4, policy, requests=4)
    for now in range(1, 21):
        index.put(7, None, now=float(now))
        for use in range(2):
            index.used([7], 1, (16, 0), times=(now + 0.1 * use, now + 0.1 * use))
        index.drop(7, now=now + 0.5)
    held = index.state.held if policy == "arc" else index.state.protected
    assert not held.any()


@settings(max_examples=60, deadline=None)
@given(
    trace=request_traces(hinted=True),
    policy=st.sampled_from(["lru", "lfu", "s3fifo"]),
    capacity=st.integers(1, 12),
    host=st.sampled_from([0, 0, 3]),
)
def test_decides_as_the_simulator_does(trace: RequestTrace, policy: str, capacity: int, host: int) -> None:
    server = Server(decode_seconds=0.5)
    index = PrefixIndex(capacity, policy, host_capacity=host, requests=64)
    got = drive(index, trace, server)
    expected = simulate_prefix(trace, policy, capacity, host_capacity=host, server=server, store="end").hit_blocks
    assert got == [(row[0], row[1] if host else 0) for row in expected.tolist()]
    check_pool(index.pool, index.policy.traits.heaps)


def test_learned_serves_what_was_simulated() -> None:
    trace = generate_requests("chat", requests=700, seed=4, block_size=128)
    policy = prefix_policy("learned", every=100.0, first=100)
    first = simulate_prefix(trace, policy, 300)
    assert first.info["trained"] > 0
    index = PrefixIndex(300, prefix_policy("learned", every=0.0, model=first.info["model"]), requests=1024)
    got = drive(index, trace, Server())
    frozen = simulate_prefix(trace, prefix_policy("learned", every=0.0, model=first.info["model"]), 300)
    assert [device for device, _ in got] == frozen.hit_blocks[:, 0].tolist()


@pytest.mark.parametrize("policy", ["slru", "s3fifo"])
def test_full_caches_take_new_blocks(policy: str) -> None:
    index = PrefixIndex(2, policy, requests=4)
    for turn in range(3):
        ticket, *_ = index.begin([1, 2], 32, now=float(turn))
        index.end(ticket, now=float(turn))
    ticket, *_ = index.begin([3], 16, now=9.0)
    index.end(ticket, now=9.0)
    assert 3 in index
    assert len(index) == 2


def test_memory_is_bounded_and_forgetting_does_no_harm() -> None:
    trace = generate_requests("mixed", requests=1500, seed=6, block_size=256)
    index = PrefixIndex(200, "lru", requests=512)
    assert trace.unique > 1.5 * len(index.hash)
    got = drive(index, trace, Server())
    assert len(index._node) <= len(index.hash)
    check_pool(index.pool, 1)
    assert len(index._node) + len(index._free) == len(index.hash)
    expected = simulate_prefix(trace, "lru", 200, store="end").hit_blocks[:, 0]
    assert [device for device, _ in got] == expected.tolist()


def test_long_and_many_requests() -> None:
    index = PrefixIndex(50, "lru", requests=2)
    first, *_ = index.begin(list(range(1000)), 16_000, now=0.0)
    second, *_ = index.begin(list(range(2000, 2010)), 160, now=0.0)
    with pytest.raises(KvpredictError, match="raise requests="):
        index.begin([1], 16, now=0.0)
    index.end(first, list(range(5000, 5500)), 8000, now=1.0)
    index.cancel(second, now=1.0)
    assert len(index) == 50
    assert (index.pool.running == 0).all()
    assert sorted(index.held()) == list(range(50))
    check_pool(index.pool, 1)


@pytest.mark.parametrize("policy", ["lru", "learned", "s3fifo"])
def test_requests_larger_than_its_memory_go_by_their_first_blocks(policy: str) -> None:
    index = PrefixIndex(2, policy, host_capacity=1)
    nodes = len(index.hash)
    long, *_ = index.begin(range(nodes + 500), 16 * nodes + 8000, now=0.0)
    other, *found = index.begin(range(10**6, 10**6 + 5), 80, now=1.0)  # there is no number left for it
    again, *_ = index.begin(range(7), 112, now=2.0)
    assert [int(index.requests.prompt[ticket]) for ticket in (long, other, again)] == [nodes, 0, 7]
    assert found == [0, 0]
    index.end(other, range(10**6 + 5, 10**6 + 9), 64, now=3.0)
    index.cancel(again, now=4.0)
    index.end(long, range(2 * nodes, 2 * nodes + 3), 48, now=5.0)  # these follow what is not known
    assert not any(index.knows(block) for block in (10**6, 10**6 + 5, nodes, 2 * nodes))
    index._tally = long  # the place that it had serves another as ever
    ticket, *_ = index.begin(range(4000, 4003), 48, now=6.0)
    assert ticket == long
    index.end(ticket, [4003], 16, now=7.0)
    assert index.knows(4003)
    assert (index.pool.running == 0).all()
    assert len(index._node) + len(index._free) == nodes
    check_pool(index.pool, index.policy.traits.heaps)


def test_what_has_no_number_left_is_named() -> None:
    index = PrefixIndex(1)
    index.begin(range(len(index.hash)), 16, now=0.0)
    with pytest.raises(KvpredictError, match="more blocks are in use"):
        index.put(10**6, now=1.0)


def test_engines_that_keep_their_own_books() -> None:
    index = PrefixIndex(4, "lru", requests=4)
    for block, parent in ((1, None), (2, 1), (3, None)):
        index.put(block, parent, now=0.0)
    index.used([1, 2], 2, (32, 0), times=(1.0, 2.0))
    assert sorted(index.held()) == [1, 2, 3]
    assert 2 in index
    assert index.rank(3, now=3.0) < index.rank(2, now=3.0)
    assert index.rank(99) is None
    index.pin(3)
    assert index.pop(now=3.0) == 2  # the leaf of the chain; 1 has a child, 3 is in use
    index.unpin(3, now=3.0)
    index.drop(1, now=3.0)
    assert index.pop(now=3.0) == 3
    assert index.pop(now=3.0) is None
    assert HINTS[0] == "continues"


def test_shadows_are_as_large_as_the_engine_turns_out_to_be() -> None:
    index = PrefixIndex(100, prefix_policy("learned", every=0.0), requests=4)
    shadows = slice(1, None)
    for block in range(20):
        index.used([block], 1, (16, 0), times=(1.0, 1.0))
    assert (index.pool.used[shadows] == 20).all()
    index.resize(4, now=2.0)
    assert (index.pool.used[shadows] == 4).all()
    check_pool(index.pool, 1)


def test_oracles_and_empty_caches_are_refused() -> None:
    with pytest.raises(KvpredictError, match="needs the future"):
        PrefixIndex(4, "belady")
    with pytest.raises(KvpredictError, match="at least 1"):
        PrefixIndex(0)


def test_forgetting_frees_a_sixteenth_at_once_and_remembers_beginnings() -> None:
    index = PrefixIndex(4, "lru", requests=4)
    nodes, chains = len(index.hash), 10
    long = nodes // chains + 1
    for k in range(chains):  # the last of them needs a few nodes more than there are
        blocks = list(range(1000 * k, 1000 * k + long))
        index.used(blocks, long, (16 * long, 0), times=(k, k))
    assert len(index._free) >= nodes // 16 - chains
    known = [[1000 * k + i in index._node for i in range(long)] for k in range(chains)]
    assert all(sum(chain) >= long - nodes // 16 and chain == sorted(chain, reverse=True) for chain in known)
    assert all(chain[0] for chain in known)
    assert len(index._node) + len(index._free) == nodes
    below = [0] * nodes
    for node in index._node.values():
        if index.pool.parent[node] >= 0:
            below[index.pool.parent[node]] += 1
    assert below == index._below.tolist()


def test_pins_count_by_the_block_size_that_is_given() -> None:
    index = PrefixIndex(4)
    hints = {"pin_tokens": 20, "pin_seconds": 100}
    # The prompt's last 15 tokens fill no block, so that its mean is more than 16.
    for number, prompt in enumerate(([1, 2], [3], [4], [5])):
        ticket, *_ = index.begin(prompt, 47, hints=None if number else hints, block_size=16, now=float(number))
        index.end(ticket, now=number + 0.5)
    assert 2 in index


@pytest.mark.parametrize("policy", ["lru", "lfu", "gdsf", "taillru", "workload", "learned"])
def test_a_pin_that_has_run_out_binds_nobody(policy: str) -> None:
    index = PrefixIndex(6, policy)
    found = 0
    for turn in range(20):
        blocks, hints = (list(range(10, 16)), None) if turn else (list(range(6)), {"pin_tokens": 96, "pin_seconds": 5})
        ticket, device, _ = index.begin(blocks, 96, hints=hints, block_size=16, now=60.0 * turn)
        index.end(ticket, now=60.0 * turn + 1)
        found += device
    assert found >= 6 * 17
