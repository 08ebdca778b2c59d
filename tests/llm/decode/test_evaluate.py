"""The figures of an evaluation: against transformers' own loss, SciPy's interval, and each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import kvpredict as kvp
from kvpredict.llm.decode.evaluate import agreement, interval, nll_once, nll_online, step_times
from kvpredict.llm.decode.retrieval import retrieve
from kvpredict.llm.decode.text import Document, cut, read_documents
from tests.llm.decode import models


def made(policy: str, budget: int) -> Any:
    def make(ids: Any, when: str) -> kvp.DecodeCache:
        on = models.model()
        return kvp.DecodeCache(
            budget, models.policy(policy, on, ids), model=on, when=when, sinks=2, recent=4, interval=3
        )

    return make


class Bytes:
    """A tokenizer: a token is a letter's code, within the tiny models' vocabulary."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % models.VOCABULARY for c in text]}


@pytest.mark.parametrize("n", [4, 8, 30])
def test_the_interval_is_students(n: int) -> None:
    values = np.random.default_rng(0).normal(1, 2, n)
    got = interval(values)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert got.mean == values.mean()
    assert got.high - got.low == pytest.approx(high - low, rel=0.01)
    assert np.isnan(interval([1.0]).low)


def test_with_everything_kept_nll_is_the_models_own() -> None:
    on, ids = models.model(), models.tokens(3, 60)
    with torch.no_grad():
        logits = on(ids, use_cache=False).logits.log_softmax(-1)
    true = -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double().numpy()  # [B, 59]
    once, _ = nll_once(on, ids, 40, made("full", 60))
    np.testing.assert_allclose(once, true[:, 40:].mean(1), rtol=1e-5)
    online, _ = nll_online(on, ids, made("full", 60), block=7)
    np.testing.assert_allclose(online, true.mean(1), rtol=1e-5)


def test_a_budget_changes_it_and_the_moment_counts() -> None:
    on, ids = models.model(), models.tokens(2, 80)
    full = nll_once(on, ids, 50, made("full", 80))[0]
    once, cache = nll_once(on, ids, 50, made("h2o", 20))
    assert (once != full).all()
    assert {len(h) for layer in cache.kept() for h in layer} == {20 + 29}
    _, cache = nll_online(on, ids, made("h2o", 20), 16)
    assert {len(h) for layer in cache.kept() for h in layer} == {20}
    with pytest.raises(kvp.KvpredictError, match="prefix must leave"):
        nll_once(on, ids, 79, made("h2o", 20))


def test_agreement_is_until_the_first_difference_its_own_generation() -> None:
    on, ids = models.model(), models.tokens(2, 60)
    same, until = agreement(on, ids, made("full", 90), 12)
    assert (same == 1).all()
    assert (until == 12).all()
    same, until = agreement(on, ids, made("window", 16), 12)
    make = made("window", 16)
    for row in range(2):
        cache = make(ids, "steps")
        cache.prefill(on, ids[row : row + 1])
        mine = on.generate(ids[row : row + 1], past_key_values=cache, max_new_tokens=12, do_sample=False)[0, 60:]
        theirs = on.generate(ids[row : row + 1], max_new_tokens=12, do_sample=False)[0, 60:]
        assert until[row] == int((mine == theirs).long().cumprod(0).sum())
    assert (until / 12 <= same).all()


def test_policy_time_is_part_of_the_step() -> None:
    took = step_times(models.model(), models.tokens(1, 60), made("keydiff", 20), 12)
    assert 0 < took["policy_us"] < took["step_us"]


def test_retrieval_asks_at_every_depth() -> None:
    filler = models.tokens(2, 150).numpy()
    for kind in ("passkey", "needle"):
        found = retrieve(models.model(), Bytes(), filler, made("full", 200), kind=kind, depths=[0, 0.5, 1], trials=2)
        assert [f.depth for f in found] == [0, 0, 0.5, 0.5, 1, 1]
        assert all(f.full == f.kept for f in found)
    with pytest.raises(kvp.KvpredictError, match="to be hidden"):
        retrieve(models.model(), Bytes(), filler[:, :20], made("full", 200))
    with pytest.raises(kvp.KvpredictError, match="passkey, needle"):
        retrieve(models.model(), Bytes(), filler, made("full", 200), kind="haystack")


class Sure(torch.nn.Module):
    """A model that always answers what it was told to; retrieval must notice which cache it was."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        super().__init__()
        self.answers, self.config, self.device = answers, models.model().config, torch.device("cpu")

    def forward(self, ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        said = self.answers[type(past_key_values).__name__]
        logits = torch.zeros(1, ids.shape[1], 400)
        for k, token in enumerate(reversed(said)):
            logits[0, -1 - k, token] = 1
        return type("Out", (), {"logits": logits})


def test_found_is_the_whole_answer_and_only_that() -> None:
    rng = np.random.default_rng(0)
    number = str(rng.integers(10_000, 100_000))  # the draw of the first trial at seed 0
    right = Bytes()(f" {number}")["input_ids"]
    for kept, expected in ((right, True), ([*right[:-1], 1], False)):
        on = Sure({"DynamicCache": right, "DecodeCache": kept})
        (found,) = retrieve(on, Bytes(), models.tokens(1, 150).numpy(), made("full", 200), depths=[0.5])
        assert (found.full, found.kept) == (True, expected)


def test_documents_and_their_sequences(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.bin"):
        (tmp_path / name).write_text(name[0] * 50)
    documents = read_documents([tmp_path])
    assert [d.text[0] for d in documents] == ["a", "b"]
    assert read_documents([tmp_path / "c.bin"])[0].text == "c" * 50
    ids, names = cut(documents, Bytes(), 20, 3, each=2)
    assert ids.shape == (3, 20)
    assert names == [documents[0].name] * 2 + [documents[1].name]
    assert set(ids[2]) == {ord("b") % models.VOCABULARY}
    with pytest.raises(kvp.KvpredictError, match="none of 1 documents has 20 tokens"):
        cut([Document("short", "x")], Bytes(), 20, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kvp.KvpredictError, match="no text files"):
        read_documents([tmp_path / "empty"])
