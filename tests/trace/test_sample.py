"""The shipped sample: the file is the one that the README and the manifest describe, and it is worth learning from."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from kvpredict.core.errors import TraceError
from kvpredict.simulate import simulate
from kvpredict.trace import format_names, sample
from kvpredict.trace.sample import load_sample, sample_path

TRACES = Path(__file__).resolve().parents[2] / "traces"


@pytest.fixture(scope="module")
def trace():
    return load_sample()


def test_file_is_what_the_manifest_says(trace):
    manifest = yaml.safe_load((TRACES / "manifest.yaml").read_text())
    [shipped] = manifest["shipped"]
    data = sample_path().read_bytes()
    assert sample_path().name == shipped["file"]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (shipped["bytes"], shipped["sha256"])
    assert (len(trace), trace.unique) == (shipped["requests"], shipped["unique"])
    assert len(data) < 2_000_000
    assert shipped["sha256"] in (TRACES / "README.md").read_text()


def test_public_sets_name_formats_that_exist():
    manifest = yaml.safe_load((TRACES / "manifest.yaml").read_text())
    for entry in manifest["public"]:
        assert {"name", "source", "licence", "format", "what"} <= set(entry), entry
        assert entry["format"] in format_names(), entry


def test_columns(trace):
    assert (trace.sizes == 4096).all()
    assert 13.9 < (trace.times[-1] - trace.times[0]) / 86_400 < 14
    assert set(trace.categories["op"]) == {"read", "write"}
    assert {"view", "browse", "checkout", "stocktake"} <= set(trace.categories["query"])
    # Popularity changes: of the thousand favourites of the first and the last third, many differ.
    first, last = trace.ids[: len(trace) // 3], trace.ids[-len(trace) // 3 :]
    top = [set(np.argsort(-np.bincount(part, minlength=trace.unique))[:1000].tolist()) for part in (first, last)]
    assert 100 < len(top[0] & top[1]) < 900


def test_there_is_something_to_learn(trace):
    ratio = {p: simulate(trace, p, trace.capacity(0.1)).object_miss_ratio for p in ("lru", "s3fifo", "belady")}
    assert ratio["belady"] < 0.7 * ratio["lru"]
    assert ratio["belady"] < 0.8 * ratio["s3fifo"]
    assert ratio["s3fifo"] < 0.95 * ratio["lru"]


def test_readme_quotes_the_simulator(trace):
    text = (TRACES / "README.md").read_text()
    row = re.search(r"\| 10 % \(1,820 pages\) \|(.*)\|", text)
    quoted = [float(x) for x in row[1].split("|")]
    for name, said in zip(["lru", "arc", "sieve", "wtinylfu", "s3fifo", "belady"], quoted, strict=True):
        assert simulate(trace, name, 1820).object_miss_ratio == pytest.approx(said, abs=0.002), name


def test_installed_place_comes_first(tmp_path, monkeypatch):
    module = tmp_path / "kvpredict" / "trace" / "sample.py"
    monkeypatch.setattr(sample, "__file__", str(module))
    with pytest.raises(TraceError, match=r"reinstall kvpredict.*record_sqlite"):
        sample_path()
    for place in (tmp_path / "traces", tmp_path / "kvpredict" / "_sample"):
        place.mkdir(parents=True)
        shutil.copy(TRACES / "sqlite_shop.csv.xz", place)
        assert sample_path().parent == place


@pytest.mark.slow
def test_the_script_records_real_accesses_and_the_same_ones_twice(tmp_path):
    pytest.importorskip("apsw")
    script = str(TRACES / "record_sqlite.py")
    for name in ("a.csv", "b.csv.gz"):
        arguments = [script, str(tmp_path / name), "--days", "1", "--queries", "200"]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    from kvpredict.trace import read_trace

    a, b = read_trace(tmp_path / "a.csv"), read_trace(tmp_path / "b.csv.gz")
    assert a.fingerprint == b.fingerprint
    assert len(a) > 2000
    # Every query reads its index from the root: one page is in a large part of all queries.
    assert np.bincount(a.ids).max() > 100
