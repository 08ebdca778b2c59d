"""decode_record and decode_train, from the command line's configuration to files, on a tiny model."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import kvpredict as kvp
from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.record import read_recording
from kvpredict.pipelines.run import run_pipeline
from tests.llm.decode.models import MAKERS
from tests.pipelines.composed import config

SMALL = (
    "pipeline.length=96", "pipeline.sequences=6", "pipeline.horizon=32", "pipeline.interval=32", "tracking=none",
    "pipeline.later=0.8",
)  # fmt: skip
STEPS = (
    "pipeline.end_to_end.steps=3", "pipeline.end_to_end.prefix=64", "pipeline.end_to_end.continuation=32",
    "pipeline.end_to_end.budgets=[0.5,0.25]", "pipeline.end_to_end.sinks=2", "pipeline.end_to_end.recent=6",
    "pipeline.end_to_end.every=2", "pipeline.validation=0.3", "pipeline.validated=2", "pipeline.recorded=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model, its tokenizer and ten documents."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    MAKERS["llama"]().save_pretrained(folder / "model")
    words = {f"w{i}": i for i in range(199)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder / "model")
    draw = random.Random(0)
    (folder / "text").mkdir()
    for number in range(10):
        text = " ".join(f"w{draw.randrange(199)}" for _ in range(300))
        (folder / "text" / f"{number}.txt").write_text(text)
    return folder


def run(place: Path, out: Path, *overrides: str) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    given = config(*overrides, "pipeline.model=model", "pipeline.text=[text]")
    return run_pipeline(given, folder=out, start=place)


@pytest.mark.parametrize("learner", ["ridge", "mlp", "lightgbm", "agent"])
def test_train_saves_a_policy_and_says_what_it_costs(
    learner: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"mlp": ["decode_learner.epochs=1"], "agent": ["decode_learner.epochs=1"],
             "lightgbm": ["decode_learner.rounds=3", "decode_learner.epochs=1"], "ridge": []}[learner]  # fmt: skip
    result = run(place, tmp_path / "run", "pipeline=decode_train", f"decode_learner={learner}", *quick, *SMALL, *STEPS)
    rows = result["tables"][0]["rows"]
    assert [row[:4] for row in rows] == [
        [name, slots, budget, tokens]
        for name, split in ((learner, ["equal"]), ("end to end", ["equal", "learned"]))
        for slots in split
        for budget, tokens in ((0.5, 32), (0.25, 16))
    ]
    assert result["trace"]["validation_sequences"] == 2
    assert result["trace"]["documents"] == 8
    policy = kvp.load_policy(tmp_path / "run" / "policy")
    assert policy.metadata["learner"] == learner
    assert policy.splits is not None
    assert policy.metadata["saved_step"] in (0, 2, 3)
    assert result["trace"]["saved"] in result["tables"][0]["title"]
    assert result["subject"] == f"{learner} and end to end"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["tables"] == result["tables"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "end to end" in page
    assert "<svg" in page
    assert "added NLL" in capsys.readouterr().out


def test_record_then_train_goes_on_from_the_recording(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    recorded = run(
        place, tmp_path / "a", "pipeline=decode_record", *SMALL, f"pipeline.out={work / 'recording'}",
        "pipeline.sequences=4",
    )  # fmt: skip
    assert recorded["written"]["sequences"] == 4
    assert recorded["trace"]["megabytes"] > 0
    assert "validation_sequences" not in recorded["trace"]
    assert len(read_recording(work / "recording")) == 4


def test_training_without_validation_saves_the_last_state(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run", "pipeline=decode_train", *SMALL, *STEPS, "pipeline.validation=0")
    assert kvp.load_policy(tmp_path / "run" / "policy").metadata["saved_step"] == 3
    assert result["tables"] == []
    assert result["learned"]["metrics"] == {}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_a_trained_policy_is_evaluated(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "a", "pipeline=decode_train", *SMALL, *STEPS)
    result = run(
        place, tmp_path / "b", "pipeline=decode_evaluate", "tracking=none",
        f"pipeline.policy={tmp_path / 'a' / 'policy'}",
        "pipeline.policies=[h2o]", "pipeline.prefix=64", "pipeline.continuation=32", "pipeline.budgets=[0.5]",
        "pipeline.sequences=2", "pipeline.depths=[]", "pipeline.answer=0", "pipeline.interval=4", "pipeline.sinks=2",
        "pipeline.recent=6", "pipeline.later=0.8",
    )  # fmt: skip
    assert {row["policy"] for row in result["policies"]} == {"full", "learned", "h2o"}


def test_mistakes_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(KvpredictError, match=r"pipeline\.model"):
        run_pipeline(config("pipeline=decode_train", *SMALL, *STEPS), folder=tmp_path, start=place)
    with pytest.raises(KvpredictError, match="leaves none of 8 documents to validate on"):
        run(place, tmp_path, "pipeline=decode_train", *SMALL, *STEPS, "pipeline.validation=1e-6")
    with pytest.raises(KvpredictError, match="Did you mean 'ridge'"):
        config("pipeline=decode_train", "decode_learner.name=rigde")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.later=0", r"pipeline\.later=0.0 leaves none of the documents .*10 found.* to train on"),
        ("pipeline.validation=1", "leaves none of 8 documents to train on"),
        ("pipeline.length=0", r"pipeline\.length=0: expected at least 1"),
        ("pipeline.length=-5", r"pipeline\.length=-5: expected at least 1"),
        ("pipeline.length=80", r"pipeline\.length=80 is below the 96 tokens"),
        ("pipeline.horizon=80", r"pipeline\.length=96 is below pipeline\.interval \+ pipeline\.horizon"),
        ("pipeline.delay=-3", "must be at least 0"),
        ("pipeline.delay=7", "delay=7 exceeds recent=6"),
        ("pipeline.rank=1000", "rank=1000 exceeds the width 32"),
        ("pipeline.recorded=0", "recorded=0: stage 1 needs"),
        ("pipeline.register=true", "cannot be registered"),
        ("pipeline.end_to_end.budgets=[]", "budgets must hold a share"),
        ("pipeline.end_to_end.budgets=[2.0]", "above 0 and below 1, got 2.0"),
        ("pipeline.end_to_end.budgets=[0.999]", "nothing would be evicted"),
    ],
)
def test_settings_are_checked_before_anything_is_written(
    override: str, message: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(KvpredictError, match=message):
        run(place, tmp_path, "pipeline=decode_train", *SMALL, *STEPS, override)
    assert not list(tmp_path.iterdir())


def test_one_document_is_not_enough_for_later(place: Path, tmp_path: Path) -> None:
    one = ("pipeline.model=model", "pipeline.text=[text/0.txt]", "pipeline.later=0.5")
    with pytest.raises(KvpredictError, match=r"pipeline\.later=0.5 leaves none of the documents .*\(1 found\)"):
        run_pipeline(config("pipeline=decode_record", *SMALL, *one), folder=tmp_path, start=place)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_training_is_tracked(place: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    tracked = [o for o in SMALL if o != "tracking=none"]
    run(place, tmp_path / "run", "pipeline=decode_train", *tracked, *STEPS, "tracking=mlflow", f"tracking.uri={uri}")
    mlflow.set_tracking_uri(uri)
    (tracked_run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert tracked_run.info.run_name == "decode_train model ridge and end to end 32 tokens"
    assert "learned/added_nll_25" in tracked_run.data.metrics
    assert "training/loss" in tracked_run.data.metrics
    artifacts = [file.path for file in mlflow.MlflowClient().list_artifacts(tracked_run.info.run_id)]
    assert {"policy", "report.html", "result.json"} <= set(artifacts)
    assert (tmp_path / "run" / "work").is_dir()
    assert "work" not in artifacts  # the recording is large and of no use to others
