"""Saved policies: round trip, atomic writing, and refusal of what is damaged, newer or mismatched."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kvpredict import ArtifactError, load_policy
from kvpredict.artifact import FORMAT, load_artifact
from tests.contracts.factories.learned import make


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make(mode="both", batch=3, candidates=12).save(tmp_path / "policy")


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(content | changes))


def test_round_trip(saved: Path) -> None:
    loaded = load_policy(saved)
    assert loaded.params() == make(mode="both", batch=3, candidates=12).params()
    x = np.random.default_rng(0).exponential(1, (50, 23)).astype(np.float32)
    assert loaded.artifact.predict(x).tobytes() == make().artifact.predict(x).tobytes()


def test_nothing_is_pickled_and_nothing_else_is_left(saved: Path) -> None:
    assert sorted(os.listdir(saved)) == ["model.npz", "policy.json"]
    assert os.listdir(saved.parent) == ["policy"]
    with np.load(saved / "model.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_saving_again_replaces_and_a_foreign_folder_is_left_alone(saved: Path, tmp_path: Path) -> None:
    make(batch=7).save(saved)
    assert load_policy(saved).batch == 7
    assert os.listdir(tmp_path) == ["policy"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ArtifactError, match="photos"):
        make().save(other)
    assert (other / "cat.jpg").read_bytes() == b"cat"


def test_saving_through_a_link_replaces_what_it_points_to(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    before = (saved / "policy.json").stat().st_ino
    make().save(link)
    assert link.is_symlink()
    assert (saved / "policy.json").stat().st_ino != before
    assert {each.name for each in tmp_path.iterdir()} == {"link", saved.name}


def test_a_failed_write_keeps_the_old_policy(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    calls = []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        make(batch=9).save(saved)
    monkeypatch.undo()
    assert load_policy(saved).batch == 3
    assert os.listdir(saved.parent) == ["policy"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot write"):
        make().save(Path("/dev/full/policy"))


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_byte_is_refused_or_harmless(saved: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = saved / ("model.npz" if seed % 2 else "policy.json")
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    if seed % 2:
        with pytest.raises(ArtifactError, match="damaged"):
            load_policy(saved)
    else:
        with contextlib.suppress(ArtifactError):  # any other exception is a defect
            load_policy(saved)


def test_refusals_name_the_cause(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a saved policy"):
        load_policy(tmp_path / "nowhere")
    for change, message in (
        ({"format": FORMAT + 1}, "upgrade"),
        ({"kind": "crystal ball"}, "crystal ball"),
        ({"arrays_blake2b": "00"}, "damaged"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        edit(copy, **change)
        with pytest.raises(ArtifactError, match=message):
            load_policy(copy)
        shutil.rmtree(copy)
    (saved / "model.npz").write_bytes(b"")
    with pytest.raises(ArtifactError, match="damaged"):
        load_policy(saved)
    (saved / "policy.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="damaged"):
        load_policy(saved)
    with pytest.raises(ArtifactError, match="expected the folder of a saved policy, got NoneType"):
        load_policy(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("link", "nope"),
        ("format", -1),
        ("metadata", 5),
        ("schema.features", []),
        ("policy.base", "x"),
        ("policy.base", None),
        ("policy.threshold", "x"),
        ("policy.threshold", None),
        ("policy.candidates", 10**12),
        ("policy.batch", -1),
        ("policy.history", 10**12),
        ("policy.history", "4"),
    ],
)
def test_edited_settings_are_refused_naming_the_folder(saved: Path, part: str, value: object) -> None:
    content = json.loads((saved / "policy.json").read_text())
    group, _, name = part.rpartition(".")
    (content[group] if group else content)[name] = value
    (saved / "policy.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=str(saved)):
        load_policy(saved)


def test_another_schema_is_refused_naming_both(saved: Path) -> None:
    schema = json.loads((saved / "policy.json").read_text())["schema"]
    edit(saved, schema=schema | {"fingerprint": "feedfeedfeedfeed"})
    with pytest.raises(ArtifactError, match=f"feedfeedfeedfeed.*{schema['fingerprint']}"):
        load_artifact(saved)


def test_unknown_settings_are_refused(saved: Path) -> None:
    edit(saved, policy={"name": "learned", "sparkle": 1})
    with pytest.raises(ArtifactError, match="sparkle"):
        load_policy(saved)
    edit(saved, policy={"name": "oracle9000"})
    with pytest.raises(ArtifactError, match="oracle9000"):
        load_policy(saved)
