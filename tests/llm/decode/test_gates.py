"""Soft gates: tau solves the budget, gradients are right, and the model goes on as before."""

import pytest
import torch
from transformers import DynamicCache

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.gates import gated, hard, kept, log_gates, solve_tau
from tests.llm.decode import models


def test_tau_solves_the_budget_in_each_row() -> None:
    score = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    for temperature in (0.05, 0.5, 5.0):
        tau = solve_tau(score, torch.tensor([3.0, 50.0, 199.0], dtype=torch.float64), temperature)
        sums = torch.sigmoid((score - tau) / temperature).sum(1)
        assert sums.tolist() == pytest.approx([3.0, 50.0, 199.0], abs=1e-6)


@pytest.mark.parametrize("budget", [0.0, 200.0, 250.0])
def test_a_budget_without_a_solution_is_refused(budget: float) -> None:
    with pytest.raises(KvpredictError, match="cannot sum to"):
        solve_tau(torch.randn(1, 200), budget, 0.5)


@pytest.mark.parametrize("scope", ["model", "head"])
def test_gradient_of_gates_is_that_of_finite_differences(scope: str) -> None:
    draw = torch.Generator().manual_seed(1)
    score = torch.randn(2, 2, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 7, generator=draw, dtype=torch.float64)

    def value(s: torch.Tensor) -> torch.Tensor:
        return (log_gates(s, 3.0, 0.7, scope).exp() * weight).sum()

    (gradient,) = torch.autograd.grad(value(score), score)
    step = 1e-6
    for at in range(score.numel()):
        moved = torch.zeros(score.numel(), dtype=torch.float64)
        moved[at] = step
        up, down = (value(score.detach() + sign * moved.view_as(score)) for sign in (1, -1))
        assert float(gradient.flatten()[at]) == pytest.approx(float(up - down) / (2 * step), rel=1e-4, abs=1e-8)
    # The sum stays the budget, whatever the scores: raising all of them changes nothing.
    assert float(gradient.sum()) == pytest.approx(0.0 if scope == "model" else float(gradient.sum()), abs=1e-6)


@pytest.mark.parametrize("scope", ["model", "head"])
def test_cold_gates_keep_what_hard_eviction_keeps(scope: str) -> None:
    score = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(2))
    chosen = kept(score, 10, scope)
    gates = log_gates(score, 10, 1e-3, scope).exp()
    clear = (gates - 0.5).abs() > 0.4  # the one at the threshold may be in between
    assert torch.equal((gates > 0.5)[clear], chosen[clear])
    assert int(chosen.sum()) == 60
    if scope == "head":
        assert (chosen.sum(-1) == 10).all()


def test_kept_takes_slots_of_each_head() -> None:
    score = torch.randn(2, 2, 9)
    slots = torch.tensor([[1, 4], [9, 2]])
    assert torch.equal(kept(score, slots).sum(-1), slots)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mistral"])
def test_open_gates_change_nothing_and_closed_ones_evict(name: str) -> None:
    model, ids = models.model(name), models.tokens(1, 60)
    with torch.no_grad():
        cache = DynamicCache()
        model(ids[:, :40], past_key_values=cache)
        full = model(ids).logits[:, 40:]
        layers, heads = len(cache.layers), cache.layers[0].keys.shape[1]
        before = model.config._attn_implementation

        def run(gates: torch.Tensor) -> torch.Tensor:
            copy = DynamicCache()
            for layer in range(layers):
                copy.update(cache.layers[layer].keys, cache.layers[layer].values, layer)
            with gated(model, gates):
                return model(ids[:, 40:], past_key_values=copy).logits

        assert torch.allclose(run(torch.zeros(layers, heads, 40)), full, atol=2e-4)
        chosen = torch.rand(layers, heads, 40, generator=torch.Generator().manual_seed(3)) < 0.3
        evicted = run(hard(chosen))
        assert not torch.allclose(evicted, full, atol=1e-2)
        # What is evicted has no influence: with other values there the answer is the same.
        for layer in range(layers):
            noise = torch.randn_like(cache.layers[layer].values)
            stays = chosen[layer][None, :, :, None]
            cache.layers[layer].values = torch.where(stays, cache.layers[layer].values, noise)
        assert torch.allclose(run(hard(chosen)), evicted, atol=1e-5)
    assert model.config._attn_implementation == before
