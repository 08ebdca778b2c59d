"""The evaluation of decode policies, from configuration to files, with a tiny random model."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode import evaluate
from kvpredict.pipelines.run import run_name, run_pipeline
from tests.pipelines.composed import config

SMALL = (
    "pipeline=decode_evaluate", "pipeline.model=model", "pipeline.prefix=120", "pipeline.continuation=20",
    "pipeline.sequences=3", "pipeline.budgets=[0.5,0.25]", "pipeline.interval=4", "pipeline.recent=6",
    "pipeline.depths=[0.2,0.8]", "pipeline.answer=6",
)  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a model whose tokens are bytes, and texts."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(tokenizer_models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    (tmp_path / "texts").mkdir()
    for name in "abcdef":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name} has said something, and goes on to say it. " * 20)
    (tmp_path / "run").mkdir()
    return tmp_path


def test_a_run_judges_policies_on_later_documents(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = config(*SMALL, "pipeline.text=[texts]", "pipeline.policies=[h2o,window,oracle]", "tracking=none")
    result = run_pipeline(read, folder=workplace / "run", start=workplace)
    rows = {(row["policy"], row["capacity"]): row for row in result["policies"]}
    assert set(rows) == {("full", 140), *((p, b) for p in ("h2o", "window", "oracle") for b in (60, 30))}
    assert result["trace"]["documents"] == 2  # d, e and f come later; two sequences of each are taken, three in all
    full = rows["full", 140]
    assert (full["once_added"], full["online_added"], full["same_tokens"], full["freed"]) == (0, 0, 1, 0)
    for (policy, budget), row in rows.items():
        assert row["once_low"] <= row["once_added"] <= row["once_high"]
        assert row["once_nll"] == pytest.approx(full["once_nll"] + row["once_added"])
        assert 0 <= row["same_tokens"] <= 1
        if policy != "full":
            assert row["freed"] == pytest.approx(1 - budget / 120)
            assert 0 < row["policy_us"] < row["step_us"]
    assert rows["window", 30]["once_added"] != rows["h2o", 30]["once_added"]
    assert result["subject"] in ("h2o", "window")
    for kept in result["kept"]:
        assert [sum(layer) for layer in kept["share"]] == pytest.approx([2 * 30] * 2)  # two heads of 30 slots
    assert len(result["depths"]) == 3 * 2 * 4 + 4  # policies, budgets, kinds and depths; and once the full cache
    page = (workplace / "run" / "report.html").read_text()
    assert page.count("<svg") == 4
    shown = capsys.readouterr().out
    assert "added NLL" in shown
    assert "passkey and needle: the full cache finds none" in shown
    assert run_name(read, result).startswith("decode_evaluate model ")
    assert json.loads((workplace / "run" / "result.json").read_text())["model"]["type"] == "llama"


def test_python_topics_are_the_default_text(workplace: Path) -> None:
    read = config(*SMALL, "pipeline.policies=[keydiff]", "pipeline.depths=[]", "pipeline.answer=0",
                  "pipeline.online=false", "pipeline.budgets=[0.25]", "tracking=none")  # fmt: skip
    result = run_pipeline(read, folder=workplace / "run", start=workplace)
    assert result["trace"]["of_documents"] > 50
    assert result["depths"] == []
    assert result["policies"][0]["online_added"] is None


def test_mistakes_are_named(workplace: Path) -> None:
    for override, message in (
        ("pipeline.model=null", "pipeline.model is not given"),
        ("pipeline.model=nowhere/at/all", "no causal language model"),
        ("pipeline.policies=[h20]", "Did you mean 'h2o'"),
        ("pipeline.policies=[window,learned]", "pipeline.policy"),
        ("pipeline.text=[missing.txt]", "missing.txt does not exist"),
        ("pipeline.prefix=3000", "none of 3 documents"),
        ("pipeline.budgets=[0.05]", "below the 14 slots"),
        ("pipeline.budgets=[2]", "pipeline.budgets has 2"),
        ("pipeline.budgets=[]", r"pipeline\.budgets=\[\]"),
        ("pipeline.policies=[]", "name one policy at least"),
        ("pipeline.later=1", r"pipeline\.later=1.0 leaves none of the documents .*6 found.* to judge on"),
        ("pipeline.later=2", "pipeline.later=2.0: expected a share"),
        ("pipeline.depths=[2.0]", "pipeline.depths has 2.0"),
        ("pipeline.depths=[-1]", "pipeline.depths has -1.0"),
        ("pipeline.trials=0", "pipeline.trials=0: expected at least 1"),
        ("pipeline.threads=-1", "pipeline.threads=-1: expected at least 1"),
        ("pipeline.dtype=int8", "Known: auto"),
        ("pipeline.device=tpu", "device=tpu cannot be used here"),
        ("pipeline.policy=''", "pipeline.policy is empty"),
        ("pipeline.policy=texts", "holds no policy.json, prefix_policy.json or decode_policy.json"),
        ("pipeline.policy=nowhere", "unknown decode policy 'nowhere'.*nor is there a folder"),
        ("pipeline.policy=h2o", r"put its name in pipeline\.policies"),
    ):
        if "policies" not in override:
            override = (override, "pipeline.policies=[window]")
        given = [override] if isinstance(override, str) else list(override)
        with pytest.raises(KvpredictError, match=message):
            run_pipeline(
                config(*SMALL, "pipeline.text=[texts]", "tracking=none", *given), folder=workplace, start=workplace
            )


def test_a_budget_that_is_too_small_is_named_before_any_is_judged(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, real = [], evaluate.nll_once
    monkeypatch.setattr(evaluate, "nll_once", lambda *given: judged.append(1) or real(*given))
    read = config(
        *SMALL, "pipeline.text=[texts]", "tracking=none", "pipeline.policies=[h2o]", "pipeline.recent=null",
        "pipeline.budgets=[0.5,0.05]",
    )  # fmt: skip
    with pytest.raises(KvpredictError, match="a budget of 6 tokens is below the 9 slots"):
        run_pipeline(read, folder=workplace / "run", start=workplace)
    assert not judged


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_named(workplace: Path) -> None:
    read = config(*SMALL, "pipeline.device=cuda", "pipeline.text=[texts]", "tracking=none")
    with pytest.raises(KvpredictError, match="device=cuda cannot be used here"):
        run_pipeline(read, folder=workplace / "run", start=workplace)


def test_short_documents_are_named(workplace: Path) -> None:
    (workplace / "few").mkdir()
    for name, text in (("empty", ""), ("blank", "\n \n"), ("short", "so short")):
        (workplace / "few" / f"{name}.txt").write_text(text)
    read = config(*SMALL, "pipeline.text=[few]", "pipeline.later=0", "tracking=none")
    with pytest.raises(KvpredictError, match=r"short\.txt has 8, blank\.txt has 3, empty\.txt has 0"):
        run_pipeline(read, folder=workplace / "run", start=workplace)


def test_damaged_weights_are_named(workplace: Path) -> None:
    weights = workplace / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    read = config(*SMALL, "pipeline.text=[texts]", "tracking=none")
    with pytest.raises(KvpredictError, match=r"weights of .*model cannot be read"):
        run_pipeline(read, folder=workplace / "run", start=workplace)


def test_texts_beyond_learned_positions_are_refused(workplace: Path) -> None:
    GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=150, bos_token_id=0, eos_token_id=None)
    ).save_pretrained(workplace / "model")
    for overrides, message in (
        (("pipeline.continuation=40",), "prefix \\+ continuation needs 160 positions, this model has 150"),
        (("pipeline.answer=31", "pipeline.depths=[]"), "prefix \\+ answer needs 151 positions"),
        (("pipeline.policies=[window]", "pipeline.budgets=[0.5]"), "asking for a passkey after the text needs"),
    ):
        read = config(*SMALL, "pipeline.text=[texts]", "tracking=none", *overrides)
        with pytest.raises(KvpredictError, match=message):
            run_pipeline(read, folder=workplace / "run", start=workplace)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_run_is_tracked(workplace: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{workplace / 'm.db'}"
    read = config(
        *SMALL, "pipeline.text=[texts]", "pipeline.policies=[window]", "tracking=mlflow", f"tracking.uri={uri}"
    )
    run_pipeline(read, folder=workplace / "run", start=workplace)
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "window/once_added" in run.data.metrics
    assert run.data.metrics["full/once_added"] == 0
