"""The prefix pipelines, from configuration to files."""

import json
import re
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.workloads import generate_requests
from kvpredict.load import load_policy
from kvpredict.pipelines.config import ConfigError
from kvpredict.pipelines.prefix import predicted
from kvpredict.pipelines.run import run_pipeline
from tests.llm.test_continuation import chat_log
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
    shown = (tmp_path / "a" / "report.html").read_text()
    for row in trained["policies"]:
        cells = [f"{row['prefix_hit_ratio']:.4f}", f"{row['tokens_saved']:,}", f"{row['token_hit_ratio']:.1%}",
                 f"{row['host_hits']:,}", *(f"{row[p]:.3f}" for p in ("ttft_p50", "ttft_p90", "ttft_p99"))]  # fmt: skip
        line = next(part for part in shown.split("<tr") if f'<td class="name">{row["policy"]}</td>' in part)
        assert [cell for cell in cells if f"<td>{cell}</td>" not in line] == []
    assert f"LRU's is {rows['lru']['prefix_hit_ratio']:.4f}" in shown
    assert "object miss ratio" not in shown.lower()
    assert (tmp_path / "a" / "plots" / "ttft.svg").read_text().count("P90") == 1
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
        ("pipeline.split=1.0", r"cannot split at 1.0: give a share in \[0, 1\), or a whole count"),
        ("pipeline.split=2.5", "cannot split at 2.5"),
        ("pipeline.mix=chats", "Did you mean 'chat'"),
        ("pipeline.hint_accuracy=0.2", "between 0.5"),
        ("pipeline.register=true", "cannot be registered"),
        ("pipeline.host=nan", "pipeline.host=nan: expected at least 0"),
        ("pipeline.host=inf", "pipeline.host=inf: expected at least 0"),
        ("pipeline.block_size=0", "pipeline.block_size=0: expected at least 1"),
    ):
        with pytest.raises(KvpredictError, match=message):
            run_pipeline(config("pipeline=prefix_train", *SMALL, override), folder=tmp_path, start=tmp_path)


FILE = f"trace.path={FIXTURES / 'bailian.jsonl'}"


@pytest.mark.parametrize(
    "override",
    ["workload=zipf", "workload.requests=9", "trace=workload", "experiment=shop", "learner=mlp", "learned.mode=evict",
     "fit.rows=9", "fit.extra=[op]", "decode_learner=ridge", "report.best=1", "report.fractions=[0.1]", "policy=lru",
     "policy@learned=learned", "tracking.model_name=m", "trace.columns.key=a", "trace.limit=9", "trace.order=sort",
     "trace.format=csv", "trace.text_keys=true", "trace.delimiter=t", "pipeline.mix=chat", "pipeline.requests=9"],
)  # fmt: skip
def test_settings_without_effect_are_refused(override: str) -> None:
    named = override if override != "experiment=shop" else "trace=workload"
    path = FILE if named != "trace=workload" else "capacity.count=9"  # which has no path
    for pipeline in ("prefix_train", "prefix_simulate"):
        with pytest.raises(ConfigError, match=f"{re.escape(named)} has no effect on pipeline={pipeline}: "):
            config(f"pipeline={pipeline}", path, override)


def test_settings_of_files_are_refused_without_one() -> None:
    given = ("pipeline.tokenizer=t", "pipeline.block_size=9", "trace.on_error=skip", "trace.time_unit=ms")
    for override in given:
        with pytest.raises(ConfigError, match=r"requests are generated unless trace.path is given"):
            config("pipeline=prefix_train", override)
    read = ("trace=file", "capacity.fraction=0.2", "seed=3", "report.html=false", "report.windows=9", "tracking=none")
    for pipeline in ("prefix_train", "prefix_simulate"):
        config(f"pipeline={pipeline}", FILE, *given, *read)


def test_a_file_is_read_as_told(tmp_path: Path) -> None:
    line = {"input_length": 60, "output_length": 1, "hash_ids": [1, 2, 3, 4]}
    lines = [line | {"timestamp": k} for k in range(3)] + [line | {"timestamp": 3, "input_length": 9}]
    (tmp_path / "moon.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ("pipeline=prefix_simulate", "trace.path=moon.jsonl", "capacity.count=4", "pipeline.policies=[lru]",
           "tracking=none", "report.html=false", "pipeline.warmup=0")  # fmt: skip
    told = ("pipeline.block_size=16", "trace.time_unit=s", "trace.on_error=skip")
    result = run_pipeline(config(*run, *told), folder=tmp_path, start=tmp_path)
    found = {name: result["trace"][name] for name in ("block_size", "span_seconds", "requests", "skipped")}
    assert found == {"block_size": 16, "span_seconds": 2, "requests": 3, "skipped": 1}


def test_hints_from_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "thanks": 1, "question": 2}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "tokenizer")
    chat_log(tmp_path / "chat.jsonl")
    run = ("trace.path=chat.jsonl", "pipeline.tokenizer=tokenizer", "pipeline.block_size=4", "capacity.count=40",
           "pipeline.policies=[lru,learned]", "tracking=none", "report.html=false",
           "pipeline.hint_from_text=true")  # fmt: skip
    for pipeline in ("prefix_train", "prefix_simulate"):
        result = run_pipeline(config(f"pipeline={pipeline}", *run), folder=tmp_path, start=tmp_path)
        assert result["trace"]["hints"] == ["continues"]
        found = result["continuation"]
        assert found["auc"] > 0.97
        assert 0 < found["taught"] < result["split"]["at"]
        assert f"hints from text: learned from {found['taught']} requests; AUC" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="both make the hint continues: give one"):
        config("pipeline=prefix_train", *run, "pipeline.hint_accuracy=0.8")
    moon = config("pipeline=prefix_train", f"trace.path={FIXTURES / 'mooncake.jsonl'}", "pipeline.hint_from_text=true")
    with pytest.raises(KvpredictError, match="mooncake carries no text"):
        run_pipeline(moon, folder=tmp_path, start=tmp_path)


def test_the_auc_of_hints_from_text() -> None:
    settings = config("pipeline=prefix_train", "pipeline.hint_from_text=true")
    trace = generate_requests("chat", requests=600, seed=2)
    found, figures = predicted(settings, trace, 300)
    assert found.texts is None
    expected = roc_auc_score(trace.continued[300:], found.hints["continues"][300:])
    assert figures["continuation"]["auc"] == pytest.approx(expected)
    assert predicted(settings, trace, 600)[1]["continuation"]["auc"] is None


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
