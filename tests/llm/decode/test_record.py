"""Recording: labels against a slow twin, interruption, and the same features in training and serving."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvpredict.core.errors import KvpredictError, TraceError, UnknownName
from kvpredict.llm.decode.cache import DecodeCache
from kvpredict.llm.decode.features import norm_features
from kvpredict.llm.decode.fingerprint import output_factor
from kvpredict.llm.decode.policy import Arrival
from kvpredict.llm.decode.record import WINDOWS, read_recording, record
from tests.llm.decode import models
from tests.llm.decode.trained import learned

SETTINGS = {"horizon": 32, "every": 32}


def sequences(count: int = 2, length: int = 112) -> list[list[int]]:
    return models.tokens(count, length, seed=5).tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_labels_and_windows_equal_the_slow_twins(name: str, tmp_path: Path) -> None:
    model = models.model(name)
    (tokens,) = sequences(1)
    (part,) = record(model, [tokens], tmp_path / "r", **SETTINGS, early=8)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(model(torch.tensor([tokens]), output_attentions=True).attentions)[:, 0]  # [L, G H, T, T]
    model.set_attn_implementation("sdpa")
    heads = part["norms"].shape[1]
    grouped = weights.unflatten(1, (heads, -1))  # [L, H, G, T, T]
    assert part["moment"].tolist() == [32, 64]
    for m, at in enumerate(part["moment"].tolist()):
        most = grouped[:, :, :, at : at + 32, :at].amax((2, 3)).clamp_min(1e-6).log()
        expected = most + part["norms"][:, :, :at, 2] - part["norms"][:, :, :at, 3]
        assert torch.allclose(part["label"][m, :, :, :at], expected, atol=1e-4)
        assert part["label"][m, :, :, at:].isnan().all()
        for w, window in enumerate(WINDOWS):
            seen = grouped[:, :, :, max(0, at - window) : at]
            assert torch.allclose(part["most"][m, ..., w].float(), seen.amax((2, 3)), atol=1e-3)
            assert torch.allclose(part["total"][m, ..., w].float(), seen.mean(2).sum(2), rtol=1e-3, atol=1e-3)
    early = torch.zeros_like(part["early"])
    for k in range(len(tokens) - 1):
        early[..., k] = grouped[:, :, :, k + 1 : k + 9, k].amax((2, 3))
    assert torch.allclose(part["early"], early, atol=1e-5)


def test_output_norms_are_those_of_the_projection() -> None:
    for name in ("llama", "gpt2"):
        model = models.model(name)
        layer = model.model.layers[1].self_attn if name == "llama" else model.transformer.h[1].attn
        heads, width = (2, 8) if name == "llama" else (4, 8)
        value = torch.randn(1, heads, 5, width)
        factor = output_factor(model)[1]
        got = norm_features(torch.ones(1, 5, 32), torch.ones_like(value), value, factor)[..., 2].exp()
        for head in range(heads):
            group = 4 // heads
            squares = []
            for g in range(group):
                whole = torch.zeros(5, 4, width)
                whole[:, head * group + g] = value[0, head]
                flat = whole.flatten(1)
                out = flat @ layer.o_proj.weight.T if name == "llama" else flat @ layer.c_proj.weight
                squares.append((out**2).sum(-1))
            expected = torch.stack(squares).mean(0).sqrt()
            assert torch.allclose(got[0, head], expected, rtol=1e-3)


def test_features_in_serving_are_those_recorded_to_the_bit(tmp_path: Path) -> None:
    model = models.model("llama")
    (tokens,) = sequences(1)
    (part,) = record(model, [tokens], tmp_path / "r", **SETTINGS)
    seen: list[Arrival] = []
    policy = learned(model)

    class Listening(type(policy)):  # type: ignore[misc]
        def arrive(self, new: Arrival) -> torch.Tensor:
            seen.append(new)
            return super().arrive(new)

    listening = Listening(policy.probe, policy.model, longest=100)
    with torch.no_grad():
        model(torch.tensor([tokens]), past_key_values=DecodeCache(80, listening, model=model, when="prefill"))
    assert [new.layer for new in seen] == [0, 1]
    for new in seen:
        assert new.hidden is not None
        assert torch.equal(new.hidden[0], part["hidden"][new.layer])
        factor = output_factor(model)[new.layer]
        assert torch.equal(norm_features(new.hidden, new.key, new.value, factor)[0], part["norms"][new.layer])


def test_a_recording_cut_off_is_taken_up(tmp_path: Path) -> None:
    model, all_of_them = models.model("llama"), sequences(3)
    whole = record(model, all_of_them, tmp_path / "whole", **SETTINGS, rank=8)

    def interrupted(items, description, count):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if number == 1:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        record(model, all_of_them, tmp_path / "cut", **SETTINGS, rank=8, progress=interrupted)
    assert len(read_recording(tmp_path / "cut")) == 1
    (tmp_path / "cut" / "part-000001.part").write_bytes(b"half of a file")
    again = record(model, all_of_them, tmp_path / "cut", **SETTINGS, rank=8)
    assert len(again) == len(read_recording(tmp_path / "cut")) == 3
    for a, b in zip(whole, again, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert np.array_equal(a[name].numpy(), b[name].numpy(), equal_nan=name == "label")


def test_loss_labels_tell_what_the_loss_depends_on(tmp_path: Path) -> None:
    model = models.model("llama")
    recording = record(model, sequences(1), tmp_path / "r", **SETTINGS, label="loss")
    (part,) = recording
    label = part["label"][0, :, :, :32]
    assert label.isfinite().all()
    assert label.std() > 0.1


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = models.model("llama")
    with pytest.raises(UnknownName, match="attention"):
        record(model, sequences(1), tmp_path / "r", label="atention")
    with pytest.raises(KvpredictError, match="at least 512 tokens"):
        record(model, sequences(1), tmp_path / "r")
    with pytest.raises(KvpredictError, match="multiples of 16"):
        record(model, sequences(1), tmp_path / "r", horizon=20)
    with pytest.raises(TraceError, match="no recording"):
        read_recording(tmp_path)
    record(model, sequences(1), tmp_path / "r", **SETTINGS)
    with pytest.raises(TraceError, match="another label"):
        record(model, sequences(1), tmp_path / "r", **SETTINGS, label="loss")
