"""Parquet gives what the same table as CSV gives."""

import datetime
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvpredict.core.errors import TraceError
from kvpredict.trace import hash_keys, read_trace

DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def parquet(tmp_path):
    def write(table, rows=None, **options):
        table = pa.table(table)
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
        return read_trace(tmp_path / "t.parquet", **options)

    return write


def test_guessed_columns(parquet):
    trace = parquet(
        {
            "ts": [DAY, DAY + datetime.timedelta(milliseconds=250), DAY + datetime.timedelta(seconds=1)],
            "url": ["/a", "/b", "/a"],
            "bytes": pa.array([1, 2, 1], pa.int32()),
            "tenant": pa.array(["x", "y", None]).dictionary_encode(),
            "price": [1.5, None, 2.5],
            "hot": [True, False, True],
            "tags": [["a"], [], ["b"]],
        }
    )
    assert trace.info["format"] == "parquet"
    assert trace.keys.tolist() == hash_keys(["/a", "/b", "/a"]).tolist()
    assert (trace.times - trace.times[0]).tolist() == [0, 0.25, 1]
    assert trace.times[0] == DAY.timestamp()
    assert trace.sizes.tolist() == [1, 2, 1]
    assert [trace.categories["tenant"][c] for c in trace.column("tenant")] == ["x", "y", ""]
    assert np.isnan(trace.column("price")[1])
    assert trace.column("hot").tolist() == [1, 0, 1]
    assert "tags" not in trace.columns


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int64(), pa.int16()])
def test_integer_keys(parquet, kind):
    values = [1, 2, 1] if kind != pa.uint64() else [2**63 + 1, 2, 2**63 + 1]
    trace = parquet({"key": pa.array(values, kind), "time": [1_700_000_000_000] * 3})
    assert (trace.keys.view(np.uint64) if kind == pa.uint64() else trace.keys).tolist() == values
    assert trace.times.tolist() == [1.7e9] * 3


def test_text_keys(parquet):
    assert parquet({"key": [5, 6]}, text_keys=True).keys.tolist() == hash_keys(["5", "6"]).tolist()


def test_named_columns(parquet):
    trace = parquet({"a": [1, 2], "b": [10, 20]}, columns={"key": "b", "time": "a"})
    assert trace.keys.tolist() == [10, 20]
    with pytest.raises(TraceError, match=r"no column 'c'.*'a', 'b'"):
        parquet({"a": [1, 2], "b": [10, 20]}, columns={"key": "c"})


def test_absent_values(parquet):
    columns = {"key": [1, None, 3], "size": [5, 6, -7]}
    with pytest.raises(TraceError, match=r"row 1: key is absent"):
        parquet(columns)
    trace = parquet(columns, on_error="skip")
    assert trace.keys.tolist() == [1]
    assert trace.info["skipped"] == 2


def test_row_groups_and_limit(parquet):
    keys = np.random.default_rng(1).integers(0, 1000, 50_000)
    trace = parquet({"key": keys, "t": np.arange(50_000)}, rows=7000)
    assert trace.keys.tolist() == keys.tolist()
    assert parquet({"key": keys}, limit=12_345).keys.tolist() == keys[:12_345].tolist()


@pytest.mark.parametrize("cut", [10, 200, -1, -20])
def test_cut_short(tmp_path, cut):
    pq.write_table(pa.table({"key": list(range(1000))}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[:cut])
    with pytest.raises(TraceError, match=r"t\.parquet: damaged, or no Parquet file"):
        read_trace(tmp_path / "t.parquet")


def test_compressed_from_outside(tmp_path):
    pq.write_table(pa.table({"key": [1, 2]}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    with pytest.raises(TraceError, match="undo the gzip"):
        read_trace(tmp_path / "t.parquet.gz")
