"""The pipelines ingest and inspect."""

import json
from pathlib import Path

import numpy as np
import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.pipelines.config import ConfigError
from kvpredict.pipelines.ingest import write_trace
from kvpredict.pipelines.run import run_pipeline
from kvpredict.trace import Trace, read_trace
from tests.pipelines.composed import config


@pytest.fixture
def trace() -> Trace:
    n = 3000
    rng = np.random.default_rng(0)
    return Trace(
        rng.integers(-(2**62), 2**62, 500)[rng.integers(0, 500, n)],
        np.cumsum(rng.random(n)) + 1.7e9,
        rng.integers(0, 10**9, n),
        {"op": rng.integers(0, 2, n), "cost": rng.random(n), "depth": rng.integers(0, 9, n)},
        categories={"op": ["get", 'a "quoted", name']},
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".csv.zst"])
@pytest.mark.parametrize("rows", [700, 1 << 20])
def test_what_is_written_reads_back(
    trace: Trace, tmp_path: Path, suffix: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvpredict.pipelines.ingest.ROWS", rows)
    path = tmp_path / f"t{suffix}"
    write_trace(trace, path)
    back = read_trace(path)
    np.testing.assert_array_equal(back.keys, trace.keys)
    np.testing.assert_allclose(back.times, trace.times, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(back.sizes, trace.sizes)
    np.testing.assert_array_equal(back.column("depth"), trace.column("depth"))
    np.testing.assert_allclose(back.column("cost"), trace.column("cost"))
    texts = [[t.categories["op"][code] for code in t.column("op")] for t in (trace, back)]
    assert texts[0] == texts[1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(KvpredictError, match=r"cannot write .*nowhere"):
        write_trace(trace, tmp_path / "nowhere" / "t.csv")


def test_ingest_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("when,url,bytes\n" + "".join(f"{i},/p{i % 7},{i % 7 + 1}\n" for i in range(100)))
    columns = ("trace.path=log.csv", "trace.columns.key=url", "trace.columns.time=when")
    folder = tmp_path / "run"
    folder.mkdir()
    settings = config("pipeline=ingest", "pipeline.out=out.csv.zst", *columns)
    result = run_pipeline(settings, folder=folder, start=tmp_path)
    assert (result["trace"]["requests"], result["trace"]["unique"]) == (100, 7)
    assert read_trace(tmp_path / "out.csv.zst").unique == 7
    assert str(tmp_path / "out.csv.zst") in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["written"]["bytes"] > 0

    run_pipeline(config("pipeline=ingest", *columns), folder=folder, start=tmp_path)
    assert read_trace(folder / "log.parquet").unique == 7

    result = run_pipeline(config("pipeline=inspect", *columns), folder=folder, start=tmp_path)
    assert result["trace"]["footprint_bytes"] == sum(range(1, 8))
    assert result["trace"]["compulsory_miss_ratio"] == 0.07
    assert "fingerprint" in capsys.readouterr().out


def test_inspect_shows_requests_as_the_prefix_pipelines_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"input_length": 1000, "output_length": 1}
    rows = [line | {"timestamp": 1000 * k, "hash_ids": [1, 2 + k % 2], "session_id": "ab"[k % 2]} for k in range(4)]
    rows.append({"timestamp": 4000, "input_length": 5, "output_length": 1, "hash_ids": []})
    (tmp_path / "moon.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = run_pipeline(config("pipeline=inspect", "trace.path=moon.jsonl"), folder=tmp_path, start=tmp_path)["trace"]
    expected = {
        "format": "mooncake", "requests": 5, "unique": 3, "block_uses": 8, "block_size": 512, "sessions": 2,
        "span_seconds": 4, "empty": 1, "prefix_hit_ratio_unbounded": 5 / 8, "sessions_go_on": 0.4,
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert "prefix hit ratio unbounded" in capsys.readouterr().out
    for override, found in (("trace.limit=2", ("requests", 2)), ("trace.format=mooncake", ("requests_per_key", 8 / 3))):
        settings = config("pipeline=inspect", "trace.path=moon.jsonl", override)
        assert run_pipeline(settings, folder=tmp_path, start=tmp_path)["trace"][found[0]] == found[1]
    (tmp_path / "chat.jsonl").write_text('{"created": 1, "messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(KvpredictError, match=r"chat.jsonl holds chat requests: .*pipeline.tokenizer="):
        run_pipeline(config("pipeline=inspect", "trace.path=chat.jsonl"), folder=tmp_path, start=tmp_path)
    (tmp_path / "keys.csv").write_text("key\n1\n2\n")
    with pytest.raises(ConfigError, match=r"pipeline.block_size has no effect: it is for files of LLM requests"):
        run_pipeline(
            config("pipeline=inspect", "trace.path=keys.csv", "pipeline.block_size=9"), folder=tmp_path, start=tmp_path
        )


def test_an_unknown_suffix_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.out=t\.xlsx: expected .*\.parquet"):
        run_pipeline(
            config("pipeline=ingest", "pipeline.out=t.xlsx", "trace.path=absent"), folder=tmp_path, start=tmp_path
        )


def test_columns_by_number_and_reading_options(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("a;1\nb;2\na;3\n")
    overrides = ("trace.path=log.txt", "trace.format=csv", "trace.delimiter=';'", "trace.header=false", "trace.limit=2")
    settings = config("pipeline=inspect", *overrides, "trace.columns.key=0", "trace.columns.time=1")
    result = run_pipeline(settings, folder=tmp_path, start=tmp_path)
    assert (result["trace"]["requests"], result["trace"]["unique"]) == (2, 2)
