"""What every policy must do, whichever it is; a new one is found by its name and tested without being named here.

A policy departs from the contract only by its traits. One that cannot be made from its name has a factory in
``tests/contracts/factories``.
"""

import dataclasses
import importlib
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import kvpredict
from kvpredict.core.engine import bind, make_host
from kvpredict.core.errors import KvpredictError, UnknownName
from kvpredict.core.ghostsets import GhostSets
from kvpredict.core.policy import Policy
from kvpredict.core.sketch import Sketch
from kvpredict.policies import policy, policy_class, policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.driver import DictHost, host_hits
from tests.contracts.factories import make
from tests.contracts.interpreted import CAPACITY, contract_trace, hits_of
from tests.naive import optimal_misses
from tests.strategies import THOROUGH, Sequence, operations, sequences, wide_keys, zipf_mix

ROOT = Path(__file__).parents[2]
CONF = Path(kvpredict.__file__).parent / "conf" / "policy"
NAMES = policy_names()
UNITS = ["objects", "bytes"]
PLAIN = (bool, int, float, str)

every_policy = pytest.mark.parametrize("name", NAMES)
every_unit = pytest.mark.parametrize("unit", UNITS)


def with_columns(trace: Trace, policy: Policy) -> Trace:
    """Add the extra columns that the policy asks for, constant for a key."""
    values = {c: np.random.default_rng(j).uniform(0, 4, trace.unique)[trace.ids] for j, c in enumerate(policy.extra)}
    return Trace(trace.keys, trace.times, trace.sizes, {**trace.columns, **values})


def row(policy: Policy) -> list[float]:
    return [0.5] * len(policy.extra)


def arrays(state: object) -> list[np.ndarray]:
    """Return all arrays of a state, nested tuples flattened."""
    if isinstance(state, np.ndarray):
        return [state]
    assert isinstance(state, tuple), f"a state is a tuple of arrays, found {type(state).__name__}"
    return [array for part in state for array in arrays(part)]


# --- what a policy is ------------------------------------------------------------------------------------------------


@every_policy
def test_module_and_class_explain_themselves(name: str) -> None:
    cls = policy_class(name)
    module = importlib.import_module(cls.__module__)
    assert cls.name == name
    assert inspect.getdoc(module), f"{module.__name__} has no docstring"
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), f"{cls.__name__} has only dataclass's generated docstring"


@every_policy
def test_is_a_value(name: str) -> None:
    made = make(name)
    assert dataclasses.is_dataclass(made)
    assert made == dataclasses.replace(made)
    assert hash(made) == hash(dataclasses.replace(made))
    trace = contract_trace(300, columns=made.extra)
    travelled = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(simulate(trace, travelled, 10).hit, simulate(trace, made, 10).hit)
    field = next(iter(dataclasses.fields(made)), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field.name if field else "name", None)
    assert bind(made) is bind(dataclasses.replace(made))


@every_policy
def test_refuses_unknown_parameters_and_bad_capacities(name: str) -> None:
    with pytest.raises(UnknownName, match="no_such_parameter"):
        policy(name, no_such_parameter=1)
    with pytest.raises(KvpredictError, match="at least 1"):
        make(name).state(0)


@every_policy
def test_refuses_parameters_of_a_wrong_type(name: str) -> None:
    made = make(name)
    wrong: dict[type, tuple[object, ...]] = {
        bool: (None, 1, "no"),
        int: (None, 16.5, 1e4, True, "8"),
        float: (None, "x", True, float("nan"), [1.0]),
        str: (None, 3, b"lru"),
    }
    for f in dataclasses.fields(made):
        for bad in wrong.get(type(f.default), ()) if f.compare else ():
            with pytest.raises(KvpredictError, match=rf"^policy '{name}': {f.name} must be .*, got "):
                dataclasses.replace(made, **{f.name: bad})
        if type(f.default) in (int, float) and f.compare:
            numpy = np.int64 if isinstance(f.default, int) else np.float64
            assert dataclasses.replace(made, **{f.name: numpy(getattr(made, f.name))}) == made


@every_policy
def test_conf_states_every_parameter_and_its_default(name: str) -> None:
    if not policy_class(name).__module__.startswith("kvpredict.policies."):
        return  # contributed by another distribution: its configuration is not ours
    path = CONF / f"{name}.yaml"
    assert path.is_file(), f"conf/policy/{name}.yaml is missing"
    text = path.read_text()
    stated = yaml.safe_load(text)
    # Only plain values can stand in a file: an artifact, say, cannot. What is not compared is no parameter.
    assert stated.pop("name") == name
    # One that is None by default may be left out: it may take what no file can hold.
    fields = [
        f
        for f in dataclasses.fields(policy_class(name))
        if f.compare and (isinstance(f.default, PLAIN) or (f.default is None and f.name in stated))
    ]
    assert list(stated) == [f.name for f in fields], "parameters, in the order of the fields"
    for f in fields:
        assert stated[f.name] == f.default, f.name
        assert type(stated[f.name]) is type(f.default), f.name
    for line in text.splitlines():
        key = line.partition(":")[0].strip()
        if key in stated:
            assert "#" in line, f"{path.name}: {key} has no comment"


@every_policy
def test_state_is_bounded_by_slots(name: str) -> None:
    made = make(name)

    def total(capacity: int, slots: int) -> int:
        return sum(a.nbytes for a in arrays(made.state(capacity, 0, slots)))

    small, large = total(10_000, 10_000), total(40_000, 40_000)
    assert large < 2048 * 40_000, "over 2 KB a slot"
    assert large - small < 5 * max(small, 1 << 20)
    assert total(10**12, 1_000) < 4 * total(1_000, 1_000) + (1 << 20), "memory goes with slots, not with capacity"


# --- what it decides -------------------------------------------------------------------------------------------------


@every_policy
@every_unit
def test_same_seed_same_result(name: str, unit: str) -> None:
    made = make(name)
    trace = contract_trace(columns=made.extra)
    runs = [simulate(trace, made, CAPACITY[unit], unit=unit, seed=seed).hit for seed in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(runs[0], runs[1])
    differs = any((run != runs[0]).any() for run in runs[2:])
    assert made.traits.stochastic or not differs, "a policy that its seed changes has the trait 'stochastic'"


@every_policy
@every_unit
def test_replay_equals_a_host_with_a_dict(name: str, unit: str) -> None:
    made = make(name)
    trace = contract_trace(columns=made.extra)
    capacity = CAPACITY[unit]
    slots = capacity if unit == "bytes" else min(capacity, trace.unique)
    replayed = simulate(trace, made, capacity, unit=unit, seed=3).hit
    assert 0 < replayed.sum() < replayed.size, "a trace on which nothing hits or misses shows nothing"
    np.testing.assert_array_equal(
        replayed, host_hits(made, trace, capacity, sized=unit == "bytes", slots=slots, seed=3)
    )


@every_policy
@every_unit
def test_replay_equals_a_host_with_a_dict_on_drawn_sequences(name: str, unit: str) -> None:
    made = make(name)

    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        trace = with_columns(sequence.trace(), made)
        slots = sequence.capacity if unit == "bytes" else min(sequence.capacity, trace.unique)
        np.testing.assert_array_equal(
            simulate(trace, made, sequence.capacity, unit=unit).hit,
            host_hits(made, trace, sequence.capacity, sized=unit == "bytes", slots=slots),
        )

    check()


@every_policy
@every_unit
def test_drained_in_batches_equals_one_by_one(name: str, unit: str) -> None:
    made = make(name)
    trace = contract_trace(600, 60, columns=made.extra)
    host = DictHost(made, CAPACITY[unit])
    hints = trace.next_use if made.traits.oracle else trace.columns["cost"]
    extra = np.stack([trace.column(c) for c in made.extra], 1) if made.extra else np.zeros((len(trace), 0))
    for i in range(len(trace)):
        size = int(trace.sizes[i]) if unit == "bytes" else 1
        host.access(int(trace.keys[i]), size, float(trace.times[i]), float(hints[i]), extra[i])
    rng = np.random.default_rng(1)
    slots = rng.choice(host.resident(), 200).astype(np.int32)
    if slots.size > 1:  # recorded, then deleted by its owner before the drain: passed over
        gone = int(slots[0])
        host.engine.take(host.state, host.host, gone)
        host._forget(gone)
    times = trace.times[-1] + np.cumsum(rng.exponential(1.0, slots.size))
    alone = pickle.loads(pickle.dumps((host.state, host.host)))
    host.engine.drain(host.state, host.host, slots, times)
    for i in range(slots.size):
        host.engine.drain(*alone, slots[i : i + 1], times[i : i + 1])
    for together, single in zip(arrays(host.state), arrays(alone[0]), strict=True):
        np.testing.assert_array_equal(together, single)
    host.validate()


@every_policy
def test_to_expect_a_request_changes_nothing(name: str) -> None:
    made = make(name)
    trace = contract_trace(600, 60, columns=made.extra)
    host = DictHost(made, 20)
    hints = trace.next_use if made.traits.oracle else trace.columns["cost"]
    for i in range(len(trace)):
        host.access(int(trace.keys[i]), 1, float(trace.times[i]), float(hints[i]), row(made))
    before = [array.copy() for array in arrays(host.state)]
    expect = made.kernels().expect
    for slot in (-1, *range(20)):  # in use or not, whoever is in it
        for key in (0, -1, 2**63 - 1, -(2**63), *trace.keys[:40].tolist()):
            for soon in (False, True):
                expect(host.state, np.int32(slot), np.int64(key), soon)
    for now, then in zip(arrays(host.state), before, strict=True):
        np.testing.assert_array_equal(now, then)


@every_policy
def test_batches_change_nothing_when_drained_before_the_next_miss(name: str) -> None:
    made = make(name)
    trace = contract_trace(800, 60, columns=made.extra)
    if made.traits.oracle:  # a host has one hint a slot, and a later hit's next use would reach an earlier hit
        keep = np.append(np.diff(trace.keys) != 0, True)
        trace = Trace(trace.keys[keep], trace.times[keep], trace.sizes[keep])
    one = host_hits(made, trace, 20, sized=False, batch=1)
    np.testing.assert_array_equal(one, host_hits(made, trace, 20, sized=False, batch=64))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.contracts.interpreted"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, dict[str, str]] = json.loads(done.stdout)
    return answer


@every_policy
@every_unit
def test_compiled_equals_interpreted(name: str, unit: str, interpreted: dict[str, dict[str, str]]) -> None:
    assert "error" not in interpreted[name], interpreted[name]["error"]
    compiled = hits_of(name, unit)
    other = np.frombuffer(bytes.fromhex(interpreted[name][unit]), np.uint8)
    np.testing.assert_array_equal(compiled, np.unpackbits(other)[: compiled.size])


@every_policy
def test_misses_at_least_the_optimum(name: str) -> None:
    made = make(name)

    @THOROUGH
    @given(sequences())
    def check(sequence: Sequence) -> None:
        trace = with_columns(Trace.from_keys(sequence.keys), made)
        best = optimal_misses(sequence.keys, sequence.capacity, bypass=made.traits.bypass)
        assert simulate(trace, made, sequence.capacity).misses >= best

    check()


@every_policy
@pytest.mark.parametrize("capacity", [1, 2, 3, 10, 50])
def test_misses_at_least_the_optimum_on_a_longer_trace(name: str, capacity: int) -> None:
    made = make(name)
    keys = zipf_mix(1200, 80, seed=capacity)
    trace = with_columns(Trace.from_keys(keys), made)
    best = optimal_misses(keys.tolist(), capacity, bypass=made.traits.bypass)
    assert best <= simulate(trace, made, capacity).misses <= len(trace)


# --- what it must never break ----------------------------------------------------------------------------------------


@every_policy
@every_unit
def test_invariants_hold_after_every_event(name: str, unit: str) -> None:
    made = make(name)

    @THOROUGH
    @given(operations(), st.integers(1, 16))
    def check(made_operations: list[tuple[str, int, int]], capacity: int) -> None:
        host = DictHost(made, capacity)
        next_use = _next_uses([(kind, key) for kind, key, _ in made_operations])
        for i, (kind, key, size) in enumerate(made_operations):
            if kind == "delete":
                host.delete(key)
            else:
                hint = next_use[i] if made.traits.oracle else 1.0
                host.access(key, size if unit == "bytes" else 1, float(i), hint, row(made))
            host.validate()

    check()


def _next_uses(operations: list[tuple[str, int]]) -> list[float]:
    last: dict[int, int] = {}
    uses = [np.inf] * len(operations)
    for i in range(len(operations) - 1, -1, -1):
        kind, key = operations[i]
        if kind == "get":
            uses[i] = last.get(key, np.inf)
            last[key] = i
    return uses


@every_policy
@every_unit
def test_remove_in_any_state_and_refill(name: str, unit: str) -> None:
    made = make(name)
    rng = np.random.default_rng(2)
    ids = zipf_mix(900, 40, seed=2)
    keys = wide_keys(ids, 2).tolist()
    host = DictHost(made, 12 if unit == "objects" else 60)
    uses = Trace.from_keys(keys).next_use
    for i, key in enumerate(keys):
        size = 1 + ids[i] % 7 if unit == "bytes" else 1
        host.access(key, int(size), float(i), float(uses[i]) if made.traits.oracle else 1.0, row(made))
        if rng.random() < 0.2 and host.key_of:
            host.delete(host.key_of[int(rng.choice(host.resident()))])
        if i % 200 == 199:
            for left in list(host.slot_of):
                host.delete(left)
                host.validate()
            assert host.host.counts[1] == 0
        host.validate()


@every_policy
@pytest.mark.parametrize("capacity", [1, 2, 3])
@every_unit
def test_tiny_capacities(name: str, capacity: int, unit: str) -> None:
    made = make(name)
    ids = zipf_mix(400, 12, seed=capacity)
    uses = Trace.from_keys(ids).next_use
    host = DictHost(made, capacity)
    for i, key in enumerate(ids.tolist()):
        size = key % 5 if unit == "bytes" else 1
        host.access(key, size, float(i), float(uses[i]) if made.traits.oracle else 1.0, row(made))
        host.validate()


@every_policy
def test_one_key(name: str) -> None:
    made = make(name)
    trace = with_columns(Trace.from_keys([2**40] * 50), made)
    misses = simulate(trace, made, 3).misses
    assert misses == 1 or (made.traits.bypass and misses >= 1)


@every_policy
@every_unit
def test_all_distinct_keys_fill_the_cache_and_never_hit(name: str, unit: str) -> None:
    made = make(name)
    host = DictHost(made, 10)
    for i in range(300):
        hint = np.inf if made.traits.oracle else 1.0
        assert not host.access(i * (2**33 + 1), 1, float(i), hint, row(made))
    host.validate()
    assert made.traits.bypass or host.host.counts[1] == 10


@every_policy
@every_unit
def test_nothing_is_evicted_while_everything_fits(name: str, unit: str) -> None:
    made = make(name)
    trace = contract_trace(columns=made.extra)
    result = simulate(trace, made, trace.unique if unit == "objects" else trace.footprint, unit=unit)
    assert result.misses == trace.unique or (made.traits.bypass and result.misses > trace.unique)


@every_policy
def test_object_larger_than_the_cache_is_never_admitted(name: str) -> None:
    made = make(name)
    host = DictHost(made, 20)
    for key in range(5):
        host.access(key, 4, float(key), 1.0, row(made))
    before = sorted(host.slot_of)
    for attempt in range(5):
        assert not host.access(99, 21, 10.0 + attempt, 1.0, row(made))
        assert sorted(host.slot_of) == before
    host.validate()
    trace = with_columns(Trace.from_keys([7] * 10, sizes=[21] * 10), made)
    assert simulate(trace, made, 20, unit="bytes").hits == 0
    fits = with_columns(Trace.from_keys([7] * 10, sizes=[20] * 10), made)
    assert made.traits.bypass or simulate(fits, made, 20, unit="bytes").hits == 9


@every_policy
def test_objects_of_size_zero_take_one_unit(name: str) -> None:
    made = make(name)
    keys = zipf_mix(500, 30, seed=9)
    zeros = with_columns(Trace.from_keys(keys, sizes=np.zeros(keys.size, np.int64)), made)
    ones = with_columns(Trace.from_keys(keys, sizes=np.ones(keys.size, np.int64)), made)
    as_zero = simulate(zeros, made, 8, unit="bytes").hit
    np.testing.assert_array_equal(as_zero, simulate(ones, made, 8, unit="bytes").hit)
    np.testing.assert_array_equal(as_zero, host_hits(made, zeros, 8, sized=True))


@every_policy
@every_unit
def test_a_larger_object_evicts_until_it_fits(name: str, unit: str) -> None:
    made = make(name)
    host = DictHost(made, 12)
    for i in range(200):
        size = 12 if i % 5 == 4 else 1 + i % 3
        hint = float(i + 3) if made.traits.oracle else 1.0
        host.access(i % 17, size if unit == "bytes" else 1, float(i), hint, row(made))
        host.validate()


def collide(state: Any) -> bool:
    """Tell whether keys may be in each other's way somewhere in ``state``."""
    return isinstance(state, Sketch | GhostSets) or (isinstance(state, tuple) and any(map(collide, state)))


@every_policy
@every_unit
def test_keys_of_any_bit_pattern_count_alike(name: str, unit: str) -> None:
    """Renaming the keys changes nothing, but for a policy where it changes which keys collide."""
    made = make(name)
    ids = zipf_mix(600, 50, seed=4)
    sizes = 1 + ids % 9
    plain = with_columns(Trace.from_keys(ids, sizes=sizes), made)
    wide = with_columns(Trace(wide_keys(ids, 4), sizes=sizes), made)
    capacity = 15 if unit == "objects" else 80
    hits = [simulate(trace, made, capacity, unit=unit).hit for trace in (plain, wide)]
    if collide(made.state(capacity)):
        assert abs(int(hits[0].sum()) - int(hits[1].sum())) <= 0.02 * len(ids)
    else:
        np.testing.assert_array_equal(*hits)


@every_policy
def test_an_empty_trace(name: str) -> None:
    made = make(name)
    empty = Trace.from_keys([], **{column: [] for column in made.extra})
    assert simulate(empty, made, 5).requests == 0


@every_policy
def test_a_state_serves_as_many_slots_as_it_was_made_for(name: str) -> None:
    """The slots may be fewer than the units: the cache then holds at most that many objects."""
    made = make(name)
    host = DictHost(made, 1_000, slots=4)
    for i, key in enumerate(zipf_mix(300, 12, seed=6).tolist()):
        host.access(key, 5, float(i), float(i + 1 + key) if made.traits.oracle else 1.0, row(made))
        host.validate()
        assert len(host.key_of) <= 4


def test_host_starts_empty() -> None:
    host = make_host(5, 3)
    assert sorted(host.free.tolist()) == [0, 1, 2]
    assert host.free[-1] == 0, "slot 0 is handed out first"
