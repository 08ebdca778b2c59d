"""What every decode policy must let the cache keep to. A new policy is found by itself."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import DynamicCache

import kvpredict as kvp
import kvpredict.conf
from kvpredict.llm.decode.policies import decode_policy_class
from kvpredict.llm.decode.policy import WEIGHTS
from tests.llm.decode import models

EVICTING = [name for name in models.NAMES if decode_policy_class(name).evicts]
ALONE = [name for name in models.NAMES if name != "oracle"]  # its record is of sequences of one length
PATH = Path(kvpredict.conf.__file__).parent / "decode_policy"


def made(name: str, budget: int, ids: torch.Tensor, layout: str = "llama", **given: Any) -> kvp.DecodeCache:
    on = models.model(layout)
    given = {"sinks": 2, "recent": 4, "interval": 3} | given
    return kvp.DecodeCache(budget, models.policy(name, on, ids), model=on, **given)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize("name", models.NAMES)
def test_without_eviction_logits_are_those_of_a_dynamic_cache(name: str, layout: str) -> None:
    on, ids = models.model(layout), models.tokens(2, 40)
    blocks = [17, 6, 1, 1, 1, 9, 1, 4]
    expected = models.read(on, DynamicCache(config=on.config), ids, blocks)
    got = models.read(on, made(name, 48, ids, layout), ids, blocks)
    if WEIGHTS in decode_policy_class(name).needs:  # attention is computed otherwise, in float32 as well
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("when", ["steps", "prefill"])
@pytest.mark.parametrize("split", ["equal", "pyramid"])
@pytest.mark.parametrize("name", EVICTING)
def test_budget_is_kept_and_so_are_sinks_and_recent_tokens(name: str, split: str, when: str) -> None:
    on, ids = models.model(), models.tokens(2, 70)
    cache = made(name, 22, ids, split=split, when=when)
    assert cache.slots.sum() == cache.slots.size * 22
    start = 0
    for length in [40] + [1] * 8 + [11] + [1] * 11:
        with torch.no_grad():
            on(ids[:, start : start + length], past_key_values=cache, use_cache=True)
        start += length
        after = 0 if when == "steps" else start - 40
        if when == "steps":
            assert cache.nbytes == 22 * 2 * cache.slots.size * 8 * 2 * 4  # keys and values of width 8, two sequences
        for sequence in range(2):
            for layer, heads in enumerate(cache.kept(sequence)):
                for head, kept in enumerate(heads):
                    assert len(kept) == cache.slots[layer, head] + after
                    assert len(np.unique(kept)) == len(kept)
                    assert {0, 1} <= set(kept.tolist())
                    assert set(range(start - 4 - after, start)) <= set(kept.tolist())
    assert cache.get_seq_length() == 70


@pytest.mark.parametrize("layout", ["llama", "gpt2", "mixed"])
@pytest.mark.parametrize("name", ALONE)
def test_a_padded_batch_is_each_sequence_alone(name: str, layout: str) -> None:
    on = models.model(layout)
    ids, mask = models.tokens(3, 50), torch.ones(3, 50, dtype=torch.long)
    mask[1, :13], mask[2, :31] = 0, 0
    blocks = [34] + [1] * 16
    together = made(name, 24, ids, layout, interval=1)
    logits = models.read(on, together, ids, blocks, mask)
    for row, pads in enumerate((0, 13, 31)):
        alone = made(name, 24, ids[row : row + 1, pads:], layout, interval=1)
        expected = models.read(on, alone, ids[row : row + 1, pads:], [34 - pads] + [1] * 16)
        torch.testing.assert_close(logits[row, 33:], expected[0, 33 - pads :], atol=5e-5, rtol=1e-3)
        for mine, theirs in zip(together.kept(row), alone.kept(), strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.tolist() == b.tolist()


@pytest.mark.parametrize("name", EVICTING)
def test_full_slots_stay_where_they_are(name: str) -> None:
    on, ids = models.model(), models.tokens(1, 70)
    cache = made(name, 24, ids, split="pyramid")
    models.read(on, cache, ids[:, :40], [40])
    groups = [g for layer in cache.layers for g in layer.groups]
    before = [(g.keys.data_ptr(), g.keys.shape, g.memo.data_ptr()) for g in groups]
    models.read(on, cache, ids[:, 40:], [1] * 30)
    assert before == [(g.keys.data_ptr(), g.keys.shape, g.memo.data_ptr()) for g in groups]


@pytest.mark.parametrize("name", models.NAMES)
def test_generate_is_the_plain_loop(name: str) -> None:
    on, ids = models.model(), models.tokens(1, 40)
    out = on.generate(ids, past_key_values=made(name, 24, ids), max_new_tokens=12, do_sample=False)
    cache, step, plain = made(name, 24, ids), ids, ids
    for _ in range(12):
        with torch.no_grad():
            step = on(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        plain = torch.cat([plain, step], 1)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("name", models.NAMES)
def test_a_policy_is_frozen_and_its_yaml_states_its_parameters(name: str) -> None:
    made = models.policy(name, models.model(), models.tokens(1, 8))
    with pytest.raises(FrozenInstanceError):
        made.anything = 1
    if (PATH / f"{name}.yaml").exists() or name != "learned":
        stated = yaml.safe_load((PATH / f"{name}.yaml").read_text())
        parameters = [f.name for f in fields(type(made)) if f.metadata.get("config", True)]  # type: ignore[arg-type]
        assert stated.pop("name") == name
        assert list(stated) == parameters
