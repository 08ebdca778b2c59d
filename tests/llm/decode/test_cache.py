"""The host: memory, chunks, batches, splits, beams, what is refused, and shapes that a compiler can rely on."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AfmoeConfig,
    AfmoeForCausalLM,
    BertConfig,
    BertLMHeadModel,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import kvpredict as kvp
from kvpredict.llm.decode.policies.h2o import H2O
from kvpredict.llm.decode.policies.keydiff import KeyDiff
from kvpredict.llm.decode.policies.window import Window
from kvpredict.llm.decode.policy import HIDDEN, Arrival, DecodePolicy, Held
from tests.llm.decode import models

SMALL: dict[str, Any] = {"sinks": 2, "recent": 4, "interval": 3}


def test_memory_is_the_sum_of_the_budgets_not_the_greatest() -> None:
    on, ids = models.model("gpt2"), models.tokens(1, 190)
    split = np.array([[1, 1, 1, 9], [1, 2, 1, 1]])
    cache = kvp.DecodeCache(30, "keydiff", model=on, split=split, **SMALL)
    models.read(on, cache, ids, [100] + [1] * 30)
    assert cache.slots.max() > 3 * cache.slots.min()
    width = on.config.n_embd // on.config.n_head
    assert cache.nbytes == 2 * 8 * 30 * width * 4  # keys and values, 8 heads, float32
    held = sum(len(head) for layer in cache.kept() for head in layer)
    assert held * 2 * width * 4 == cache.nbytes
    assert cache.side_nbytes < cache.nbytes / 4


def test_a_prompt_in_chunks_never_holds_more_than_budget_and_chunk() -> None:
    on, ids = models.model(), models.tokens(2, 180)
    mask = torch.ones_like(ids)
    mask[1, :57] = 0
    cache = kvp.DecodeCache(24, "h2o", model=on, **SMALL)
    cache.prefill(on, ids, mask, chunk=16)
    assert cache.get_seq_length() == 179
    token = 2 * 2 * 8 * 2 * 4  # bytes a token of one layer: K and V, 2 heads of width 8, 2 sequences, float32
    assert cache.peak_nbytes <= token * (2 * 24 + 24 + 16)
    whole = kvp.DecodeCache(24, "h2o", model=on, **SMALL)
    models.read(on, whole, ids[:, :179], [179], mask[:, :179])
    assert whole.peak_nbytes > cache.peak_nbytes
    out = on.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert out.shape == (2, 185)
    alone = kvp.DecodeCache(24, "h2o", model=on, **SMALL)
    models.read(on, alone, ids[:1, :179], [16] * 11 + [3])
    other = on.generate(ids[:1], past_key_values=alone, max_new_tokens=5, do_sample=False)
    assert torch.equal(out[:1], other)


def test_after_prefill_once_chunks_are_within_the_budget_and_answers_are_kept() -> None:
    on, ids = models.model(), models.tokens(1, 90)
    cache = kvp.DecodeCache(24, "tova", model=on, when="prefill", sinks=2, recent=4)
    cache.prefill(on, ids, chunk=20)
    assert {len(h) for layer in cache.kept() for h in layer} == {24}
    on.generate(ids, past_key_values=cache, max_new_tokens=70, do_sample=False)
    assert {len(h) for layer in cache.kept() for h in layer} == {24 + 70}


def test_positions_stay_those_of_the_text() -> None:
    """With a window that reaches back over all that matters, eviction changes nothing."""
    on, ids = models.model("mistral"), models.tokens(1, 120)
    expected = models.read(on, DynamicCache(config=on.config), ids, [1] * 120)
    cache = kvp.DecodeCache(models.WINDOW + 3, "window", model=on, sinks=0, recent=models.WINDOW, interval=3)
    torch.testing.assert_close(models.read(on, cache, ids, [1] * 120), expected, atol=2e-5, rtol=1e-4)


def test_other_caches_go_on_as_before() -> None:
    on, ids = models.MAKERS["llama"]().eval(), models.tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    before = models.read(on, DynamicCache(config=on.config), ids, [20, 1, 9], mask)
    kvp.DecodeCache(30, model=on, **SMALL)
    assert torch.equal(models.read(on, DynamicCache(config=on.config), ids, [20, 1, 9], mask), before)
    with torch.no_grad():
        assert torch.isfinite(on(ids, attention_mask=mask, use_cache=False).logits).all()


def test_beam_search_and_batches() -> None:
    on, ids = models.model(), models.tokens(2, 20)
    given: dict[str, Any] = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False}
    expected = on.generate(ids, past_key_values=DynamicCache(config=on.config), **given)
    assert torch.equal(
        on.generate(ids, past_key_values=kvp.DecodeCache(40, "keydiff", model=on, **SMALL), **given), expected
    )
    evicting = kvp.DecodeCache(16, "h2o", model=on, **SMALL)
    assert on.generate(ids, past_key_values=evicting, **given).shape == (2, 30)
    cache = kvp.DecodeCache(16, "h2o", model=on, **SMALL)
    models.read(on, cache, ids, [15, 1, 1, 1, 1, 1])
    first, second = cache.kept(0), cache.kept(1)
    cache.batch_repeat_interleave(2)
    assert [h.tolist() for h in cache.kept(3)[1]] == [h.tolist() for h in second[1]]
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert [h.tolist() for h in cache.kept(1)[0]] == [h.tolist() for h in first[0]]
    models.read(on, cache, ids[[1, 0]], [1])
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    models.read(on, cache, models.tokens(3, 9), [9])


def test_hidden_states_reach_the_policy() -> None:
    seen = []

    class Looks(Window):
        needs = frozenset({HIDDEN})

        def arrive(self, new: Arrival) -> Any:
            assert new.hidden is not None
            assert new.query is None
            seen.append(new.hidden.shape)
            return super().arrive(new)

    on = models.model("qwen3")
    models.read(on, kvp.DecodeCache(30, Looks(), model=on, **SMALL), models.tokens(2, 9), [8, 1])
    assert seen == [(2, 8, 32)] * 2 + [(2, 1, 32)] * 2


def test_a_policy_brings_its_own_split() -> None:
    class Shares(KeyDiff):
        def shares(self, layers: int, heads: int) -> Any:
            return torch.tensor([[1.0, 3.0], [2.0, 2.0]])

    on = models.model()
    assert kvp.DecodeCache(40, Shares(), model=on, **SMALL).slots.tolist() == [[20, 60], [40, 40]]
    assert kvp.DecodeCache(40, Shares(), model=on, split="equal", **SMALL).slots.tolist() == [[40, 40], [40, 40]]


def test_nan_keys_go_first() -> None:
    class Worthless(Window):
        def score(self, held: Held) -> Any:
            return super().score(held).masked_fill(held.position % 3 == 0, torch.nan)

    on = models.model()
    cache = kvp.DecodeCache(20, Worthless(), model=on, **SMALL)
    models.read(on, cache, models.tokens(1, 40), [40])
    kept = cache.kept()[1][1]
    assert [p for p in kept if p % 3 == 0] == [0, 36, 39]  # a sink and recent ones


def test_steady_steps_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo as dynamo

    on, ids = models.MAKERS["llama"]().eval(), models.tokens(1, 120)
    cache = kvp.DecodeCache(24, "keydiff", model=on, **SMALL)
    plain = kvp.DecodeCache(24, "keydiff", model=on, **SMALL)
    expected = models.read(on, plain, ids, [40] + [1] * 80)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph.forward

    dynamo.reset()
    compiled = torch.compile(on, backend=backend)
    models.read(on, cache, ids[:, :40], [40])
    got = models.read(compiled, cache, ids[:, 40:70], [1] * 30)
    settled = len(graphs)
    got = torch.cat([got, models.read(compiled, cache, ids[:, 70:], [1] * 50)], 1)
    dynamo.reset()
    assert len(graphs) == settled
    torch.testing.assert_close(got, expected[:, 40:], atol=2e-5, rtol=1e-4)


# --- mistakes ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_tokens": 40}, "below the 52 slots .* 4 sinks, 32 recent, 16"),
        ({"budget_tokens": 8, "when": "prefill", "recent": 5}, "below the 9"),
        ({"budget_tokens": "many"}, "budget_tokens must be a whole number"),
        ({"budget_tokens": 0}, "at least 1"),
        ({"budget_tokens": 64, "sinks": -1}, "sinks must be"),
        ({"budget_tokens": 64, "interval": 0}, "interval must be"),
        ({"budget_tokens": 64, "recent": 3.5}, "recent must be a whole number"),
        ({"budget_tokens": 64, "recent": "x"}, "recent must be a number"),
        ({"budget_tokens": 64, "recent": float("inf")}, "recent must be a number"),
        ({"budget_tokens": 64, "recent": np.float32("nan")}, "recent must be a number"),
        ({"budget_tokens": 64, "when": "never"}, "steps, prefill"),
        ({"budget_tokens": 64, "split": "pyramids"}, "Did you mean 'pyramid'"),
        ({"budget_tokens": 64, "split": np.ones((3, 2))}, r"this model's is \(2, 2\)"),
        ({"budget_tokens": 64, "split": [[1, 2], [3, -1]]}, "positive"),
        ({"budget_tokens": 64, "policy": "keydif"}, "Did you mean 'keydiff'"),
        ({"budget_tokens": 64, "policy": 3}, "decode policy's name"),
        ({"budget_tokens": 64, "policy": "oracle"}, "needs its record"),
    ],
)
def test_bad_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(kvp.KvpredictError, match=message):
        kvp.DecodeCache(**({"policy": "window", "model": models.model()} | given))


def test_what_it_cannot_do_is_refused_by_name() -> None:
    on, ids = models.model(), models.tokens(2, 20)
    cache = kvp.DecodeCache(40, "keydiff", **SMALL)
    with pytest.raises(kvp.KvpredictError, match="attach"):
        models.read(on, cache, ids, [20])
    cache.attach(on)
    with pytest.raises(kvp.KvpredictError, match=r"torch\.no_grad"):
        on(ids, past_key_values=cache, use_cache=True)
    cache.reset()
    models.read(on, cache, ids, [20])
    with pytest.raises(kvp.KvpredictError, match="crop"):
        cache.crop(-1)
    with pytest.raises(kvp.KvpredictError, match="assisted"):
        cache.activate_past_recording()
    with pytest.raises(kvp.KvpredictError, match="batch of 2"):
        models.read(on, cache, ids[:1], [1])
    with pytest.raises(kvp.KvpredictError, match="empty cache"):
        cache.prefill(on, ids)
    with pytest.raises(kvp.KvpredictError, match="reset"):
        cache.attach(on)
    fresh = kvp.DecodeCache(40, "keydiff", model=on, **SMALL)
    with pytest.raises(kvp.KvpredictError, match="left only"):
        models.read(on, fresh, ids, [20], torch.tensor([[1] * 20, [1] * 15 + [0] * 5]))
    with pytest.raises(kvp.KvpredictError, match="pairs of tokens"), torch.no_grad():
        on(ids, attention_mask=torch.ones(2, 1, 20, 25, dtype=torch.bool), past_key_values=fresh, use_cache=True)
    fresh.reset()
    with pytest.raises(kvp.KvpredictError, match="assisted"):
        on.generate(ids[:1], past_key_values=fresh, assistant_model=on, max_new_tokens=4)


def test_without_transformers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None; import kvpredict; kvpredict.DecodeCache"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra" in done.stderr
    assert 'pip install "kvpredict[llm]"' in done.stderr


def test_after_the_one_eviction_no_weights_are_asked_for() -> None:
    asked = []

    class Counts(H2O):
        def attend(self, held: Held, weights: Any) -> None:
            asked.append(weights.shape[3])
            super().attend(held, weights)

    on, ids = models.model(), models.tokens(1, 60)
    cache = kvp.DecodeCache(20, Counts(), model=on, when="prefill", sinks=2, recent=4)
    models.read(on, cache, ids, [40, 1, 1, 18])
    assert asked == [40, 40]


def test_models_that_it_cannot_serve() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(kvp.KvpredictError, match="'mamba'"):
        kvp.DecodeCache(64, "window", model=mamba)
    eager = models.MAKERS["llama"]()
    eager.set_attn_implementation("eager")
    with pytest.raises(kvp.KvpredictError, match="attn_implementation='sdpa'"):
        kvp.DecodeCache(64, "window", model=eager)
    with pytest.raises(kvp.KvpredictError, match="cannot serve"):
        kvp.DecodeCache(64, "window", model=torch.nn.Linear(2, 2))


def test_attention_that_is_not_causal_or_comes_twice_or_does_not_slide_is_refused() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    ids = models.tokens(1, 30)
    with pytest.raises(kvp.KvpredictError, match="'bert': its tokens see later ones"):
        kvp.DecodeCache(64, "window", model=BertLMHeadModel(BertConfig(**small)))
    decoder = BertLMHeadModel(BertConfig(**small, is_decoder=True)).eval()
    cache = kvp.DecodeCache(64, "window", model=decoder)
    torch.testing.assert_close(
        models.read(decoder, cache, ids, [20, *[1] * 10]), models.read(decoder, DynamicCache(), ids, [20, *[1] * 10])
    )
    twice = DiffLlamaForCausalLM(DiffLlamaConfig(**small, vocab_size=models.VOCABULARY)).eval()
    with pytest.raises(kvp.KvpredictError, match="DiffLlamaAttention: it attends twice"):
        models.read(twice, kvp.DecodeCache(64, "window", model=twice), ids, [30])
    wide = models.MAKERS["llama"]()
    wide.config.sliding_window = 24  # as Moshi's, whose attention does not know of it
    with pytest.raises(kvp.KvpredictError, match="sliding window of 24 tokens, but its attention sees all"):
        models.read(wide, kvp.DecodeCache(64, "window", model=wide), ids, [30])


def test_models_that_view_what_attention_returns_are_served() -> None:
    torch.manual_seed(3)
    config = AfmoeConfig(**models.PLAIN, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, head_dim=8)
    on, ids = AfmoeForCausalLM(config).eval(), models.tokens(2, 40)
    truth = models.read(on, DynamicCache(config=on.config), ids, [30, *[1] * 10])
    for name, split in (("h2o", "equal"), ("h2o", [[1, 2], [2, 1]]), ("keydiff", [[2, 1], [1, 2]])):
        cache = kvp.DecodeCache(80, name, model=on, split=split, **SMALL)
        torch.testing.assert_close(models.read(on, cache, ids, [30, *[1] * 10]), truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_that_broke_off_is_not_gone_on_from(layer: int, tokens: int) -> None:
    on, ids = models.MAKERS["llama"](), models.tokens(1, 70)
    cache = kvp.DecodeCache(40, "tova", model=on.eval(), **SMALL)
    truth = models.read(on, cache, ids, [40, tokens])
    cache.reset()
    models.read(on, cache, ids, [40])
    asked = cache.policy.attend

    def interrupted(held: Held, weights: Any) -> None:
        if held.layer == layer:
            raise KeyboardInterrupt
        asked(held, weights)

    object.__setattr__(cache.policy, "attend", interrupted)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        on(ids[:, 40 : 40 + tokens], past_key_values=cache)
    object.__delattr__(cache.policy, "attend")
    with pytest.raises(kvp.KvpredictError, match=r"broke off .* cache\.reset\(\)"), torch.no_grad():
        on(ids[:, 40 : 40 + tokens], past_key_values=cache)
    cache.reset()
    assert torch.equal(models.read(on, cache, ids, [40, tokens]), truth)


def test_a_policy_for_another_model_is_refused() -> None:
    class Other(DecodePolicy):
        name = "other"

        def check(self, model: Any) -> None:
            raise kvp.KvpredictError("made for 30 layers, this model has 2")

    with pytest.raises(kvp.KvpredictError, match="30 layers"):
        kvp.DecodeCache(64, Other(), model=models.model())
    made = models.oracle(models.model(), models.tokens(1, 20))
    deeper = LlamaForCausalLM(LlamaConfig(**(models.PLAIN | {"num_hidden_layers": 3})))
    with pytest.raises(kvp.KvpredictError, match="recorded on 2 layers"):
        kvp.DecodeCache(64, made, model=deeper)


def test_a_cache_serves_the_model_it_was_made_for() -> None:
    on, other, ids = models.model("llama"), models.model("mistral"), models.tokens(1, 20)
    cache = kvp.DecodeCache(64, "keydiff", model=on, **SMALL)
    kvp.DecodeCache(64, "keydiff", model=other, **SMALL)
    with pytest.raises(kvp.KvpredictError, match="another model"), torch.no_grad():
        other(ids, past_key_values=cache)
    with pytest.raises(kvp.KvpredictError, match="another model"):
        cache.prefill(other, ids)
    models.read(copy.deepcopy(on), kvp.DecodeCache(64, "keydiff", model=on, **SMALL), ids, [20])


def test_masks_of_pairs_are_refused_whatever_their_shape() -> None:
    on, ids = models.model(), models.tokens(2, 20)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    with torch.no_grad():  # what it would be anyway
        on(ids, attention_mask=mask, past_key_values=kvp.DecodeCache(40, "keydiff", model=on, **SMALL))
    mask[:, :, 10:, 3] = False
    with pytest.raises(kvp.KvpredictError, match="pairs of tokens"), torch.no_grad():
        on(ids, attention_mask=mask, past_key_values=kvp.DecodeCache(40, "keydiff", model=on, **SMALL))


def test_threads_share_a_model() -> None:
    """Some with decode caches, some with transformers' own: none sees another's keys."""
    on, ids = models.model(), models.tokens(1, 40)
    with torch.no_grad():
        truth = on(ids).logits

    def run(kind: int) -> None:
        for _ in range(15):
            held = DynamicCache() if kind % 2 else kvp.DecodeCache(64, "keydiff", model=on, **SMALL)
            with torch.no_grad():
                parts = [on(ids[:, :30], past_key_values=held).logits]
                parts += [on(ids[:, at : at + 1], past_key_values=held).logits for at in range(30, 40)]
            torch.testing.assert_close(torch.cat(parts, 1), truth, atol=1e-5, rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


@pytest.mark.parametrize("when", ["steps", "prefill"])
def test_a_layer_with_a_window_holds_no_more_than_it_sees(when: str) -> None:
    on, ids = models.model("mistral"), models.tokens(1, 90)
    window = on.config.sliding_window
    cache = kvp.DecodeCache(80, "keydiff", model=on, sinks=2, recent=4, interval=4, when=when)
    assert cache.slots.max() == window + (4 if when == "steps" else 0) < 80
    if when == "steps":  # and so nothing that is seen is evicted
        with torch.no_grad():
            parts = [on(ids[:, at : at + 1], past_key_values=cache).logits for at in range(90)]
            torch.testing.assert_close(torch.cat(parts, 1), on(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        "text", [1, 2], np.ones((1, 5), np.int64), torch.ones(1, 5), torch.ones(5, dtype=torch.long),
        torch.ones(1, 0, dtype=torch.long),
    ],
)  # fmt: skip
def test_prefill_says_what_it_takes(given: Any) -> None:
    cache = kvp.DecodeCache(64, "keydiff", model=models.model(), **SMALL)
    with pytest.raises(kvp.KvpredictError, match="input_ids must be a tensor"):
        cache.prefill(models.model(), given)
    with pytest.raises(kvp.KvpredictError, match="shape of input_ids"):
        cache.prefill(models.model(), models.tokens(1, 9), torch.ones(1, 8))


def test_numbers_of_numpy_are_numbers() -> None:
    on, ids = models.model(), models.tokens(1, 60)
    cache = kvp.DecodeCache(np.int64(40), "keydiff", model=on, recent=np.float32(0.5), interval=np.int32(4))
    cache.prefill(on, ids, chunk=np.int64(16))
    assert cache.recent_of(40) == 20
    cache.batch_repeat_interleave(np.int64(2))
    assert len(cache.kept(1)) == 2
    for wrong in (True, 2.0, 0):
        with pytest.raises(kvp.KvpredictError, match="repeats must be a whole number"):
            cache.batch_repeat_interleave(wrong)
        with pytest.raises(kvp.KvpredictError, match="chunk must be a whole number"):
            kvp.DecodeCache(64, model=on).prefill(on, ids, chunk=wrong)


def test_keys_that_are_no_numbers_go_first_and_leave_the_others_their_scores() -> None:
    key = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    position = torch.arange(6, dtype=torch.int32).expand(1, 2, 6)
    ill = key.clone()
    ill[0, 0, 3, 0], ill[0, 1, 2, 5] = torch.nan, torch.inf

    def scores(keys: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return KeyDiff().score(Held(0, slice(0, 2), torch.empty(1, 2, 6, 0), keys, keys, at, torch.tensor([6])))

    got = scores(ill, position)[0]
    for head, token in ((0, 3), (1, 2)):
        without = position.clone()
        without[0, head, token] = -1
        others = torch.arange(6) != token
        assert got[head].isnan().tolist() == (~others).tolist()
        assert torch.equal(got[head, others], scores(key, without)[0, head, others])


def test_what_is_no_model_is_refused() -> None:
    class Wrapped(torch.nn.Module):
        config = models.model().config

    for given in (None, 5, type(models.model()), models.model().config, Wrapped()):
        with pytest.raises(kvp.KvpredictError, match="causal language model"):
            kvp.DecodeCache(64, "keydiff").attach(given)
