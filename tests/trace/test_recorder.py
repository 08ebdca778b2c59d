"""The recorder: what was recorded is what is read, whoever records, and whatever happens to disk and process."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kvpredict.core.errors import TraceError
from kvpredict.trace import hash_keys, read_trace, recorder
from kvpredict.trace.recorder import Recorder, RecorderError

SUFFIXES = ("csv", "csv.gz", "csv.zst")


def ops_of(trace):
    return [trace.categories["op"][code] for code in trace.columns["op"]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_back_what_was_recorded(tmp_path, suffix):
    rng = np.random.default_rng(0)
    n = 3 * recorder.BATCH + 17  # several batches and a rest
    keys = rng.integers(-(2**63), 2**63 - 1, n)
    sizes = rng.integers(0, 2**40, n)
    times = np.cumsum(rng.integers(0, 1000, n)) / 1000
    with Recorder(tmp_path / f"x.{suffix}") as r:
        for i in range(n):
            r.record(int(keys[i]), int(sizes[i]), "get" if i % 3 else "put", float(times[i]))
    assert (r.written, r.dropped, r.error) == (n, 0, None)
    assert [p.name for p in tmp_path.iterdir()] == [f"x.{suffix}"]
    trace = read_trace(tmp_path / f"x.{suffix}")
    assert np.array_equal(trace.keys, keys)
    assert trace.sizes is not None
    assert np.array_equal(trace.sizes, sizes)
    np.testing.assert_allclose(trace.times, times, atol=1e-6)
    assert ops_of(trace) == ["get" if i % 3 else "put" for i in range(n)]


def test_keys_of_any_kind_are_hashed_as_a_trace_hashes_them(tmp_path):
    keys = ["a", 'b,"c"\n', b"a", ("user", 1), 7, np.int64(7), 2**70, 1.5, frozenset({3}), None, ""]
    with Recorder(tmp_path / "x.csv") as r:
        for key in keys:
            r.record(key)
    assert read_trace(tmp_path / "x.csv").keys.tolist() == hash_keys(keys).tolist()


def test_readable_keys_keep_their_text(tmp_path):
    keys = ["plain", 'comma, and "quote"', "two\nlines", b"bytes", ("t", 1), "ünï", 5, np.int64(5)]
    with Recorder(tmp_path / "x.csv", hash_keys=False) as r:
        for key in keys:
            r.record(key, op='odd,"op"')
    trace = read_trace(tmp_path / "x.csv")
    texts = ["plain", 'comma, and "quote"', "two\nlines", "bytes", "('t', 1)", "ünï", "5", "5"]
    assert trace.keys.tolist() == hash_keys(texts).tolist()
    assert set(ops_of(trace)) == {'odd,"op"'}


def test_default_time_is_now(tmp_path):
    before = time.time()
    with Recorder(tmp_path / "x.csv") as r:
        r.record(1)
    recorded = read_trace(tmp_path / "x.csv").times
    assert before - 1e-6 <= recorded[0] <= time.time() + 1e-6


def test_times_never_go_back(tmp_path):
    with Recorder(tmp_path / "x.csv") as r:
        for moment in (5.0, 3.0, 6.0, 5.5):
            r.record(1, time=moment)
        r.flush()
        r.record(1, time=2.0)
    assert read_trace(tmp_path / "x.csv").times.tolist() == [5, 5, 6, 6, 6]


def test_a_sample_takes_or_leaves_whole_keys(tmp_path):
    keys = [*range(20_000), *(f"user:{i}" for i in range(20_000))]
    with Recorder(tmp_path / "x.csv", sample=0.1) as r:
        for _ in range(2):
            for key in keys:
                r.record(key)
    first, second = np.split(read_trace(tmp_path / "x.csv").keys, 2)
    assert np.array_equal(first, second)
    ints = np.count_nonzero(np.isin(np.arange(20_000), first))
    # 2000 expected of each kind; six standard deviations are 255.
    assert abs(ints - 2000) < 255
    assert abs(first.size - ints - 2000) < 255


def test_a_sample_is_the_same_in_every_process_and_for_equal_keys(tmp_path):
    script = textwrap.dedent("""
        import sys
        from kvpredict.trace.recorder import Recorder
        with Recorder(sys.argv[1], sample=0.3) as r:
            for i in range(500):
                r.record(f"k{i}", time=0.0)
    """)
    for name in ("a", "b"):
        env = {**os.environ, "PYTHONHASHSEED": "1" if name == "a" else "2"}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / f"{name}.csv")], check=True, env=env)
    a, b = ((tmp_path / f"{name}.csv").read_bytes() for name in "ab")
    assert a == b
    assert 100 < a.count(b"\n") < 200
    with Recorder(tmp_path / "c.csv", sample=0.3) as r:
        for i in range(500):
            r.record(np.int64(i))
        r.flush()
        numpy_rows = r.written
        for i in range(500):
            r.record(i)
    assert r.written == 2 * numpy_rows > 0


def test_many_threads(tmp_path):
    each, threads = 20_000, 4
    with Recorder(tmp_path / "x.csv") as r:
        workers = [
            threading.Thread(target=lambda t=t: [r.record(t * each + i, size=t + 1) for i in range(each)])
            for t in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    trace = read_trace(tmp_path / "x.csv")
    assert r.dropped == 0
    assert np.array_equal(np.sort(trace.keys), np.arange(threads * each))
    assert np.array_equal(trace.sizes, trace.keys // each + 1)
    for t in range(threads):  # each thread's accesses are in its order
        assert (np.diff(trace.keys[trace.sizes == t + 1]) == 1).all()


def test_rows_arrive_without_flush(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "IDLE", 0.1)
    with Recorder(tmp_path / "x.csv") as r:
        r.record(1)
        deadline = time.monotonic() + 10
        while r.written == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert r.written == 1
        assert read_trace(r.partial).keys.tolist() == [1]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_process_leaves_what_was_flushed(tmp_path, suffix):
    script = textwrap.dedent("""
        import os, signal, sys
        from kvpredict.trace.recorder import Recorder
        r = Recorder(sys.argv[1])
        for batch in range(3):
            for i in range(1000):
                r.record(i)
            r.flush()
        r.record(-1)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    path = tmp_path / f"x.{suffix}"
    killed = subprocess.run([sys.executable, "-c", script, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    left = tmp_path / f"x.partial.{suffix}"
    assert read_trace(left).keys.tolist() == [*range(1000)] * 3
    # The next recorder leaves it alone.
    with Recorder(path) as r:
        r.record(5)
    assert read_trace(path).keys.tolist() == [5]
    assert read_trace(left).keys.size == 3000


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_error_and_the_program_goes_on(tmp_path, suffix):
    script = textwrap.dedent("""
        import logging, resource, sys
        from kvpredict.trace import recorder
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        logging.basicConfig(format="LOG %(message)s")
        r = recorder.Recorder(sys.argv[1])
        x = 1
        for i in range(60):
            for _ in range(1000):
                x = x * 6364136223846793005 % 2**63
                r.record(x)
            r.flush()
        assert not r._rows
        print("went on; written", r.written)
        try:
            r.close()
        except recorder.RecorderError as error:
            print("raised", error)
        r.close()
    """)
    path = tmp_path / f"x.{suffix}"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("LOG") == 1
    first, second = done.stdout.splitlines()
    written = int(first.split()[-1])
    assert 1000 <= written < 60_000
    assert str(path) in second
    assert f"after {written} rows" in second
    left = tmp_path / f"x.partial.{suffix}"
    assert str(left) in second
    assert not path.exists()
    assert len(read_trace(left)) == written


def test_the_error_does_not_hide_the_blocks_own(tmp_path):
    r = Recorder(tmp_path / "x.csv")
    (tmp_path / "x.csv").mkdir()  # the file cannot take its name
    r.record(1)
    with pytest.raises(ZeroDivisionError), r:
        1 / 0  # noqa: B018
    assert isinstance(r.error, RecorderError)
    assert len(read_trace(r.partial)) == 1


def test_accesses_that_no_trace_can_hold_are_left_out(tmp_path, caplog):
    class Unspeakable:
        def __repr__(self):
            raise RuntimeError("no")

    with caplog.at_level(logging.WARNING), Recorder(tmp_path / "x.csv") as r:
        r.record(1, time=1.0)
        r.record(2, size=-5)
        r.record(3, time=float("nan"))
        r.record(3, time=float("inf"))
        r.record(4, size=None)
        r.record(Unspeakable())
        r.record("\ud800", time=1.5)
        r.record(5, time=2.0)
    assert r.dropped == 6
    assert len(caplog.records) == 1
    trace = read_trace(tmp_path / "x.csv")
    assert trace.keys.tolist() == [1, 5]
    assert trace.times.tolist() == [1.0, 2.0]


def test_memory_is_bounded_while_the_disk_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "LIMIT", 100)
    monkeypatch.setattr(recorder, "PATIENCE", 0.01)
    with Recorder(tmp_path / "x.csv") as r:
        with r._lock:  # as a write that does not return would
            for i in range(110):
                r.record(i)
        assert r.dropped == 10
    assert read_trace(tmp_path / "x.csv").keys.tolist() == [*range(100)]


def test_a_full_queue_is_written_by_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "LIMIT", 100)
    with Recorder(tmp_path / "x.csv") as r:
        for i in range(1000):
            r.record(i)
        assert len(r._rows) <= 100
    assert r.dropped == 0
    assert read_trace(tmp_path / "x.csv").keys.tolist() == [*range(1000)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_records_nothing(tmp_path):
    script = textwrap.dedent("""
        import os, sys
        from kvpredict.trace.recorder import Recorder
        r = Recorder(sys.argv[1])
        r.record(1)
        child = os.fork()
        for i in range(100_000 if child == 0 else 2):
            r.record(9 if child == 0 else 1)
        r.flush()
        r.close()
        if child:
            assert os.waitpid(child, 0)[1] == 0
    """)
    path = tmp_path / "x.csv"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert read_trace(path).keys.tolist() == [1, 1, 1]


def test_a_program_that_forgets_to_close_gets_its_file(tmp_path):
    script = "import sys; from kvpredict.trace.recorder import Recorder; Recorder(sys.argv[1]).record('a')"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.csv.gz")], check=True, timeout=60)
    assert len(read_trace(tmp_path / "x.csv.gz")) == 1


def test_two_recorders_of_one_path_do_not_mix(tmp_path):
    a, b = Recorder(tmp_path / "x.csv"), Recorder(tmp_path / "x.csv")
    a.record(1)
    b.record(2)
    a.close()
    assert read_trace(tmp_path / "x.csv").keys.tolist() == [1]
    b.close()
    assert read_trace(tmp_path / "x.csv").keys.tolist() == [2]


def test_after_close_nothing_happens(tmp_path):
    r = Recorder(tmp_path / "x.csv")
    r.record(1)
    r.close()
    r.record(2)
    r.flush()
    r.close()
    assert r.written == 1


@pytest.mark.parametrize("sample", [0, -1, 1.5, float("nan")])
def test_bad_sample(tmp_path, sample):
    with pytest.raises(RecorderError, match="share of keys"):
        Recorder(tmp_path / "x.csv", sample=sample)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.parquet", "x", "x.csv.xz"])
def test_bad_suffix(tmp_path, name):
    with pytest.raises(RecorderError, match="must end in"):
        Recorder(tmp_path / name)


def test_missing_folder(tmp_path):
    with pytest.raises(RecorderError, match=r"cannot record to .*gone"):
        Recorder(tmp_path / "gone" / "x.csv")


def test_an_empty_recording_has_its_header(tmp_path):
    Recorder(tmp_path / "x.csv").close()
    assert Path(tmp_path / "x.csv").read_text() == "time,key,size,op\n"
    with pytest.raises(TraceError):
        read_trace(tmp_path / "x.csv")


def test_record_is_cheap(tmp_path):
    with Recorder(tmp_path / "x.csv") as r:
        best = float("inf")
        for _ in range(20):
            started = time.thread_time()
            for i in range(1000):
                r.record(i, 10, "get")
            best = min(best, time.thread_time() - started)
            r.flush()
    # About 0.2 us; the bound is wide because machines are not alike.
    assert best / 1000 < 2e-6


def test_a_recording_replaces_files_alone_and_follows_links(tmp_path):
    pipe, link = tmp_path / "pipe.csv", tmp_path / "link.csv"
    os.mkfifo(pipe)
    with pytest.raises(RecorderError, match="no regular file"):
        Recorder(pipe)
    assert pipe.is_fifo()
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "target.csv"
    link.symlink_to(target)
    with Recorder(link) as recording:
        recording.record("k")
    assert link.is_symlink()
    assert len(read_trace(target)) == 1
