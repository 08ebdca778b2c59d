"""The learned policy: what it scores, at rest, and under the cache."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kvpredict as kvp
from kvpredict.core.errors import ArtifactError, KvpredictError
from kvpredict.llm.decode.cache import DecodeCache
from kvpredict.llm.decode.fingerprint import model_identity
from kvpredict.llm.decode.learn.end_to_end import EndToEnd, prefix_scores
from kvpredict.llm.decode.observe import observe
from kvpredict.llm.decode.policies.learned import FILE, Learned
from tests.llm.decode import models
from tests.llm.decode.trained import learned, random_probe


def slow_kept(score: torch.Tensor, slots: int, sinks: int, recent: int) -> list[int]:
    """Return the positions that stay of one head, chosen one by one."""
    length = len(score)
    stay = set(range(sinks)) | set(range(length - recent, length))
    for at in sorted(range(length), key=lambda p: -float(score[p])):
        if len(stay) < slots:
            stay.add(at)
    return sorted(stay)


@pytest.mark.parametrize(("delay", "attention"), [(0, False), (6, False), (0, True), (6, True)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_cache_keeps_what_training_would_keep(name: str, delay: int, attention: bool) -> None:
    model, ids = models.model(name), models.tokens(1, 70)
    policy = learned(model, delay=delay, attention=attention)
    seen = EndToEnd(attention=attention).seen(model, ids, delay)
    assert policy.probe is not None
    score = prefix_scores(replace(policy.probe), seen, 70, delay)
    cache = DecodeCache(20, policy, model=model, when="prefill", sinks=3, recent=7)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    for layer, heads in enumerate(cache.kept()):
        for head, positions in enumerate(heads):
            assert positions.tolist() == slow_kept(score[layer, head], 20, 3, 7)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("move", ["none", "beams", "chunk"])
def test_memos_that_wait_are_those_asked_for_at_once(move: str, attention: bool) -> None:
    """Ragged heads fill at different times; beams and a chunk come while tokens wait."""
    model, ids = models.model("llama"), models.tokens(2, 90)
    policy = learned(model, attention=attention, split=torch.tensor([[0.5, 1.5], [1.2, 0.8]]))
    found = []
    for defers in (True, False):
        cache = DecodeCache(24, policy, model=model, sinks=2, recent=3, interval=5)
        assert cache.defers
        cache.defers = defers
        waited, kept = 0, []
        with torch.no_grad():
            model(ids[:, :20], past_key_values=cache)
            for at in range(20, 80):
                model(ids[:, at : at + 1], past_key_values=cache)
                waited = max(waited, *(len(layer.waiting) for layer in cache.layers))
                if at == 63 and move == "beams":
                    cache.reorder_cache(torch.tensor([1, 0]))
                if at == 63 and move == "chunk":
                    model(ids[:, :7], past_key_values=cache)
                kept.append([positions.tolist() for s in (0, 1) for heads in cache.kept(s) for positions in heads])
            logits = model(ids[:, 80:81], past_key_values=cache).logits
        assert (waited > 1) == defers
        found.append((kept, logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_learned_shares_make_ragged_slots() -> None:
    model, ids = models.model("llama"), models.tokens(1, 70)
    split = torch.tensor([[0.4, 1.6], [1.2, 0.8]])
    cache = DecodeCache(20, learned(model, split=split), model=model, when="prefill", sinks=2, recent=4)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert [[len(p) for p in heads] for heads in cache.kept()] == [[8, 32], [24, 16]]


def test_the_split_follows_the_budget() -> None:
    made = learned(models.model("llama"))
    splits = torch.stack([torch.full((2, 2), 1.0), torch.tensor([[0.0, 2.0], [2.0, 0.0]])])
    policy = Learned(made.probe, made.model, splits, (0.25, 0.125))
    assert torch.equal(policy.shares(2, 2), splits.mean(0))
    for budget, weight in ((0.5, 1.0), (0.25, 1.0), (0.25 / 2**0.5, 0.5), (0.125, 0.0), (0.01, 0.0)):
        expected = weight * splits[0] + (1 - weight) * splits[1]
        assert torch.allclose(policy.for_budget(budget).shares(2, 2), expected)
    with pytest.raises(KvpredictError, match=r"budget=1\.5"):
        policy.for_budget(1.5)


def test_a_delayed_judgement_counts_first_steps_only() -> None:
    model, ids = models.model("llama"), models.tokens(2, 40)
    policy = learned(model, delay=5)
    whole = observe(model, ids[:1], attention=True, early=5)
    for blocks in ([40], [13, 9, 1, 1, 16]):
        cache = DecodeCache(64, policy, model=model, recent=8)
        models.read(model, cache, ids, blocks)
        for layer, held in enumerate(cache.layers):
            memo = held.groups[0].held(torch.tensor([40, 40])).memo[0, :, :40, 1]
            assert torch.allclose(memo, whole.attention[layer].early, atol=1e-5)


def slow_received(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Return the most, the sum and the fading sum that each of ``count`` tokens got from ``weights`` [G, count, count].

    Query by query: one counts from the next span of 16 on, and half for each four spans that have passed since.
    """
    out = torch.zeros(count, 3)
    for token in range(count):
        for query in range(16 * (token // 16 + 1), count):
            paid = weights[:, query, token]
            out[token, 0] = max(float(out[token, 0]), float(paid.max()))
            out[token, 1] += float(paid.mean())
            out[token, 2] += float(paid.mean()) * 0.5 ** (((count - 1) // 16 - query // 16) / 4)
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_attention_received_equals_the_slow_twin_however_tokens_come(name: str) -> None:
    model, ids = models.model(name), models.tokens(2, 90)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    policy = learned(model, attention=True)
    heads = policy.probe.shape[1]  # type: ignore[union-attr]
    expected = [[[slow_received(h, 90) for h in w.unflatten(0, (heads, -1))] for w in layer] for layer in weights]
    seen = observe(model, ids[:1], attention=True)
    for layer, attention in enumerate(seen.attention):
        assert torch.allclose(attention.received(90), torch.stack(expected[layer][0]), atol=1e-5)
        part = torch.stack([slow_received(w[:, :48, :48], 48) for w in weights[layer][0].unflatten(0, (heads, -1))])
        assert torch.allclose(attention.received(48), part, atol=1e-5)
    for blocks in ([90], [13, 20, 1, 1, 55], [1] * 90):
        cache = DecodeCache(100, policy, model=model, recent=8)
        models.read(model, cache, ids, blocks)
        for layer, held in enumerate(cache.layers):
            memo = held.groups[0].held(torch.tensor([90, 90])).memo[:, :, :90, 2:]
            for b in range(2):
                assert torch.allclose(memo[b], torch.stack(expected[layer][b]), atol=1e-5)


def test_attention_of_a_padded_sequence_is_that_of_the_sequence_alone() -> None:
    model, ids = models.model("llama"), models.tokens(2, 60)
    mask = torch.ones_like(ids)
    mask[0, :21] = 0
    policy = learned(model, attention=True)
    both, alone = (DecodeCache(80, policy, model=model, recent=8) for _ in range(2))
    models.read(model, both, ids, [40] + [1] * 20, mask)
    models.read(model, alone, ids[:1, 21:], [19] + [1] * 20)
    for padded, plain in zip(both.layers, alone.layers, strict=True):
        memo, position = padded.groups[0].memo[0], padded.groups[0].position[0, 0]
        assert torch.allclose(memo[:, position >= 0], plain.groups[0].memo[0, :, :39], atol=1e-5)


def test_younger_ages_are_told_apart_and_older_ones_are_not() -> None:
    probe = random_probe(models.model("llama"))
    age = torch.tensor([[[1, 63, 64, 99, 100, 5000]]]).expand(1, 2, 6)
    score = probe.age(0, slice(None), age, 100)
    assert (score[..., :-1].diff(dim=-1).abs() > 1e-6).all()
    flags_off = probe.age(0, slice(None), torch.tensor([[[600]]]).expand(1, 2, 1), 100)
    assert torch.equal(score[..., -1:], flags_off)


def test_at_rest_and_back(tmp_path: Path) -> None:
    model, ids = models.model("llama"), models.tokens(1, 60)
    policy = learned(model, delay=3, attention=True, split=torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    policy.save(tmp_path / "policy", {"note": "tiny"})
    assert not [f for f in (tmp_path / "policy").iterdir() if f.suffix in (".pkl", ".pt")]
    loaded = kvp.load_policy(tmp_path / "policy")
    assert isinstance(loaded, Learned)
    assert (loaded.delay, loaded.attention, loaded.longest, loaded.metadata["note"]) == (3, True, 100, "tiny")
    assert policy.probe is not None
    assert loaded.probe is not None
    for name, array in policy.probe.arrays().items():
        assert torch.equal(array, loaded.probe.arrays()[name])
    assert torch.equal(loaded.shares(2, 2), torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    logits = [
        models.read(model, DecodeCache(24, p, model=model, recent=6, interval=2), ids, [40] + [1] * 20)
        for p in (policy, loaded, tmp_path / "policy")
    ]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_other_models_are_refused() -> None:
    model = models.model("llama")
    policy = learned(model)
    with pytest.raises(ArtifactError, match="kv heads 2, this one has 4"):
        DecodeCache(40, policy, model=models.model("gpt2"))
    deeper = models.LlamaForCausalLM(models.LlamaConfig(**models.PLAIN | {"num_hidden_layers": 3}))
    with pytest.raises(ArtifactError, match="layers 2, this one has 3"):
        DecodeCache(40, policy, model=deeper)
    torch.manual_seed(99)
    other = models.LlamaForCausalLM(models.LlamaConfig(**models.PLAIN))
    with pytest.raises(ArtifactError, match="other weights"):
        DecodeCache(40, policy, model=other)


def test_a_model_has_one_fingerprint_in_every_type() -> None:
    torch.manual_seed(4)
    model = models.MAKERS["llama"]()
    policy = learned(model)
    for kind in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        policy.check(model.to(kind))
    assert model_identity(model.to(torch.bfloat16))["digest"] == model_identity(model.float())["digest"]


@pytest.mark.parametrize("part", ["q_proj", "v_proj", "up_proj", "lm_head"])
def test_a_model_that_was_trained_on_is_another(part: str) -> None:
    model = models.MAKERS["llama"]()
    policy = learned(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight += 0.02 * torch.randn_like(weight)
    with pytest.raises(ArtifactError, match="other weights"):
        policy.check(model)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = learned(models.model("llama")).save(tmp_path / "p")
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(ArtifactError, match="upgrade"):
        kvp.load_policy(folder)
    whole = json.loads(text)
    for damaged in (
        whole | {"policy": None},
        whole | {"policy": whole["policy"] | {"longest": 1.5}},
        whole | {"model": {}},
        whole | {"model": [1]},
    ):
        (folder / FILE).write_text(json.dumps(damaged))
        with pytest.raises(KvpredictError, match=r"damaged|whole numbers"):
            kvp.load_policy(folder)
    (folder / FILE).write_text(text)
    (folder / "probe.npz").write_bytes((folder / "probe.npz").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="damaged"):
        kvp.load_policy(folder)
    (folder / "probe.npz").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        kvp.load_policy(folder)
    with pytest.raises(KvpredictError, match="has to be trained"):
        DecodeCache(40, "learned")
