"""The cache of real tensors: the same logits as without it, bounded memory, nothing left pinned."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvpredict.core.errors import KvpredictError

torch = pytest.importorskip("torch", reason="needs the LLM packages")
transformers = pytest.importorskip("transformers", reason="needs the LLM packages")

from kvpredict.llm.prefix.policies.learned import Learned  # noqa: E402
from kvpredict.llm.prefix_cache import PrefixCache  # noqa: E402
from kvpredict.llm.states import StateCache  # noqa: E402

pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def model() -> "transformers.PreTrainedModel":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Return prompts that share prefixes of many lengths."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 97, 60).tolist()
    return [base[: rng.integers(1, 60)] + rng.integers(0, 97, rng.integers(1, 12)).tolist() for _ in range(count)]


def plain(model: "transformers.PreTrainedModel", prompt: list[int], count: int) -> tuple[list[int], "torch.Tensor"]:
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
            return_dict_in_generate=True, output_logits=True, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@pytest.mark.parametrize(("capacity", "host"), [(1000, 0), (6, 0), (6, 5)])
@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_logits_are_those_without_the_cache(
    model: "transformers.PreTrainedModel", capacity: int, host: int, policy: str
) -> None:
    cache = PrefixCache(model, capacity, host_capacity=host, block_size=4, policy=policy)
    saved = 0
    for turn in range(6):
        asked = prompts(3, seed=turn % 2 + 10)
        for prompt, answer in zip(asked, cache.generate(asked, 5, keep_logits=True), strict=True):
            tokens, logits = plain(model, prompt, 5)
            assert answer.tokens == tokens
            torch.testing.assert_close(answer.logits, logits, rtol=1e-5, atol=1e-5)
            saved += answer.cached_tokens
    assert saved == cache.cached_tokens
    assert saved > 0 or capacity == 6  # LRU may lose everything in so small a cache
    assert len(cache.index) <= capacity


def test_threads_take_turns(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 12, host_capacity=6, block_size=4, policy="lfu")
    asked = [prompts(6, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda mine: [cache.generate([prompt], 3)[0] for prompt in mine], asked))
    for mine, given in zip(asked, answers, strict=True):
        assert [answer.tokens for answer in given] == [plain(model, prompt, 3)[0] for prompt in mine]
    assert sum(answer.cached_tokens for given in answers for answer in given) == cache.cached_tokens > 0
    assert not cache.index.pool.running.any()


def test_the_same_prompt_again_computes_one_block_and_keeps_the_bits(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 100, block_size=4)
    prompt = prompts(1)[0][:17]
    cold, warm = (cache.generate([prompt], 1, keep_logits=True)[0] for _ in range(2))
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 16)
    with torch.inference_mode():  # what the pool holds is what a prefill of that shape computes, to the bit
        own = model(torch.tensor([prompt]), use_cache=True).past_key_values
        ticket, found, _ = cache.index.begin(_hashes(prompt), 17)
        start = cache.index.requests.start[ticket]
        held = cache.store.read(cache.index.requests.node[start : start + found].tolist())
        for part, whole in zip(held, (t for layer in own.layers for t in (layer.keys, layer.values)), strict=True):
            assert torch.equal(part.transpose(0, 1).reshape(2, 16, 8), whole[0, :, :16])
        cache.index.cancel(ticket)


def _hashes(prompt: list[int]) -> list[int]:
    from kvpredict.llm.blocks import block_hashes

    return block_hashes(prompt, 4).tolist()


def test_memory_is_bounded_and_comes_back(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 8, host_capacity=4, block_size=4)
    before = cache.bytes
    for turn in range(10):
        cache.generate(prompts(4, seed=turn), 3)
        pool = cache.store.pool
        assert len(pool.free[0]) + len(cache.store.slot[0]) == 8
        assert len(pool.free[1]) + len(cache.store.slot[1]) == 4
        held = np.flatnonzero(cache.index.pool.resident[:, 0])
        assert sorted(cache.store.slot[0]) == held.tolist()
        assert sorted(cache.store.slot[1]) == np.flatnonzero(cache.index.pool.resident[:, 1]).tolist()
    assert cache.bytes == before == 12 * 3 * 2 * 2 * 4 * 8 * 4
    assert (cache.index.pool.running == 0).all()


@contextmanager
def failing(model: "transformers.PreTrainedModel", call: int) -> Iterator[None]:
    """Let the model's forward pass number ``call`` fail, from 1."""
    count = 0

    def fail(*_: object) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise RuntimeError("out of memory, for the test")

    hook = model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("host", [0, 5])
def test_what_is_stored_on_arrival_is_used_once_it_is_there(model: "transformers.PreTrainedModel", host: int) -> None:
    cache = PrefixCache(model, 16, host_capacity=host, block_size=4, policy=Learned(every=0.0))
    saved = 0
    for turn in range(6):
        asked = prompts(3, seed=turn // 2)
        for prompt, answer in zip(asked, cache.generate(asked, 3, keep_logits=True), strict=True):
            tokens, logits = plain(model, prompt, 3)
            assert answer.tokens == tokens
            torch.testing.assert_close(answer.logits, logits, rtol=1e-5, atol=1e-5)
            saved += answer.cached_tokens
        with failing(model, 1), pytest.raises(RuntimeError, match="for the test"):
            cache.generate([[1, 2, 3, 4, turn], [7]], 2)  # makes room, and fails before anything is there
        assert sorted(cache.store.slot[0]) == np.flatnonzero(cache.index.pool.resident[:, 0]).tolist()
        assert len(cache.store.pool.free[0]) + len(cache.store.slot[0]) == 16
    assert saved > 0
    assert (cache.index.pool.running == 0).all()


@pytest.mark.parametrize("policy", ["lru", "learned"])
def test_what_the_index_counts_as_found_is_there_for_the_prompts_of_one_call_too(
    model: "transformers.PreTrainedModel", policy: str
) -> None:
    cache = PrefixCache(model, 12, block_size=4, policy=policy, background=False)
    begin, counted = cache.index.begin, 0

    def counting(*args: Any, **named: Any) -> tuple[int, int, int]:
        nonlocal counted
        ticket, device, host = begin(*args, **named)
        counted += device + host
        return ticket, device, host

    cache.index.begin = counting  # type: ignore[method-assign]
    draw = np.random.default_rng(3)
    starts = [draw.integers(0, 90, 12).tolist() for _ in range(3)]
    for _ in range(30):
        cache.generate([[*starts[draw.integers(3)], *draw.integers(0, 90, 1 + 4 * k).tolist()] for k in range(4)], 2)
    assert cache.cached_tokens == 4 * counted > 0
    cache = PrefixCache(model, 12, block_size=4, policy=policy)  # whose guard has not seen what is better yet
    first, second = cache.generate([[7] * 17] * 2, 2)
    assert first.tokens == second.tokens == plain(model, [7] * 17, 2)[0]
    if policy == "learned":  # LRU stores at a request's end
        assert second.cached_tokens == 16


@pytest.mark.parametrize("policy", ["lfu", "gdsf", "learned"])
def test_what_the_device_refuses_goes_to_the_host_tier(model: "transformers.PreTrainedModel", policy: str) -> None:
    cache = PrefixCache(model, 3, host_capacity=6, block_size=4, policy=policy)
    often, seldom = list(range(13)), [7] * 13
    for _ in range(6):
        cache.generate([often], 1)
    for _ in range(2):
        answer = cache.generate([seldom], 2, keep_logits=True)[0]
        cache.generate([often], 1)
    assert answer.cached_tokens == 12
    tokens, logits = plain(model, seldom, 2)
    assert answer.tokens == tokens
    torch.testing.assert_close(answer.logits, logits, rtol=1e-5, atol=1e-5)


def test_an_error_on_the_way_leaves_nothing_pinned(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 50, block_size=4)
    cache.generate(prompts(2), 2)
    with failing(model, 2), pytest.raises(RuntimeError, match="for the test"):
        cache.generate([prompts(1)[0], [*prompts(1)[0], 7]], 2)
    assert (cache.index.pool.running == 0).all()
    tokens, _ = plain(model, prompts(1)[0], 2)
    assert cache.generate([prompts(1)[0]], 2)[0].tokens == tokens


def test_generation_stops_at_the_end_token(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 50, block_size=4)
    prompt = prompts(1)[0]
    tokens, _ = plain(model, prompt, 8)
    stop = tokens[3]
    assert cache.generate([prompt], 8, eos=stop)[0].tokens == tokens[: tokens.index(stop) + 1]


def test_mistakes_are_named(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 50, block_size=4)
    with pytest.raises(KvpredictError, match="prompt 0 is empty"):
        cache.generate([[]])
    with pytest.raises(KvpredictError, match="params must have an entry for each of 2 prompts"):
        cache.generate([[1], [2]], params=[{}])
    with pytest.raises(KvpredictError, match="between 0 and 1"):
        cache.generate([[1]], params=[{"continues": 2.0}])
    with pytest.raises(KvpredictError, match="block_size"):
        PrefixCache(model, 50, block_size=0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("host", [0, 3])
def test_recurrent_states_by_prefix(kind: str, host: int) -> None:
    torch.manual_seed(1)
    rnn = getattr(torch.nn, kind)(12, 10, num_layers=2, batch_first=True)
    table = torch.nn.Embedding(97, 12)
    cache = StateCache(rnn, table, 4, host_capacity=host, block_size=4)
    for turn in range(4):
        for prompt in prompts(5, seed=turn % 2):
            out, state = cache.run(prompt)
            with torch.inference_mode():
                expected, after = rnn(table(torch.tensor([prompt])))
            torch.testing.assert_close(out, expected[:, -out.shape[1] :])
            torch.testing.assert_close(state, after)
    assert cache.cached_tokens > 0
    assert len(cache.store.slot[0]) == 4
    assert (cache.index.pool.running == 0).all()


def tiny(kind: str, **settings: object) -> "transformers.PreTrainedModel":
    """Return a random model of a kind, two layers of four heads."""
    size = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **size, **settings))


LONG = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("mistral", {"sliding_window": 32}, "sliding windows"),
        ("llama", {"rope_parameters": LONG, "max_position_embeddings": 64}, "longrope"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)
def test_models_whose_prefixes_are_no_use_later_are_refused(
    kind: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(KvpredictError, match=message):
        PrefixCache(tiny(kind, **settings).eval(), 10)


def test_what_is_no_model_to_generate_with_is_refused(model: "transformers.PreTrainedModel") -> None:
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1,
                                  num_attention_heads=4, intermediate_size=32))  # fmt: skip
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32,
                                                 num_layers=1, num_heads=4))  # fmt: skip
    for other, message in (
        (bert, "does not generate"),
        (t5, "encoder"),
        (None, "NoneType"),
        (torch.nn.Linear(1, 1), "Linear"),
    ):
        with pytest.raises(KvpredictError, match=message):
            PrefixCache(other, 10)
    with pytest.raises(KvpredictError, match=r"model\.eval"):
        PrefixCache(tiny("llama").train(), 10)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([97], "0 to 96"), ([-1], "0 to 96"), ([1.5], "whole token ids"), (5, "whole token ids"), (["a"], "whole token")],
)
def test_prompts_that_cannot_be_read_are_refused(
    model: "transformers.PreTrainedModel", prompt: object, message: str
) -> None:
    cache = PrefixCache(model, 10)
    with pytest.raises(KvpredictError, match=message):
        cache.generate([[1, 2], prompt], 2)
    assert (cache.index.pool.running == 0).all()


@pytest.mark.parametrize(("kind", "name"), [("gpt2", "n_positions"), ("mpt", "max_seq_len")])
def test_learned_positions_end(kind: str, name: str) -> None:
    cache = PrefixCache(tiny(kind, **{name: 32}).eval(), 10, block_size=4)
    assert len(cache.generate([[1] * 30], 3)[0].tokens) == 3
    with pytest.raises(KvpredictError, match="positions end at 32"):
        cache.generate([[1] * 30], 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": None}, "prompts must be a list of prompts, got NoneType"),
        ({"prompts": 5}, "prompts must be a list of prompts, got int"),
        ({"prompts": [[1]], "max_new_tokens": None}, "max_new_tokens must be a whole number, got None"),
        ({"prompts": [[1]], "max_new_tokens": 2.0}, "max_new_tokens must be a whole number, got 2.0"),
        ({"prompts": [[1]], "max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"prompts": [[1]], "eos": "a"}, "eos must be a whole number, got 'a'"),
        ({"prompts": [[1]], "sessions": 5}, "sessions must have an entry for each of 1 prompts, got 5"),
        ({"prompts": [[1]], "sessions": "a"}, "sessions must have an entry for each of 1 prompts, got 'a'"),
        ({"prompts": [[1]], "params": ["a"]}, "a request's free parameters must be a mapping, got str"),
        ({"prompts": torch.tensor([[1.5]])}, "prompt 0 must be a sequence of whole token ids"),
    ],
)
def test_odd_arguments_of_generate_are_refused(
    model: "transformers.PreTrainedModel", arguments: dict, message: str
) -> None:
    cache = PrefixCache(model, 10)
    with pytest.raises(KvpredictError, match=message):
        cache.generate(**arguments)
    assert (cache.index.pool.running == 0).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, "tokens must be a sequence of whole token ids"),
        ("abc", "tokens must be a sequence of whole token ids"),
        ([1, 1.5], "tokens must be a sequence of whole token ids"),
        ([[1, 2]], "tokens must be a sequence of whole token ids"),
        ([], "one token at least"),
        ([1, 9], "embed does not know one of the tokens"),
    ],
)
def test_odd_tokens_of_a_state_cache_are_refused(tokens: object, message: str) -> None:
    cache = StateCache(torch.nn.GRU(4, 4, batch_first=True), torch.nn.Embedding(9, 4), 5, block_size=2)
    with pytest.raises(KvpredictError, match=message):
        cache.run(tokens)
    assert (cache.index.pool.running == 0).all()


@pytest.mark.parametrize("embed", [torch.nn.Embedding(9, 3), lambda ids: "a"])
def test_an_embedding_that_does_not_fit_is_refused(embed: object) -> None:
    cache = StateCache(torch.nn.GRU(4, 4, batch_first=True), embed, 5, block_size=2)
    with pytest.raises(KvpredictError, match=r"embed must return inputs of shape \(1, 2, 4\)"):
        cache.run([1, 2])


@pytest.mark.parametrize("name", ["capacity", "host_capacity", "block_size", "requests"])
def test_sizes_are_whole_numbers(model: "transformers.PreTrainedModel", name: str) -> None:
    for wrong in (1.5, -1, "3", None):
        with pytest.raises(KvpredictError, match=f"{name} must be (a whole number|at least)"):
            PrefixCache(model, **{"capacity": 10, name: wrong})
    with pytest.raises(KvpredictError, match="capacity must be at least 1"):
        StateCache(torch.nn.GRU(4, 4, batch_first=True), torch.nn.Embedding(9, 4), 0)


def test_sessions_are_numbers_or_texts_and_policies_names_or_folders(
    model: "transformers.PreTrainedModel", tmp_path: Path
) -> None:
    cache = PrefixCache(model, 10, policy=Learned().save(tmp_path / "policy"))
    assert cache.index.policy == Learned()
    cache.generate([[1, 2], [1, 3]], 1, sessions=["a81", None])
    cache.generate([[1, 2], [1, 3]], 1, params=[{"kvpredict": {"session": "a81"}}, None])
    assert cache.index.requests.session[0] == cache.index.requests.session[2] > 0
    with pytest.raises(KvpredictError, match="prefix policy"):
        PrefixCache(model, 10, policy="lrru")
    with pytest.raises(KvpredictError, match=r"torch\.nn"):
        StateCache(torch.nn.Linear(1, 1), torch.nn.Embedding(9, 4), 5)


def test_a_recurrent_model_that_drops_at_random_is_refused() -> None:
    rnn = torch.nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
    cache = StateCache(rnn, torch.nn.Embedding(9, 4), 5, block_size=2)
    with pytest.raises(KvpredictError, match=r"call rnn\.eval\(\)"):
        cache.run([1, 2, 3])
    rnn.eval()
    assert cache.run([1, 2, 3])[0].shape == (1, 3, 4)


def test_more_prompts_than_requests_in_progress_are_served_in_turns(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 30, block_size=4, requests=3)
    asked = prompts(8)
    answers = cache.generate(asked, 3, sessions=list(range(8)))
    assert [answer.tokens for answer in answers] == [plain(model, prompt, 3)[0] for prompt in asked]
    assert (cache.index.pool.running == 0).all()


def test_prompts_of_more_blocks_than_the_index_has_room_for_are_answered(
    model: "transformers.PreTrainedModel",
) -> None:
    cache = PrefixCache(model, 1, block_size=1)
    room = len(cache.index.hash)
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, 97, 400).tolist() for _ in range(3)]
    assert sum(map(len, asked)) > room
    assert [answer.tokens for answer in cache.generate(asked, 3)] == [plain(model, prompt, 3)[0] for prompt in asked]
    assert (cache.index.pool.running == 0).all()
    assert cache.generate(asked[-1:], 1)[0].cached_tokens == 1


def test_states_of_more_blocks_than_the_index_has_room_for_are_answered() -> None:
    rnn = torch.nn.GRU(4, 4, batch_first=True)
    cache = StateCache(rnn, torch.nn.Embedding(97, 4), 1, block_size=1)
    tokens = np.random.default_rng(0).integers(0, 97, len(cache.index.hash) + 10).tolist()
    out, _ = cache.run(tokens)
    assert out.shape[1] == len(tokens)
    assert cache.run(tokens)[0].shape[1] == len(tokens) - 1


def test_hints_are_read_before_any_work_begins(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 30, block_size=4)
    with failing(model, 1), pytest.raises(KvpredictError, match="between 0 and 1"):
        cache.generate([[1, 2], [3, 4]], 2, params=[None, {"continues": 2.0}])
