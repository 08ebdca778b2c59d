"""The hottest keys of a recording are there before the first request."""

from pathlib import Path

import pytest

from kvpredict import Recorder, Trace
from kvpredict.cache import Cache, warm_up
from kvpredict.core.errors import KvpredictError


def test_a_recording_warms_the_next_process(tmp_path: Path) -> None:
    names = [f"page {n}" for n in range(50)]
    with Recorder(tmp_path / "trace.csv.gz") as recorder:
        cache: Cache[str, str] = Cache(5, "lru", recorder=recorder)
        for n, name in enumerate(names):
            for _ in range(n + 1):
                cache.get_or_load(name, str.upper)
    fresh: Cache[str, str] = Cache(10, "lru", loader=str.upper)
    assert warm_up(fresh, tmp_path / "trace.csv.gz", keys=names) == (10, 0, 0)
    assert sorted(fresh.items()) == sorted((name, name.upper()) for name in names[40:])
    fresh["new"] = "x"
    assert "page 49" in fresh  # the hottest was loaded last
    assert "page 40" not in fresh


def test_failures_and_unknown_keys_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace.from_keys([1, 2, 2, 3, 3, 3])
    cache: Cache[int, int] = Cache(10, "lru")

    def load(key: int) -> int:
        if key == 2:
            raise OSError("down")
        return key

    assert warm_up(cache, trace, load, workers=1) == (2, 1, 0)
    assert "key 2 was not loaded" in caplog.text
    assert warm_up(cache, trace, load, keys=[3, 99], limit=2) == (1, 0, 1)
    with pytest.raises(KvpredictError, match="limit"):
        warm_up(cache, trace, load, limit=0)


def test_a_warm_up_without_a_loader_is_one_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KvpredictError, match="no loader"):
        warm_up(Cache[int, int](10), Trace.from_keys([1, 2, 3]))
    assert caplog.records == []
