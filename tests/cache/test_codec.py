"""What goes in comes out, of the same type; what was tampered with does not come out at all."""

import collections
import datetime
import decimal
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kvpredict.cache import Codec, CodecError, train_dictionary
from kvpredict.core.errors import KvpredictError

SECRET = b"0123456789abcdef"
ZONES = st.none() | st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))])
HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.decimals(allow_nan=False)
    | st.floats(allow_nan=False) | st.datetimes(timezones=ZONES) | st.dates(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner | st.binary(max_size=9).map(bytearray), max_size=4)
    | st.dictionaries(HASHABLE, inner, max_size=4) | st.sets(HASHABLE, max_size=3),
    max_leaves=10,
)  # fmt: skip
CODECS = {
    "msgpack": Codec(),
    "json": Codec("json", compress=None),
    "json packed": Codec("json", compress=1),
    "signed": Codec(secret=SECRET),
    "pickle": Codec("pickle", secret=SECRET),
}


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, datetime.datetime) and a.fold != b.fold:
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return bool(a == b)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(value=VALUES)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_values_come_back(codec: Codec, value: Any) -> None:
    assert same(codec.decode(codec.encode(value)), value)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_arrays_come_back(codec: Codec) -> None:
    arrays = [
        np.arange(12, dtype=np.int32).reshape(3, 4), np.array([]), np.array(2.5), np.ones((2, 3), order="F"),
        np.array(["a", "bc"]), np.array(["2026-01-01"], "datetime64[D]"), np.arange(1000)[::7],
        np.array([1, 2], ">i4"), np.array([True, False]), np.array([1 + 2j]),
    ]  # fmt: skip
    for array in arrays:
        back = codec.decode(codec.encode({"a": [array]}))["a"][0]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(back, array)
        assert back.flags.writeable
    scalar = codec.decode(codec.encode(np.float32(1.5)))
    assert (type(scalar), scalar) == (np.float32, 1.5)
    assert np.isnan(codec.decode(codec.encode(float("nan"))))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_types_and_folds_that_formats_know_nothing_of_come_back(codec: Codec) -> None:
    folded = datetime.datetime(2026, 10, 25, 2, 30, fold=1)
    values = [
        bytearray(b"x"), [bytearray(b"x"), b"x"], {"a": [1, {"b": bytearray()}]}, (bytearray(300), [()]),
        {b"k": (bytearray(b"x"),)}, [folded, folded.replace(fold=0), folded.replace(tzinfo=datetime.UTC)],
    ]  # fmt: skip
    for value in values:
        assert same(codec.decode(codec.encode(value)), value)


@given(key=HASHABLE)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_keys_come_back(key: Any) -> None:
    for codec in CODECS.values():
        assert same(codec.decode_key(codec.encode_key(key)), key)


@pytest.mark.parametrize("codec", [CODECS["msgpack"], CODECS["json"]], ids=["msgpack", "json"])
@pytest.mark.parametrize("value", [
    object(), [lambda: 1], collections.OrderedDict(a=1), np.array([object()]), 1j, [memoryview(b"x")],
    {memoryview(b"x"): 1}, {"a": (memoryview(b"x"),)},
])  # fmt: skip
def test_what_would_not_come_back_is_refused(codec: Codec, value: Any) -> None:
    with pytest.raises(CodecError, match="cannot be encoded"):
        codec.encode(value)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_damaged_bytes_are_refused(codec: Codec) -> None:
    data = codec.encode({"key": list(range(300)), "text": "x" * 300})
    for place in range(0, len(data), max(1, len(data) // 40)):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        with pytest.raises(CodecError):
            codec.decode(bytes(damaged))
    for end in (0, 3, 6, len(data) // 2, len(data) - 1):
        with pytest.raises(CodecError):
            codec.decode(data[:end])


def test_only_what_is_signed_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("code from the bytes ran",))

    forger = Codec("pickle", secret=b"another secret!!")
    with pytest.raises(CodecError, match="not signed"):
        Codec("pickle", secret=SECRET).decode(forger.encode(Bomb()))
    with pytest.raises(CodecError):
        Codec("pickle", secret=SECRET).decode(pickle.dumps(Bomb()))
    with pytest.raises(CodecError, match="not signed"):
        CODECS["signed"].decode(CODECS["msgpack"].encode([1]))
    with pytest.raises(KvpredictError, match="secret"):
        Codec("pickle")
    with pytest.raises(KvpredictError, match="16 bytes"):
        Codec(secret=b"short")


def test_a_dictionary_makes_small_values_smaller() -> None:
    plain = Codec(compress=None)
    rows = [
        {"id": n, "name": f"user {n}", "address": "1 Long Street, Some Town", "balance": decimal.Decimal(n) / 7,
         "since": datetime.date(2020, 1, 1 + n % 28)}
        for n in range(600)
    ]  # fmt: skip
    dictionary = train_dictionary([plain.encode(row) for row in rows[:500]])
    codec = Codec(dictionary=dictionary)
    sizes = [sum(len(each.encode(row)) for row in rows[500:]) for each in (plain, Codec(), codec)]
    assert sizes[2] < 0.6 * sizes[1]
    assert sizes[1] == sizes[0]  # too small to be compressed without one
    assert all(codec.decode(codec.encode(row)) == row for row in rows[500:])
    with pytest.raises(CodecError, match="dictionary"):
        Codec().decode(codec.encode(rows[0]))
    with pytest.raises(CodecError, match="give more"):
        train_dictionary([b"one"])


def test_wrong_codecs_are_told() -> None:
    with pytest.raises(KvpredictError, match="format"):
        Codec("yaml")  # type: ignore[arg-type]
    for wrong in (
        {"compress": 99}, {"compress": "a"}, {"compress": True}, {"dictionary": b"xx"}, {"dictionary": "text"},
        {"dictionary": b"\x37\xa4\x30\xec" + b"no dictionary" * 20}, {"secret": "text" * 10},
    ):  # fmt: skip
        with pytest.raises(KvpredictError, match=next(iter(wrong))):
            Codec(**wrong)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match=r"must be bytes, .* got str"):
        Codec(secret="text" * 10)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="another format"):
        Codec("json").decode(Codec().encode(1))
    with pytest.raises(CodecError, match="newer version"):
        Codec("json", compress=None).decode(_with_kind(99))


def _with_kind(code: int) -> bytes:
    import zlib

    body = b'{"$":%d,"v":1}' % code
    return bytes((0x6B, 1)) + zlib.crc32(body).to_bytes(4, "little") + body
