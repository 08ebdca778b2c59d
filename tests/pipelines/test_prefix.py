"""The prefix pipelines, from configuration to files."""

import json
from pathlib import Path

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.load import load_policy
from kvpredict.pipelines.run import run_pipeline
from tests.pipelines.composed import config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "traces"
SMALL = ("pipeline.mix=chat", "pipeline.requests=700", "pipeline.policies=[lfu,learned]", "tracking=none")


def test_train_saves_a_policy_that_simulate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    trained = run_pipeline(
        config("pipeline=prefix_train", *SMALL, "pipeline.host=0.5"), folder=tmp_path / "a", start=tmp_path
    )
    assert {row["policy"] for row in trained["policies"]} == {"lfu", "learned", "lru", "belady"}
    assert trained["subject"] == "learned"
    rows = {row["policy"]: row for row in trained["policies"]}
    assert {row["gap_closed"] for row in rows.values()} == {None}  # with a host tier Belady is no bound
    assert rows["lru"]["host_hits"] > 0
    for row in trained["policies"]:
        assert row["object_miss_ratio"] == pytest.approx(1 - row["prefix_hit_ratio"])
        assert row["ttft_p50"] <= row["ttft_p90"] <= row["ttft_p99"]
    assert load_policy(tmp_path / "a" / "policy").model is not None
    assert json.loads((tmp_path / "a" / "result.json").read_text())["trace"]["requests"] == 700
    assert "<svg" in (tmp_path / "a" / "report.html").read_text()
    again = run_pipeline(
        config("pipeline=prefix_simulate", *SMALL, "pipeline.policy=a/policy"), folder=tmp_path / "b", start=tmp_path
    )
    assert again["learned"] is None
    rows = {row["policy"]: row for row in again["policies"]}
    assert rows["belady"]["gap_closed"] == 1
    assert rows["lru"]["gap_closed"] == 0
    assert "prefix-hit" in capsys.readouterr().out


def test_a_file_of_requests(tmp_path: Path) -> None:
    read = config("pipeline=prefix_simulate", f"trace.path={FIXTURES / 'bailian.jsonl'}", "pipeline.warmup=0",
                  "capacity.count=4", "tracking=none", "report.html=false", "pipeline.policies=[lru]")  # fmt: skip
    result = run_pipeline(read, folder=tmp_path, start=tmp_path)
    assert result["trace"]["block_size"] == 16
    assert result["capacity"]["count"] == 4


def test_mistakes_are_named(tmp_path: Path) -> None:
    for override, message in (
        ("pipeline.policies=[lruu]", "Did you mean 'lru'"),
        ("pipeline.split=9999", "both parts need some"),
        ("pipeline.mix=chats", "Did you mean 'chat'"),
        ("pipeline.hint_accuracy=0.2", "between 0.5"),
        ("pipeline.register=true", "cannot be registered"),
        ("pipeline.host=nan", "pipeline.host=nan: expected at least 0"),
        ("pipeline.host=inf", "pipeline.host=inf: expected at least 0"),
    ):
        with pytest.raises(KvpredictError, match=message):
            run_pipeline(config("pipeline=prefix_train", *SMALL, override), folder=tmp_path, start=tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_run_is_tracked(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    (tmp_path / "run").mkdir()
    run_pipeline(
        config("pipeline=prefix_simulate", *SMALL[:3], "tracking=mlflow", f"tracking.uri={uri}"),
        folder=tmp_path / "run", start=tmp_path,
    )  # fmt: skip
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.metrics["learned/prefix_hit_ratio"] > 0
    assert "lru/ttft_p90" in run.data.metrics
