"""The layout of keys and values is what the model makes of a probe; what no cache can serve is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

from kvpredict.core.errors import KvpredictError

torch = pytest.importorskip("torch", reason="needs the LLM packages")
transformers = pytest.importorskip("transformers", reason="needs the LLM packages")

from kvpredict.llm.kv_pool import KVPool, Part  # noqa: E402
from kvpredict.llm.prefix_cache import PrefixCache  # noqa: E402

pytestmark = pytest.mark.llm

TEXT = [3, 9, 27, 31, 43, 29, 37, 11, 33, 49, 47, 41, 23, 19, 7]


def tiny(kind: str, **settings: Any) -> "transformers.PreTrainedModel":
    """Return a random model of a kind, two layers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.AutoConfig.for_model(kind, vocab_size=50, **settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SIZE, "intermediate_size": 48}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LATENT = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8,
          "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 8,
          "num_experts_per_tok": 2}  # fmt: skip
WHISPER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "encoder_layers": 1,
           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_encoder_decoder": False}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("falcon", {**SIZE, "multi_query": True, "new_decoder_architecture": False}),
        ("falcon", {**SIZE, "num_kv_heads": 2, "new_decoder_architecture": True}),
        ("gpt_bigcode", {**GPT, "multi_query": True}),
        ("deepseek_v2", LATENT),
        ("deepseek_v3", {**LATENT, "n_group": 2, "topk_group": 1}),
        ("whisper", WHISPER),
        ("bert", {**BERT, "is_decoder": True}),
        ("gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
                     "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_are_served_as_they_lay_out_their_cache(kind: str, settings: dict[str, Any], dtype: Any) -> None:
    model = tiny(kind, **settings).to(dtype)
    cache = PrefixCache(model, 8, host_capacity=4, block_size=4)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    for found in (0, 12):
        answer = cache.generate([TEXT], 3, keep_logits=True)[0]
        assert answer.cached_tokens == found
        with torch.inference_mode():
            wanted = model(torch.tensor([TEXT + answer.tokens[:-1]])).logits[0, len(TEXT) - 1 :]
        torch.testing.assert_close(answer.logits, wanted, **close)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("roberta", {**BERT, "is_decoder": True}, "read in pieces, 8 tokens have other logits"),
        ("xlm-roberta", {**BERT, "is_decoder": True}, "read in pieces, 8 tokens have other logits"),
        ("camembert", {**BERT, "is_decoder": True}, "read in pieces, 8 tokens have other logits"),
        ("bert", BERT, "read in pieces, 8 tokens have other logits"),
        ("electra", BERT, "read in pieces, 8 tokens have other logits"),
        ("openai-gpt", GPT, "does not read tokens with a cache of keys and values"),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}, "does not read tokens with"),
        ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, "does not read tokens with"),
        ("cpmant", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48,
                    "prompt_length": 4}, "does not read tokens with"),
        ("xlstm", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}, "does not read tokens with"),
    ],
)  # fmt: skip
def test_models_that_no_cache_serves_right_are_refused_by_name(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(KvpredictError, match=f"PrefixCache cannot serve the model type '{kind}': .*{message}"):
        PrefixCache(tiny(kind, **settings), 8)


def noisy(spoil: Callable[[Any, int], None]) -> "transformers.PreTrainedModel":
    """Return a model of whose logits ``spoil(logits, number of the call)`` has its way."""
    model = tiny("llama", **BERT)
    calls = [0]

    def hook(_: object, __: object, out: Any) -> None:
        calls[0] += 1
        spoil(out.logits, calls[0])

    model.register_forward_hook(hook)
    return model


def by_shape(size: float) -> Callable[[Any, int], None]:
    def spoil(logits: Any, _: int) -> None:
        draw = torch.Generator().manual_seed(logits.shape[0] * 100 + logits.shape[1])
        logits += size * logits.std() * torch.randn(logits.shape, generator=draw)

    return spoil


def by_call(bad: range) -> Callable[[Any, int], None]:
    def spoil(logits: Any, call: int) -> None:
        if call in bad:
            logits += logits.std() * torch.randn(logits.shape, generator=torch.Generator().manual_seed(call))

    return spoil


def test_what_rounding_does_is_no_reason_to_refuse_a_model() -> None:
    PrefixCache(noisy(by_shape(3e-3)), 8)  # kernels that round as TF32 does, each shape in its own way
    PrefixCache(noisy(by_call(range(1, 4))), 8)  # a choice of experts that rounding has tipped
    with pytest.raises(KvpredictError, match="other logits"):
        PrefixCache(noisy(by_call(range(1, 8))), 8)


def test_the_probe_is_four_forward_passes_of_eight_tokens_at_most() -> None:
    model = tiny("llama", **BERT)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, __, named: shapes.append(named["input_ids"].shape), with_kwargs=True)
    PrefixCache(model, 8, block_size=64)
    assert shapes == [(1, 4), (1, 3), (1, 1), (1, 8)]


def test_a_probe_for_which_memory_is_short_is_no_refusal() -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("for the test")

    with pytest.raises(torch.OutOfMemoryError, match="for the test"):
        PrefixCache(noisy(fail), 8)


def test_parts_of_several_kinds_go_through_both_tiers() -> None:
    cpu = torch.device("cpu")
    pool = KVPool(
        [Part((2, 3), torch.float32, cpu), Part((4,), torch.int64, cpu), Part((1,), torch.float32, cpu)], 2, 1
    )
    given = [torch.rand(2, 3), torch.arange(4), torch.rand(1)]
    slot = pool.take(0)
    pool.write(0, slot, given)
    rows = pool.fetch(pool.demote(slot))
    slots = [pool.take(0), pool.take(0)]
    pool.restore(slots[1], rows)
    for found, wanted in zip(pool.read(slots[1:]), given, strict=True):
        assert torch.equal(found[0], wanted)
    assert pool.bytes == 3 * (7 * 4 + 4 * 8)


def test_a_tensor_of_another_shape_is_not_repeated_to_fill_its_place() -> None:
    pool = KVPool([Part((4, 2), torch.float32, torch.device("cpu"))], 2, 0)
    with pytest.raises(KvpredictError, match=r"a tensor of shape \(1, 2\) is no \(4, 2\)"):
        pool.write(0, pool.take(0), [torch.ones(1, 2)])
