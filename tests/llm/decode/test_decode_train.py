"""Learners of decode policies: they learn, they go on where they were cut off, and the model is left alone."""

from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

from kvpredict.core.errors import KvpredictError, TraceError, UnknownName
from kvpredict.llm.decode.fingerprint import output_factor
from kvpredict.llm.decode.fit import fit_decode
from kvpredict.llm.decode.learn import ImportanceLearner, decode_learner, decode_learner_names, end_to_end
from kvpredict.llm.decode.learn.agent import budget_weights, log_probability, returns
from kvpredict.llm.decode.learn.end_to_end import EndToEnd, added_loss
from kvpredict.llm.decode.learn.learner import expanded, longest_age, rows, score_rows
from kvpredict.llm.decode.probe import Probe, blank_probe
from kvpredict.llm.decode.record import Recording, record
from tests.llm.decode import models
from tests.llm.decode.trained import random_probe

FAST: dict[str, dict[str, Any]] = {
    "ridge": {},
    "mlp": {"units": 4, "epochs": 2},
    "lightgbm": {"rounds": 5, "projections": 3, "rows": 200, "units": 4, "epochs": 2},
    "agent": {"epochs": 2, "samples": 4},
}
STEPS = EndToEnd(
    steps=6, prefix=64, continuation=32, budgets=(0.5, 0.25), sinks=2, recent=6, every=2, rate=0.01, rate_few=0.05
)


judge = end_to_end._State.judge


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("recording") / "r"
    return record(models.model("llama"), models.tokens(3, 128, seed=8).tolist(), folder, horizon=32, every=32, early=4)


def error(recording: Recording, probe: Probe) -> float:
    longest, total = longest_age(recording), []
    for part in recording:
        for row in rows(part, longest):
            total += [float(((score_rows(probe, i, row) - row.label[i]) ** 2).mean()) for i in range(2)]
    return sum(total) / len(total)


def test_every_learner_is_here() -> None:
    assert set(decode_learner_names()) == set(FAST)
    with pytest.raises(UnknownName, match="ridge"):
        decode_learner("rigde")
    with pytest.raises(UnknownName, match="strength"):
        decode_learner("ridge", strenght=1.0)
    with pytest.raises(KvpredictError, match="strength must be above 0"):
        decode_learner("ridge", strength=0.0)


@pytest.mark.parametrize("name", ["ridge", "mlp", "lightgbm"])
def test_learners_of_labels_do_better_than_a_constant(name: str, recording: Recording) -> None:
    factor = output_factor(models.model("llama"))
    fitted = decode_learner(name, **FAST[name]).fit(recording, factor, seed=1)
    blank = blank_probe(factor, 32)
    mean = torch.stack([part["label"][part["label"].isfinite()].mean() for part in recording]).mean()
    constant = error(recording, replace(blank, bias=torch.full((2, 2), float(mean))))
    assert error(recording, fitted.probe) < 0.8 * constant
    again = decode_learner(name, **FAST[name]).fit(recording, factor, seed=1)
    for a, b in zip(fitted.probe.arrays().values(), again.probe.arrays().values(), strict=True):
        assert torch.equal(a, b)


def test_ridge_is_the_solution_of_its_normal_equations(recording: Recording) -> None:
    """With hardly a penalty no other weights fit better: the gradient of the squared error is nought."""
    probe = decode_learner("ridge", strength=1e-7).fit(recording, output_factor(models.model("llama"))).probe
    bias = probe.bias.clone().requires_grad_(True)
    ages = probe.ages.clone().requires_grad_(True)
    moved = replace(probe, bias=bias, ages=ages)
    longest = longest_age(recording)
    loss = sum(
        ((score_rows(moved, i, row) - row.label[i]) ** 2).sum() for part in recording for row in rows(part, longest)
        for i in range(2)
    )  # fmt: skip
    size = sum(float(row.label.abs().sum()) for part in recording for row in rows(part, longest))
    for gradient in torch.autograd.grad(loss, (bias, ages)):
        assert float(gradient.abs().max()) < 1e-3 * size


def test_projected_recordings_give_probes_of_whole_states(tmp_path: Path) -> None:
    model, tokens = models.model("llama"), models.tokens(1, 96, seed=2).tolist()
    low = record(model, tokens, tmp_path / "low", horizon=32, every=32, rank=5)
    whole = record(model, tokens, tmp_path / "whole", horizon=32, every=32)
    probe = random_probe(model)
    projected = Probe(**{
        **probe.arrays(), "mean": probe.mean[:, :5], "scale": probe.scale[:, :5], "weight": probe.weight[..., :5],
        "inner": torch.cat([probe.inner[:, :5], probe.inner[:, 32:]], dim=1),
    })  # fmt: skip
    longest = longest_age(low)
    (small,), (large,) = low, whole
    for a, b in zip(rows(small, longest), rows(large, longest), strict=True):
        for layer in range(2):
            expected = score_rows(projected, layer, a)
            assert torch.allclose(score_rows(expanded(projected, low), layer, b), expected, atol=0.02)


def test_the_agent_ranks_by_use(recording: Recording) -> None:
    learner = decode_learner("agent", epochs=12, samples=8, rate=0.01)
    fitted = learner.fit(recording, output_factor(models.model("llama")), seed=3)
    curve = fitted.curves["return"]["value"]
    assert sum(curve[-6:]) > 1.02 * sum(curve[:6])


def test_probabilities_of_rankings_sum_to_one_and_returns_are_means_over_budgets() -> None:
    from itertools import permutations

    score = torch.randn(4, dtype=torch.float64)
    total = sum(log_probability(score[list(order)]).sum().exp() for order in permutations(range(4)))
    assert float(total) == pytest.approx(1.0)
    # A ranking's return is the mean, over budgets even in their logarithm, of the use that fits into the budget.
    use = torch.rand(64, dtype=torch.float64)
    budgets = torch.logspace(torch.log10(torch.tensor(1 / 8)), torch.log10(torch.tensor(0.5)), 20001).double() * 64
    kept = torch.stack([(use * (torch.arange(64) + 1 <= budget)).sum() for budget in budgets]).mean()
    got = returns(use, budget_weights(64, 1 / 8, 0.5).double())
    assert float(got[0]) == pytest.approx(float(kept), rel=1e-3)
    assert float(got[10]) == pytest.approx(float((use * budget_weights(64, 1 / 8, 0.5))[10:].sum()))


@pytest.mark.parametrize("scope", ["model", "head"])
@pytest.mark.parametrize(("delay", "average", "attention"), [(0, 0.0, False), (4, 0.9, False), (0, 0.9, True)])
def test_training_end_to_end_goes_on_where_it_was_cut_off(
    scope: str, delay: int, average: float, attention: bool, tmp_path: Path
) -> None:
    model, tokens = models.model("llama"), models.tokens(4, 100, seed=6).tolist()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, probe = replace(STEPS, scope=scope, average=average, attention=attention), random_probe(model)
    whole = settings.fit(model, tokens, probe, delay=delay, validation=tokens[:1], seed=2)

    def interrupted(items, description, count):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if number == 5:  # the checkpoint is of step 4: one step is done again
                raise KeyboardInterrupt
            yield item

    place = tmp_path / "state.pt"
    given: dict[str, Any] = {"delay": delay, "validation": tokens[:1], "seed": 2, "checkpoint": place}
    with pytest.raises(KeyboardInterrupt):
        settings.fit(model, tokens, probe, progress=interrupted, **given)
    resumed = settings.fit(model, tokens, probe, **given)
    for a, b in zip(whole.probe.arrays().values(), resumed.probe.arrays().values(), strict=True):
        assert torch.equal(a, b)
    assert whole.curves == resumed.curves
    last = settings.fit(model, tokens, probe, delay=delay, seed=2).probe
    moved = (last.received / probe.received).std(-1)  # beyond the scale of a head, which all its features share
    assert bool((moved > 1e-3).any()) == attention
    assert (whole.shares is None) == (scope == "head")
    if whole.shares is not None:
        assert whole.shares.shape == (2, 2, 2)
        assert whole.shares.mean((1, 2)).tolist() == pytest.approx([1.0, 1.0])
        assert (whole.shares > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(TraceError, match="other settings"):
        replace(settings, rate=0.5).fit(model, tokens, probe, **given)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    model, tokens = models.model("llama"), models.tokens(4, 100, seed=6).tolist()
    settings, probe = replace(STEPS, steps=2), random_probe(model)
    given: dict[str, Any] = {"checkpoint": tmp_path / "state.pt", "validation": tokens[3:], "origin": {"penalty": 1.0}}
    done = settings.fit(model, tokens[:2], probe, **given)
    for what, on, texts, start, changed in (
        ("sequences", model, tokens[1:3], probe, {}),
        ("validation sequences", model, tokens[:2], probe, {"validation": tokens[2:3]}),
        ("model", models.model("qwen2"), tokens[:2], probe, {}),
        ("delay", model, tokens[:2], probe, {"delay": 3}),
        ("probe", model, tokens[:2], probe, {"origin": {"penalty": 2.0}}),
        ("probe", model, tokens[:2], random_probe(model, units=5), {}),
    ):
        with pytest.raises(TraceError, match=f"of a training with other {what}: remove it"):
            settings.fit(on, texts, start, **(given | changed))
    again = settings.fit(model, tokens[:2], probe, **given)
    assert torch.equal(done.probe.weight, again.probe.weight)
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    for what in ("model", "delay", "sequences", "validation sequences", "probe"):
        del content[what]  # as earlier versions wrote it
    torch.save(content, tmp_path / "state.pt")
    assert torch.equal(settings.fit(model, tokens[:2], probe, **given).probe.weight, done.probe.weight)


def test_another_learner_of_stage_1_does_not_get_the_old_stage_2(tmp_path: Path) -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    given: dict[str, Any] = {"horizon": 32, "every": 32, "end_to_end": replace(STEPS, steps=1)}
    fit_decode(model, tokens, tmp_path, **given)
    for other in (decode_learner("ridge", strength=3.0), decode_learner("mlp", **FAST["mlp"])):
        with pytest.raises(TraceError, match="other probe"):
            fit_decode(model, tokens, tmp_path, learner=other, **given)


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    place = tmp_path / "state.pt"
    place.mkdir()
    with pytest.raises(TraceError, match=r"state\.pt cannot be written"):
        replace(STEPS, steps=1).fit(model, tokens, random_probe(model), checkpoint=place)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(("losses", "step"), [((1, 2, 3, 4), 0), ((4, 2, 2, 3), 2), ((4, nan, 3, 2), 6)])
def test_the_state_with_the_least_loss_is_returned_the_start_included(
    losses: tuple[float, ...], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    settings, probe = replace(STEPS, scope="head"), random_probe(model)
    found = iter(losses)
    monkeypatch.setattr(end_to_end, "added_loss", lambda *_, **__: torch.full((1, 2), float(next(found))))
    given: dict[str, Any] = {"validation": tokens[:1], "checkpoint": tmp_path / "state.pt"}
    trained = settings.fit(model, tokens, probe, **given)
    assert trained.step == step
    assert trained.curves["added_nll_0"]["step"] == [0, 2, 4, 6]
    assert torch.equal(trained.probe.weight, probe.weight) == (step == 0)
    assert settings.fit(model, tokens, probe, **given).step == step  # from the finished checkpoint


def test_a_checkpoint_whose_start_was_not_judged_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    monkeypatch.setattr(end_to_end._State, "judge", lambda self, step, added: step and judge(self, step, added))
    given: dict[str, Any] = {"validation": tokens[:1], "checkpoint": tmp_path / "state.pt"}
    trained = STEPS.fit(model, tokens, random_probe(model), **given)
    assert trained.curves["added_nll_0"]["step"] == [2, 4, 6]
    monkeypatch.undo()
    again = STEPS.fit(model, tokens, random_probe(model), **given)
    assert again.curves == trained.curves
    assert again.step == trained.step > 0


def test_without_validation_the_last_state_is_returned() -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    assert replace(STEPS, steps=3).fit(model, tokens, random_probe(model)).step == 3


def test_the_average_of_the_steps_is_returned() -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=6).tolist()
    probe, seen = random_probe(model), []
    for steps in (1, 2, 3):  # the rates depend on the step's share of all, but those of warming up do not
        whole = replace(STEPS, steps=3, average=0.0)
        part = iter(range(steps))

        def first(items, *_, part=part):  # type: ignore[no-untyped-def]
            return (item for item, _ in zip(items, part, strict=False))

        seen.append(whole.fit(model, tokens, probe, progress=first).probe.bias)
    found = replace(STEPS, steps=3, average=0.75).fit(model, tokens, probe).probe
    assert not torch.equal(found.bias, seen[-1])
    assert (found.bias - seen[0]).abs().max() < (seen[2] - seen[0]).abs().max()


def test_training_end_to_end_lowers_the_loss_of_eviction() -> None:
    model, tokens = models.model("llama"), models.tokens(1, 96, seed=9).tolist()
    settings = replace(STEPS, steps=40, budgets=(0.25,), every=40, scope="head")
    probe = random_probe(model)
    trained = settings.fit(model, tokens, probe, seed=0)
    curve = trained.curves["loss"]["value"]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


def test_hard_eviction_costs_nothing_when_nothing_is_evicted() -> None:
    model, tokens = models.model("llama"), models.tokens(2, 96).tolist()
    settings = replace(STEPS, budgets=(63 / 64, 0.25))
    lost = added_loss(model, tokens, random_probe(model), settings, shares=torch.ones(2, 2, 2))
    assert lost.shape == (2, 2)
    assert lost[:, 0].abs().max() < 0.2
    assert lost[:, 1].abs().mean() > lost[:, 0].abs().mean()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_fit_decode_makes_a_policy_for_any_layout(name: str, tmp_path: Path) -> None:
    import kvpredict as kvp

    model, tokens = models.model(name), models.tokens(3, 100, seed=1).tolist()
    fitted = fit_decode(model, tokens, tmp_path / "work", end_to_end=replace(STEPS, steps=2), horizon=32, every=32)
    cache = kvp.DecodeCache(40, fitted.policy, model=model, recent=6)
    out = model.generate(torch.tensor([tokens[0][:90]]), past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert out.shape == (1, 98)
    assert set(fitted.curves) == {"loss"}


@pytest.mark.parametrize(
    ("learner", "steps"), [(decode_learner("mlp", epochs=1, rate=1e30), 0), (decode_learner("ridge"), 1)]
)
def test_a_probe_that_training_has_driven_to_infinity_is_not_returned(
    learner: ImportanceLearner, steps: int, tmp_path: Path
) -> None:
    model, tokens = models.model("llama"), models.tokens(2, 100, seed=1).tolist()
    stage2 = replace(STEPS, steps=steps, rate=1e38, rate_few=1e38)
    with pytest.raises(KvpredictError, match="not finite: train again"):
        fit_decode(model, tokens, tmp_path, learner=learner, end_to_end=stage2, horizon=32, every=32)


def test_mistakes_are_named(tmp_path: Path) -> None:
    model, tokens = models.model("llama"), models.tokens(1, 90).tolist()
    with pytest.raises(KvpredictError, match="sequences of 96 tokens"):
        STEPS.fit(model, tokens, random_probe(model))
    with pytest.raises(KvpredictError, match="must leave more than the 8 protected"):
        replace(STEPS, budgets=(0.1,))
    with pytest.raises(KvpredictError, match="above 0 and below 1, got 2"):
        replace(STEPS, budgets=(2.0,))
    for rates in ({"rate_few": nan}, {"rate": inf}, {"rate": 0.0}):
        with pytest.raises(KvpredictError, match="learning rates must be finite"):
            replace(STEPS, **rates)
    with pytest.raises(KvpredictError, match="budgets must hold a share"):
        replace(STEPS, budgets=())
    with pytest.raises(KvpredictError, match="sequences of 96 tokens"):
        fit_decode(model, tokens, tmp_path / "work", end_to_end=STEPS, horizon=32, every=32)
    with pytest.raises(KvpredictError, match="recorded=0"):
        fit_decode(model, tokens, tmp_path / "work", end_to_end=STEPS, recorded=0)
    assert not (tmp_path / "work").exists()
    with pytest.raises(KvpredictError, match="scope must be one of"):
        replace(STEPS, scope="heads")
    with pytest.raises(KvpredictError, match="delay=9 exceeds recent=6"):
        fit_decode(model, tokens, tmp_path, end_to_end=STEPS, delay=9)
