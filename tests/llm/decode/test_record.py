"""Recording: labels against a slow twin, interruption, and the same features in training and serving."""

import resource
import signal
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


def test_a_folder_with_other_sequences_is_refused(tmp_path: Path) -> None:
    model, texts = models.model("llama"), sequences(3)
    record(model, texts[:1], tmp_path / "r", **SETTINGS)
    for others in (texts[1:2], [texts[0][:-16]]):
        with pytest.raises(TraceError, match="other sequences"):
            record(model, others, tmp_path / "r", **SETTINGS)
    longer = record(model, texts[:2], tmp_path / "r", **SETTINGS)
    assert [part["token"].tolist() for part in longer] == texts[:2]


def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    model, texts = models.model("llama"), sequences(2)
    folder = tmp_path / "r"
    record(model, texts, folder, **SETTINGS, rank=4)
    part = folder / "part-000001.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:200])
    with pytest.raises(TraceError, match="part-000001"):
        record(model, texts, folder, **SETTINGS, rank=4)
    with pytest.raises(TraceError, match="part-000001"):
        list(read_recording(folder))
    part.unlink()
    (folder / "projection.safetensors").unlink()  # drawn from the seed, so the same again
    record(model, texts, folder, **SETTINGS, rank=4)
    assert part.read_bytes() == whole
    for damage in ("{", "[]"):
        (folder / "recording.json").write_text(damage)
        with pytest.raises(TraceError, match="damaged"):
            record(model, texts, folder, **SETTINGS, rank=4)


def test_a_full_disk_leaves_what_was_recorded(tmp_path: Path) -> None:
    model, texts = models.model("llama"), sequences(2)
    folder = tmp_path / "r"
    record(model, texts[:1], folder, **SETTINGS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(TraceError, match=r"part-000001\.safetensors cannot be written"):
            record(model, texts, folder, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in folder.iterdir()) == ["part-000000.safetensors", "recording.json"]
    assert len(record(model, texts, folder, **SETTINGS)) == 2
    with pytest.raises(TraceError, match="cannot be written"):
        record(model, texts, folder / "recording.json" / "below", **SETTINGS)
