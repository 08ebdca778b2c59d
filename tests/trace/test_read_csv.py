"""Delimited text: columns named and guessed, kinds, units of time, quotes, missing values."""

import numpy as np
import pytest

from kvpredict.core.errors import TraceError, UnknownName
from kvpredict.trace import hash_keys, read_trace


@pytest.fixture
def csv(tmp_path):
    def write(text, **options):
        path = tmp_path / "t.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_trace(path, **options)

    return write


def test_columns_named(csv):
    text = "when,what,how_much,who\n10,/a,5,x\n11,/b,6,y\n"
    trace = csv(text, columns={"key": "what", "time": "when", "size": "how_much", "tenant": "who"})
    assert trace.keys.tolist() == hash_keys(["/a", "/b"]).tolist()
    assert trace.times.tolist() == [10, 11]
    assert trace.sizes.tolist() == [5, 6]
    assert trace.categories == {"tenant": ("x", "y")}
    assert trace.info["columns"] == {"key": "what", "time": "when", "size": "how_much", "tenant": "who"}


def test_columns_by_number(csv):
    trace = csv("5,17,/a\n6,18,/b\n", columns={"key": 2, "time": 1, "size": 0})
    assert trace.keys.tolist() == hash_keys(["/a", "/b"]).tolist()
    assert trace.times.tolist() == [17, 18]
    assert trace.sizes.tolist() == [5, 6]


def test_rows_of_different_lengths_are_no_keys(csv):
    with pytest.raises(TraceError, match=r"line 3: expected 2 fields \(key, size\), found 1"):
        csv("key,size\na,10\nb\na,10,3\nb,1\n")


def test_missing_column_lists_those_found(csv):
    with pytest.raises(TraceError, match=r"no column 'urll'.*Did you mean 'url'.*'ts', 'url', 'bytes'"):
        csv("ts,url,bytes\n1,/a,2\n", columns={"key": "urll"})


def test_no_key_to_guess(csv):
    with pytest.raises(TraceError, match=r"which column is the key.*'alpha', 'beta'"):
        csv("alpha,beta\n1,x\n2,y\n")


def test_none_keeps_a_column_from_being_guessed(csv):
    trace = csv("time,key,size\n1,5,7\n", columns={"time": None})
    assert trace.times is None
    assert trace.column("time_2").tolist() == [1]


def test_without_header_the_order_is_time_key_size(csv):
    trace = csv("1,7,100,3\n2,8,200,4\n2,7,100,5\n", format="csv")
    assert trace.times.tolist() == [1, 2, 2]
    assert trace.keys.tolist() == [7, 8, 7]
    assert trace.sizes.tolist() == [100, 200, 100]
    assert trace.column("column_3").tolist() == [3, 4, 5]


def test_header_can_be_said(csv):
    assert csv("key,op\nk1,get\nk2,get\n").unique == 2
    assert csv("k0,get\nk1,get\n", header=False, columns={"key": 0}).unique == 2


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("1700000000", "1700000001", 1.0),
        ("1700000000000", "1700000000250", 0.25),
        ("1700000000000000", "1700000000250000", 0.25),
        ("1700000000000000000", "1700000000250000000", 0.25),
        ("1700000000.5", "1700000001.0", 0.5),
        ("5", "7", 2.0),
        ("2026-01-01", "2026-01-02", 86400.0),
        ("2026-01-01 10:00", "2026-01-01 10:01", 60.0),
        ("2026-01-01T10:00:00.25", "2026-01-01T10:00:01", 0.75),
        ("2026-01-01T10:00:00Z", "2026-01-01T11:00:00+01:00", 0.0),
        ("2026-01-01T10:00:00.123456789Z", "2026-01-01T10:00:02.123456789Z", 2.0),
    ],
)
def test_units_of_time(csv, first, second, seconds):
    trace = csv(f"timestamp,key\n{first},a\n{second},b\n")
    assert trace.times[1] - trace.times[0] == pytest.approx(seconds, abs=1e-6)
    if len(first) > 8:
        assert 1.6e9 < trace.times[0] < 1.8e9


def test_unit_by_name_and_by_option(csv):
    assert csv("time_ms,key\n1000,a\n3000,b\n").times.tolist() == [1, 3]
    assert csv("time,key\n1000,a\n3000,b\n", time_unit="us").times == pytest.approx([1e-3, 3e-3])
    with pytest.raises(UnknownName, match=r"time unit 'min'"):
        csv("time,key\n1000,a\n3000,b\n", time_unit="min")


def test_text_time_is_refused(csv):
    with pytest.raises(TraceError, match=r"'when' holds text, expected numbers or ISO dates"):
        csv("when,key\nMonday,a\nTuesday,b\n", columns={"time": "when"})


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_delimiters(csv, delimiter):
    text = "ts,url,bytes\n1,/a,5\n2,/b,6\n".replace(",", delimiter)
    assert csv(text).fingerprint == csv(text, delimiter=delimiter).fingerprint
    assert csv(text).sizes.tolist() == [5, 6]


def test_quotes(csv):
    trace = csv('key,size,note\n"/a,b",1,"two\nlines"\n"say ""hi""",2,plain\n"/a,b",1,"two\nlines"\n')
    assert trace.keys.tolist() == hash_keys(["/a,b", 'say "hi"', "/a,b"]).tolist()
    assert trace.categories["note"] == ("two\nlines", "plain")


def test_integer_keys_are_kept(csv):
    assert csv("key,size\n5,1\n-7,2\n").keys.tolist() == [5, -7]
    big = csv(f"key,size\n{2**63 + 1},1\n{2**64 - 1},2\n")
    assert big.keys.view(np.uint64).tolist() == [2**63 + 1, 2**64 - 1]
    assert csv("key,size\n5,1\n", text_keys=True).keys.tolist() == hash_keys(["5"]).tolist()


def test_leading_zeros_make_texts(csv):
    assert csv("key,size\n007,1\n7,1\n").unique == 2


def test_a_text_among_integer_keys_names_its_line(csv):
    text = "key,size\n" + "".join(f"{i},1\n" for i in range(500)) + "abc,1\n"
    with pytest.raises(TraceError, match=r"line 502: expected an integer as key, found 'abc'"):
        csv(text)
    assert csv(text, text_keys=True).unique == 501
    assert csv(text, on_error="skip").info["skipped"] == 1


def test_extra_columns(csv):
    trace = csv("key,price,country,count\n1,1.5,de,3\n2,,fr,4\n3,2.5,de,NA\n")
    assert trace.column("price")[[0, 2]].tolist() == [1.5, 2.5]
    assert np.isnan(trace.column("price")[1])
    assert [trace.categories["country"][c] for c in trace.column("country")] == ["de", "fr", "de"]
    assert trace.column("count")[:2].tolist() == [3, 4]
    assert np.isnan(trace.column("count")[2])


def test_an_integer_column_may_become_fractional_later(csv, monkeypatch):
    # Beyond what kinds are guessed from.
    text = "key,cost\n" + "1,2\n" * 100_000 + "1,2.5\n1,oops\n"
    monkeypatch.setattr("kvpredict.trace.readers._source.BLOCK", 1 << 16)
    cost = csv(text).column("cost")
    assert cost.dtype == np.float64
    assert cost[:100_000].tolist() == [2] * 100_000
    assert cost[100_000] == 2.5
    assert np.isnan(cost[100_001])


def test_too_many_categories_become_hashes(csv, monkeypatch):
    monkeypatch.setattr("kvpredict.trace.readers._columns.MOST_CATEGORIES", 1000)
    monkeypatch.setattr("kvpredict.trace.readers._source.BLOCK", 1 << 12)
    agents = [f"agent {i * 7 % 3000}" for i in range(3000)]
    trace = csv("key,agent\n" + "".join(f"{i},{a}\n" for i, a in enumerate(agents)))
    assert "agent" not in trace.categories
    assert trace.column("agent").tolist() == hash_keys(agents).tolist()


def test_byte_order_mark_and_crlf(csv):
    trace = csv(b"\xef\xbb\xbfkey,size\r\n1,2\r\n3,4\r\n")
    assert trace.keys.tolist() == [1, 3]
    assert trace.info["columns"]["key"] == "key"


def test_not_utf8(csv):
    assert csv(b"key,size\n\xff\xfea,1\n\xff\xfea,2\nb,1\n").unique == 2


def test_blank_lines_and_no_last_newline(csv):
    assert csv("key,size\n1,2\n\n\n3,4").keys.tolist() == [1, 3]


@pytest.mark.parametrize("size", ["-1", "x", "", "1e30", "nan"])
def test_bad_sizes(csv, size):
    with pytest.raises(TraceError, match=r"t\.csv, line 22: .*size"):
        csv("key,size\n" + "1,2\n" * 20 + f"3,{size}\n" + "1,2\n" * 20)


def test_whole_numbers_written_as_fractions_are_sizes(csv):
    assert csv("key,size\n1,2.0\n2,1.5e3\n").sizes.tolist() == [2, 1500]


@pytest.mark.parametrize("quoted", [False, True])
def test_the_bad_line_is_found_in_large_files(csv, quoted, monkeypatch):
    monkeypatch.setattr("kvpredict.trace.readers._source.BLOCK", 1 << 16)
    note = '"a\nb"' if quoted else "ab"
    rows = [f"{i},{i % 100},{note}\n" for i in range(20_000)]
    rows[15_000] = "15000,0\n"
    rows[17_000] = "17000,-5,x\n"
    text = "time,key,note\n".replace("note", "size2") + "".join(rows)
    line = 15_002 + (15_000 if quoted else 0)  # from 1, after the header
    with pytest.raises(TraceError, match=rf"line {line}: expected 3 fields"):
        csv(text)
    trace = csv(text, on_error="skip")
    assert trace.info["skipped"] == 1
    assert len(trace) == 19_999
    assert trace.times.tolist() == [i for i in range(20_000) if i != 15_000]


def test_a_stray_quote_costs_one_line(csv):
    rows = [f"{i},k{i}\n" for i in range(2000)]
    rows[700] = '700,"k700\n'
    with pytest.raises(TraceError, match=r"line 702:"):
        csv("time,key\n" + "".join(rows))
    trace = csv("time,key\n" + "".join(rows), on_error="skip")
    assert trace.info["skipped"] == 1
    assert len(trace) == 1999


def test_inches_are_no_quotes(csv):
    trace = csv('key,size,note\n1,2,3.5" disk\n2,2,none\n3,2,5" and 8" disks\n4,2,8"\n5,2,2" disk\n')
    assert trace.keys.tolist() == [1, 2, 3, 4, 5]
    assert trace.categories["note"] == ('3.5" disk', "none", '5" and 8" disks', '8"', '2" disk')
