"""Whatever happens to a file's bytes, reading it gives a trace or one TraceError."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvpredict.core.errors import TraceError
from kvpredict.trace import Trace, read_trace

FIXTURES = sorted(p for p in (Path(__file__).parents[1] / "fixtures" / "traces").iterdir() if p.suffix != ".md")
COMPRESS = [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]


@st.composite
def damaged(draw, original: bytes) -> bytes:
    """Bytes overwritten, inserted, removed, repeated or cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["overwrite", "insert", "remove", "cut", "repeat", "swap"]))
        some = draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\n", b",", b'"', b"-", b"9" * 25, b"\r", b"e9"])
        )
        if what == "overwrite":
            data[at : at + len(some)] = some
        elif what == "insert":
            data[at:at] = some
        elif what == "remove":
            del data[at : at + draw(st.integers(1, 30))]
        elif what == "cut":
            del data[at:]
        elif what == "repeat":
            data += data[at:]
        else:
            data[:] = data[at:] + data[:at]
    return bytes(data)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.name)
@settings(max_examples=40, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_a_trace_or_a_trace_error(path, tmp_path, data):
    content = data.draw(damaged(data.draw(st.sampled_from(COMPRESS))(path.read_bytes())))
    file = tmp_path / path.name
    file.write_bytes(content)
    right = "auto" if data.draw(st.booleans()) else read_trace(path).info["format"]
    on_error = data.draw(st.sampled_from(["raise", "skip"]))
    try:
        trace = read_trace(file, format=right, on_error=on_error)
    except TraceError as error:
        assert str(file) in str(error)  # noqa: PT017
    else:
        assert isinstance(trace, Trace)
        assert len(trace) > 0
        assert on_error == "skip" or trace.info["skipped"] == 0


@settings(max_examples=150, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode), data=st.data())
def test_any_file_in_any_format(tmp_path, content, data):
    from kvpredict.trace import format_names

    file = tmp_path / "any.trace"
    file.write_bytes(content)
    name = data.draw(st.sampled_from(["auto", *format_names()]))
    try:
        assert len(read_trace(file, format=name)) > 0
    except TraceError as error:
        assert str(file) in str(error)  # noqa: PT017
