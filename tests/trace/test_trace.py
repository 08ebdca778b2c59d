"""Trace: columns checked, keys hashed, parts, footprint, fingerprint."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.errors import TraceError, UnknownName
from kvpredict.trace import Trace, hash_keys
from kvpredict.trace.trace import hash_texts

REQUESTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 100)), max_size=40)


def test_columns_have_their_types():
    trace = Trace(
        np.array([1, 2, 1], np.int32), [0, 1, 1], [5, 6, 5], {"op": [0, 1, 0]}, categories={"op": ["get", "set"]}
    )
    assert (trace.keys.dtype, trace.times.dtype, trace.sizes.dtype) == (np.int64, np.float64, np.int64)
    assert len(trace) == 3
    assert trace.unique == 2
    assert trace.categories == {"op": ("get", "set")}
    assert repr(trace) == "Trace('trace', requests=3, unique=2)"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"times": [0, 2, 1]}, r"request 2 is earlier \(1.0\) than the one before it \(2.0\)"),
        ({"times": [0, np.nan, 1]}, "request 1 has no finite time"),
        ({"times": [0, 1, np.inf]}, "request 2 has no finite time"),
        ({"sizes": [1, -4, 1]}, r"request 1 has a negative size \(-4\)"),
        ({"sizes": [2**62 - 1, 1, 1]}, r"sizes add up to 4.61e\+18 bytes"),
        ({"sizes": [1, 2]}, "'sizes' has 2 values for 3 requests"),
        ({"columns": {"op": ["a", "b", "c"]}}, "'op' holds <U1, expected numbers"),
        ({"columns": {"op": [[1], [2], [3]]}}, "'op' must have one dimension, not 2"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(TraceError, match=message):
        Trace([1, 2, 1], **columns)


def test_empty():
    trace = Trace.from_keys([], sizes=[], times=[])
    assert (len(trace), trace.unique, trace.footprint) == (0, 0, 0)
    assert trace.next_use.size == 0
    assert len(trace.fingerprint) == 32
    assert trace.position(0.5, by="time") == 0


def test_integer_keys_stay():
    assert hash_keys([3, -1, 2**63 - 1]).tolist() == [3, -1, 2**63 - 1]
    assert hash_keys(np.array([2**64 - 1, 5], np.uint64)).tolist() == [-1, 5]
    assert hash_keys(np.array([True, False])).tolist() == [1, 0]


def test_other_keys_are_hashed():
    expected = int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little", signed=True)
    assert hash_keys(["a", b"a", "b"]).tolist()[:2] == [expected, expected]
    assert hash_keys(np.array(["a"])).tolist() == hash_keys(np.array([b"a"])).tolist() == [expected]
    tuples = hash_keys([("user", 1), ("user", 2), ("user", 1)])
    assert tuples[0] == tuples[2] != tuples[1]
    assert hash_keys([2**70, 5]).tolist() == [hash_keys([str(2**70)])[0], 5]


@given(st.lists(st.text()))
def test_hash_texts_is_hash_keys(texts):
    assert hash_texts([t.encode() for t in texts]).tolist() == hash_keys(np.array(texts, object)).tolist()


def test_fractional_keys_are_refused():
    with pytest.raises(TraceError, match="floating-point"):
        hash_keys(np.array([1.5]))


@settings(deadline=None)  # the first call compiles
@given(REQUESTS)
def test_footprint_counts_first_sizes(requests):
    first = {}
    for key, size in requests:
        first.setdefault(key, max(size, 1))
    trace = Trace.from_keys([k for k, _ in requests], [s for _, s in requests])
    assert trace.footprint == sum(first.values())
    assert Trace(trace.keys).footprint == len(first)


def test_capacity():
    trace = Trace.from_keys(range(1000), sizes=[10] * 1000)
    assert trace.capacity(0.01) == 10
    assert trace.capacity(0.01, "bytes") == 100
    assert trace.capacity(1e-9) == 1
    for fraction in (0, 1.5, -1, float("nan")):
        with pytest.raises(TraceError, match="fraction"):
            trace.capacity(fraction)
    with pytest.raises(UnknownName, match="Did you mean 'bytes'"):
        trace.capacity(0.1, "byte")


@settings(deadline=None)  # the first call compiles
@given(REQUESTS, st.integers(0, 50) | st.floats(0, 0.999))
def test_split_loses_nothing(requests, at):
    trace = Trace.from_keys([k for k, _ in requests], [s for _, s in requests], sorted(s for _, s in requests))
    for by in ("count", "time"):
        head, tail = trace.split(at, by=by)
        assert np.concatenate([head.keys, tail.keys]).tolist() == trace.keys.tolist()
        assert np.concatenate([head.times, tail.times]).tolist() == trace.times.tolist()
        assert len(head) == trace.position(at, by=by)


def test_split_by_count_and_by_time():
    trace = Trace.from_keys(range(10), times=[0, 0, 0, 0, 0, 0, 0, 0, 50, 100])
    assert len(trace.head(0.3)) == 3
    assert len(trace.head(4)) == 4
    assert len(trace.tail(4)) == 6
    assert len(trace.head(0.5, by="time")) == 8
    assert len(trace.head(60, by="time")) == 9
    assert len(trace.head(1000)) == 10
    with pytest.raises(TraceError, match="has no times"):
        Trace.from_keys([1]).head(0.5, by="time")
    with pytest.raises(TraceError, match="cannot split at -1"):
        trace.head(-1)
    with pytest.raises(UnknownName, match="way to split"):
        trace.head(1, by="size")


def test_parts_are_views_with_their_own_ids():
    trace = Trace.from_keys([7, 8, 9, 8], columns_=[1, 2, 3, 4])
    tail = trace.tail(2)
    assert tail.ids.tolist() == [0, 1]
    assert tail.unique == 2
    assert np.shares_memory(tail.keys, trace.keys)
    assert tail.column("columns_").tolist() == [3, 4]


def test_column_by_name():
    trace = Trace.from_keys([1, 2], sizes=[3, 4], op=[0, 1])
    assert trace.column("sizes").tolist() == [3, 4]
    assert trace.column("op").tolist() == [0, 1]
    with pytest.raises(UnknownName, match=r"'opp'.*Did you mean 'op'"):
        trace.column("opp")


def test_fingerprint_sees_every_column():
    base = Trace.from_keys([1, 2], sizes=[3, 4], op=[0, 1])
    others = [
        Trace.from_keys([1, 3], sizes=[3, 4], op=[0, 1]),
        Trace.from_keys([1, 2], sizes=[3, 5], op=[0, 1]),
        Trace.from_keys([1, 2], sizes=[3, 4], op=[1, 1]),
        Trace.from_keys([1, 2], sizes=[3, 4], kind=[0, 1]),
        Trace.from_keys([1, 2], op=[0, 1]),
        Trace.from_keys([1, 2], sizes=[3, 4], times=[0, 0], op=[0, 1]),
    ]
    assert len({t.fingerprint for t in [base, *others]}) == 7
    assert base.fingerprint == Trace.from_keys([1, 2], sizes=[3, 4], op=[0, 1], name="other").fingerprint
