"""One clear error for each way a file can be wrong: it names the file, the place and what was expected."""

import bz2
import gzip
import logging
import lzma
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from kvpredict.core.errors import TraceError
from kvpredict.trace import hash_keys, read_trace
from kvpredict.trace.readers._source import Source

FIXTURES = Path(__file__).parents[1] / "fixtures" / "traces"
COMPRESS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
}
NOISE = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def refused(path, match, **options):
    with pytest.raises(TraceError, match=match) as error:
        read_trace(path, **options)
    assert Path(path).name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing(tmp_path):
    refused(tmp_path / "no.csv", "there is no such file")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_impossible_name():
    with pytest.raises(TraceError, match="cannot be opened: embedded null byte"):
        read_trace("a\0b")


def test_empty(write):
    refused(write("e.csv", b""), "is empty")
    refused(write("e.csv.gz", gzip.compress(b"")), "is empty")


@pytest.mark.parametrize("data", ["\n\n\n", "key,size\n"])
def test_no_requests(write, data):
    refused(write("e.csv", data), "holds no request|not recognised")


@pytest.mark.parametrize(
    ("magic", "what"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG image"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x7fELF\x02\x01", "program"),
        (b"SQLite format 3\0", "SQLite"),
        ("key,size\n1,2\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_something_else(write, magic, what):
    refused(write("t.trace", magic + NOISE), f"{what}.*not a trace")


def test_tar(write):
    refused(write("t.tgz", gzip.compress(b"trace.csv".ljust(257, b"\0") + b"ustar\0" + b"0" * 500)), "tar archive")


@pytest.mark.parametrize("name", ["t.trace", "t.bin", "t"])
def test_noise(write, name):
    refused(write(name, NOISE), "format is not recognised.*one of.*oracle_general")


@pytest.mark.parametrize("format", ["csv", "plain", "arc", "lirs", "mqsim", "mooncake", "parquet", "vscsi", "wiki"])
def test_noise_in_a_given_format(write, format):
    refused(write("t", NOISE), "line|expected|damaged|version", format=format)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_compressed_data_cut_short(write, kind, keep):
    rows = np.random.default_rng(1).integers(0, 10**9, 40_000)
    data = COMPRESS[kind]("\n".join(map(str, rows)).encode())
    path = write("t.txt", data[: int(len(data) * keep)])
    refused(path, rf"byte \d+: the {kind} data is cut short|line \d+|is empty")
    if keep > 0.5 and kind != "bzip2":
        trace = read_trace(path, on_error="skip")
        assert trace.info["skipped"] >= 1
        assert 0 < len(trace) <= rows.size
        assert trace.keys[: len(trace) - 1].tolist() == rows[: len(trace) - 1].tolist()


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_data_damaged(write, kind):
    rows = np.random.default_rng(1).integers(0, 10**9, 40_000)
    data = bytearray(COMPRESS[kind]("\n".join(map(str, rows)).encode()))
    for i in range(len(data) // 2, len(data) // 2 + 64):
        data[i] ^= 0xFF
    # What was decompressed before the damage shows may already not be numbers.
    refused(write("t.txt", bytes(data)), rf"damaged {kind} data|line \d+|cut short")


def test_something_after_compressed_data(write):
    refused(write("t.txt", gzip.compress(b"1\n2\n1\n") + b"more"), r"near byte 2\d: damaged gzip data")
    zeros = gzip.compress(b"1\n2\n1\n") + b"\0" * 100  # padding, as tapes leave it
    assert len(read_trace(write("t.txt", zeros))) == 3


@pytest.mark.parametrize(
    ("name", "size"),
    [("oracle_general.bin", 24), ("vscsi1.bin", 32), ("vscsi2.bin", 40), ("cache2k.trace", 4), ("scarab.trace", 8)],
)
def test_last_record_cut_short(write, name, size):
    data = (FIXTURES / name).read_bytes()
    path = write(name, data[:-1])
    refused(path, rf"byte {len(data) - size}: the last record has {size - 1} of {size} bytes")
    trace = read_trace(path, on_error="skip")
    assert len(trace) == len(data) // size - 1
    assert trace.info["skipped"] == 1


def test_vscsi_of_another_version(write):
    data = bytearray((FIXTURES / "vscsi1.bin").read_bytes() * 3)
    data[32 * 5 + 15] = 9
    path = write("v.bin", bytes(data))
    refused(path, r"byte 160: expected a VSCSI record of version 1, found version 9")
    assert len(read_trace(path, on_error="skip")) == 11


BAD = [  # fixture, a line that does not fit it, what the error says
    ("address.trace", "x 0x10 1", "expected l, s as op, found b'x'"),
    ("address.trace", "l 0xzz 1", "expected an integer as address, found '0xzz'"),
    ("adaptsize.trace", "5 1 -3", "expected a size of at least 0, found -3"),
    ("arc.lis", "5 -1 0 3", "expected a count of at least 0 and at most 1048576, found -1"),
    ("arc.lis", "5 1 0", "expected 4 fields .start, count, ignored, request., found 3"),
    ("bailian.jsonl", '{"timestamp": 3, "hash_ids": [1, "x"]}', "expected hash_ids, a list of 64-bit integers"),
    ("cachelib_kv.csv", "k,GET,x,1,4", "expected an integer as size, found 'x'"),
    ("cachelib_block.csv", "1,b,40,-8,0,4,3,o,1,5,4", "expected a io_size of at least 0, found -8"),
    ("lirs.trace", "12a", "expected an integer as block, found '12a'"),
    ("mooncake.jsonl", '{"timestamp": 5, "hash_ids": [1', "expected one JSON object"),
    ("mooncake.jsonl", '{"hash_ids": [1]}', "expected timestamp, a number, which is missing"),
    ("mooncake.jsonl", "[" * 5000, "expected one JSON object"),
    ("mqsim.trace", "1 2 3 4 7", "expected a type of at least 0 and at most 1, found 7"),
    ("msr.csv", "128166372003061629,hm,1,Erase,3,4,5", "expected Read, Write, read, write as type, found b'Erase'"),
    ("numbers.txt", "99999999999999999999999", "expected an integer as key"),
    ("shop.csv", "yesterday;/a;1;eu", "expected an ISO date and time as timestamp, found 'yesterday'"),
    ("shop.csv", "2026-01-01T03:00:00Z;;1;eu", "expected a key .column 'url'., found nothing"),
    ("tencent.csv", "1,2,3,2,5", "expected a type of at least 0 and at most 1, found 2"),
    ("tencent.tsv", "1\t2\t1.5", "expected an integer as size, found '1.5'"),
    ("twitter.csv", "1,k,1,1,1,fetch,0", "expected get, gets, set, .* as op, found b'fetch'"),
    ("wiki.tsv", "5\t6\tjpeg\t\t1", "the column response_size has no value"),
]


@pytest.mark.parametrize(("name", "line", "message"), BAD, ids=lambda v: v[:30])
def test_a_line_that_does_not_fit(write, name, line, message):
    good = (FIXTURES / name).read_bytes().removesuffix(b"\n").split(b"\n")
    good = good[:1] + good[1:] * 10  # some lines to be sure of the format by; the first may be a header
    lines = [*good, line.encode(), *good[1:]]
    path = write(name, b"\n".join(lines) + b"\n")
    refused(path, rf"line {len(good) + 1}: {message}")
    trace = read_trace(path, on_error="skip")
    without = read_trace(write("without-" + name, b"\n".join([*good, *good[1:]]) + b"\n"))
    assert trace.info["skipped"] == 1
    assert trace.fingerprint == without.fingerprint


def test_skipping_is_said_once(write, caplog):
    path = write("t.txt", "1\n2\nx\n" * 100)
    with caplog.at_level(logging.WARNING, "kvpredict.trace"):
        trace = read_trace(path, on_error="skip", format="lirs")
    assert trace.info["skipped"] == 100
    assert len(trace) == 200
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: skipped 100 of 300 records; the first is at line 3: expected an integer as block, found 'x'"
    ]


def test_skipping_gives_up_on_another_format(write):
    path = write("t.txt", "some words\n" * 5000)
    refused(path, "do not fit.*not the file's format", format="lirs", on_error="skip")


def test_nothing_but_faults(write):
    refused(write("t.txt", "a b\n" * 10), "holds no request.*first fault is at line 1", format="lirs", on_error="skip")


def test_a_line_without_end(write, monkeypatch):
    monkeypatch.setattr("kvpredict.trace.readers._source.LONGEST", 1 << 16)
    refused(write("t.txt", b"7" * (1 << 24)), "line 1: no end of line", format="lirs")


def test_memory_is_little_over_the_columns(write):
    n = 1_500_000
    records = np.zeros(n, np.dtype([("t", "<u4"), ("k", "<u8"), ("s", "<u4"), ("n", "<i8")]))
    records["k"] = np.random.default_rng(0).integers(0, 1000, n)
    records["n"] = -1
    path = write("big.oracleGeneral.bin", records.tobytes())
    del records
    tracemalloc.start()
    try:
        trace = read_trace(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    columns = 24 * len(trace)
    assert len(trace) == n
    # The columns, room to grow, the running maximum of the times and some blocks; the file has 36 MB.
    assert peak < 1.5 * columns + 40e6


def test_it_streams(tmp_path):
    """A pipe has no size and no end to seek to."""
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    script = f"import sys; f = open({str(pipe)!r}, 'w'); f.writelines(f'{{i % 7}}\\n' for i in range(300000))"
    with subprocess.Popen([sys.executable, "-c", script]) as writer:
        trace = read_trace(pipe)
        assert writer.wait(20) == 0
    assert (len(trace), trace.unique) == (300_000, 7)


BAR = """
import sys
from kvpredict.trace import read_trace
read_trace(sys.argv[1], progress={progress})
"""


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"), [(True, True, True), (None, True, False), (True, False, False)]
)
def test_progress_bar(write, progress, terminal, shown):
    path = write("shown.txt", "1\n2\n" * 2_000_000)
    script = textwrap.dedent(BAR.format(progress=progress))
    ours, theirs = os.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # how a terminal ends
                break
            if not data:
                break
            seen += data
        assert process.wait() == 0
    os.close(ours)
    assert (b"shown.txt" in seen) == shown, seen


@pytest.mark.parametrize("extra", ["pyarrow", "zstandard"])
def test_a_missing_package_names_the_extra(write, extra):
    path = write("t.txt", zstandard.compress(b"1\n2\n") if extra == "zstandard" else b"1\n2\n")
    script = f"""
        import sys
        sys.modules[{extra!r}] = None
        from kvpredict.core.errors import MissingExtra
        from kvpredict.trace import read_trace
        try:
            read_trace(sys.argv[1])
        except MissingExtra as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    assert 'pip install "kvpredict[train]"' in out.stdout


def test_binary_formats_need_nothing_but_numpy(write):
    path = write("t.bin", struct.pack("<IQIq", 1, 2, 3, -1))
    script = """
        import sys
        for name in ("pyarrow", "pandas", "zstandard", "rich"):
            sys.modules[name] = None
        from kvpredict.trace import read_trace
        print(len(read_trace(sys.argv[1])))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    assert out.stdout == "1\n"


def test_texts_hash_as_keys_do(write):
    keys = ["a", "ü", "日本", "a b", "x" * 1000]
    assert read_trace(write("t.txt", "\n".join(keys))).keys.tolist() == hash_keys(keys).tolist()


def test_the_longest_line_is_bounded(write, monkeypatch):
    monkeypatch.setattr("kvpredict.trace.readers._source.LONGEST", 1 << 20)
    path = write("t.jsonl", b'{"hash_ids": [1], "comment": "' + b"x" * (1 << 24))
    with Source(path) as source:
        assert 1 << 20 <= len(source.head.line) < 4 << 20
    refused(path, "line 1: no end of line within", format="mooncake")
