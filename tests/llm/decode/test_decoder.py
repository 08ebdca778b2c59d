"""Decoding step by step is what generate does; on CUDA by graphs, with the same tokens."""

import pytest
import torch

import kvpredict as kvp
from kvpredict.llm.decode.decoder import Decoder
from tests.llm.decode import models


@pytest.mark.parametrize("name", ["h2o", "keydiff"])
@pytest.mark.parametrize("split", ["equal", "pyramid"])
def test_steps_are_those_of_generate(name: str, split: str) -> None:
    on, ids = models.model(), models.tokens(2, 60)
    given = {"model": on, "split": split, "sinks": 2, "recent": 4, "interval": 3}
    caches = [kvp.DecodeCache(24, name, **given) for _ in range(2)]
    for cache in caches:
        cache.prefill(on, ids, chunk=20)
    expected = on.generate(ids, past_key_values=caches[0], max_new_tokens=15, do_sample=False)
    assert torch.equal(Decoder(on, caches[1]).generate(ids[:, -1:], 15), expected[:, 60:])


def test_it_goes_on_after_a_prompt() -> None:
    on = models.model()
    with pytest.raises(kvp.KvpredictError, match="prefill first"):
        Decoder(on, kvp.DecodeCache(64, model=on))


def test_arguments_of_another_kind_are_named() -> None:
    on, ids = models.model(), models.tokens(2, 20)
    cache = kvp.DecodeCache(64, model=on)
    cache.prefill(on, ids)
    decoder = Decoder(on, cache)
    for wrong in (None, ids[:, -1:].tolist(), ids[:, -1:].numpy(), ids[:1, -1:], ids):
        with pytest.raises(kvp.KvpredictError, match=r"ids must be a tensor \[sequences, 1\]; the cache holds 2"):
            decoder.step(wrong)
    for new in (0, "x", 1.5, True, None):
        with pytest.raises(kvp.KvpredictError, match="new must be a whole number of at least 1"):
            decoder.generate(ids[:, -1:], new)
    assert cache.clock.seen == 19


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["h2o", "keydiff"])
@pytest.mark.parametrize("split", ["equal", "pyramid"])
def test_graphs_decode_what_plain_steps_do(name: str, split: str) -> None:
    on, ids = models.MAKERS["llama"]().eval().cuda(), models.tokens(2, 60).cuda()
    given = {"model": on, "split": split, "sinks": 2, "recent": 4, "interval": 3}
    caches = [kvp.DecodeCache(24, name, **given) for _ in range(2)]
    for cache in caches:
        cache.prefill(on, ids, chunk=20)
    decoder, step = Decoder(on, caches[0]), ids[:, -1:]
    for _ in range(40):
        got = decoder.step(step)
        with torch.no_grad():
            logits = on(step, past_key_values=caches[1], use_cache=True).logits[:, -1]
        torch.testing.assert_close(got, logits, atol=1e-3, rtol=1e-3)
        step = logits.argmax(-1, keepdim=True)
    assert len(decoder._graphs) == 2
    assert [h.tolist() for layer in caches[0].kept(1) for h in layer] == [
        h.tolist() for layer in caches[1].kept(1) for h in layer
    ]
