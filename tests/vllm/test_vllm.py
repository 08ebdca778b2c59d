"""In a real vLLM for CPU: the adapters raise the hit ratio, change no output, leak nothing and survive errors.

Run by ``make test-vllm`` in an environment of its own. The engine's scheduler, prefix cache, offloading connector and
offload manager are vLLM's; of the offload tier only the copying differs from what runs on a GPU (``host_tier.py``).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="run by make test-vllm")

ROOT = Path(__file__).parents[2]
BLOCKS, ROUNDS = 70, 60
SMALL, CHUNKS = 36, 100  # blocks of the engine's cache with an offload tier, and of that
CACHES = 4  # of which figures are noted
LEAST = 33  # what the engine starts with, and so little that requests are preempted
measured: list[dict[str, Any]] = []


@cache
def served(
    policy: str | None, blocks: int = BLOCKS, seed: int = 0, log: str | None = None, plugin: bool = True, **options: Any
) -> dict[str, Any]:
    """Serve the workload in a process of its own; ``options`` are those of ``workload.main``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KVPREDICT_")}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONHASHSEED": "0"}  # fmt: skip
    environment |= {"KVPREDICT_PREFIX_POLICY": policy} if policy else {}
    environment |= {"KVPREDICT_REQUEST_LOG": log} if log else {}
    environment |= {} if plugin else {"VLLM_PLUGINS": ""}
    asked = json.dumps({"rounds": ROUNDS, "seed": seed, "blocks": blocks, **options})
    command = [sys.executable, "-m", "tests.vllm.workload", asked]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    logged = (done.stdout + done.stderr).count("plain LRU decides from now on")
    return {**json.loads(lines[0].removeprefix("RESULT ")), "logged": logged}


def note(cache: str, **runs: dict[str, Any]) -> None:
    """Keep and print the figures of runs by policy, for ``experiments/prefix_vllm``."""
    for policy, run in runs.items():
        figures = {name: run[name] for name in ("tier_hit_ratio", "hit_ratio", "preemptions")}
        measured.append(
            {"cache": cache, "policy": policy.replace("_", " "), **figures, "requests": len(run["outputs"])}
        )
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in measured[-1].items()})


@pytest.fixture(scope="module", autouse=True)
def results(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write the figures where ``make test-vllm`` wants them, if all tests were run and passed."""
    yield
    whole = len({row["cache"] for row in measured}) == CACHES
    if whole and not request.session.testsfailed and os.environ.get("KVPREDICT_VLLM_RESULTS") == "1":
        from experiments.prefix_vllm.record import write

        write(measured)


def offloading(policy: str, **options: Any) -> dict[str, Any]:
    """Serve with an offload tier under vLLM's ``lru`` or ``arc``, else under the adapter and the policy named."""
    if policy in ("lru", "arc"):
        options |= {"tier": policy}
    else:
        options |= {"policy": policy, "tier": "KvpredictPolicy"}
    return served(**{"policy": None, "blocks": SMALL, "seed": 1, "plugin": False, "chunks": CHUNKS, **options})


def without_caches() -> dict[str, Any]:
    return served(None, seed=1, caching=False)


def check_nothing_left(run: dict[str, Any], blocks: int, chunks: int) -> None:
    """Check that all blocks of both tiers are free or evictable, and that nobody waits for anything."""
    tier = run["tier"]
    assert run["free"] == blocks - 1  # one is vLLM's null block
    assert tier["chunks"] == tier["evictable"] == tier["held"] == chunks
    assert tier["being_written"] == tier["jobs"] == tier["requests"] == tier["fenced"] == 0
    if "failures" in tier:  # the adapter
        assert tier["blocks"] == tier["slots"] == chunks
        assert tier["in_use"] == 0
    if tier.get("failures") == 0:
        assert tier["indexed"] == chunks
        assert tier["pinned"] == tier["open"] == 0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the engine records what it serves, under LRU."""
    return str(tmp_path_factory.mktemp("log") / "requests.jsonl")


@pytest.fixture(scope="module")
def recorded(log: str) -> dict[str, Any]:
    return served("lru", log=log)


@pytest.fixture(scope="module")
def trained(log: str, recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a policy trained on what the engine recorded."""
    from kvpredict.llm.prefix import fit_prefix
    from kvpredict.llm.request_files import read_requests

    return str(fit_prefix(read_requests(log), BLOCKS, first=100).save(tmp_path_factory.mktemp("trained") / "policy"))


def test_lru_through_the_plugin_is_stock_lru(recorded: dict[str, Any]) -> None:
    stock = served(None)
    assert (stock["queue"], recorded["queue"]) == ("FreeKVCacheBlockQueue", "LearnedQueue")
    assert recorded["outputs"] == stock["outputs"]
    assert recorded["hit_ratio"] == pytest.approx(stock["hit_ratio"], abs=0.02)


def test_a_better_policy_hits_more_with_the_same_outputs() -> None:
    stock, lfu = served(None), served("lfu")
    note("its own, 70 blocks, seed 0", vLLM_LRU=stock, lfu=lfu)
    assert lfu["hit_ratio"] > stock["hit_ratio"] + 0.05
    assert lfu["outputs"] == stock["outputs"]


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_nothing_leaks_under_preemption(policy: str) -> None:
    tight = served(policy, blocks=LEAST)
    assert tight["preemptions"] > 0
    assert tight["free"] == LEAST - 1
    assert tight["failures"] == 0
    assert tight["pinned"] == 0
    assert tight["outputs"] == served(None)["outputs"]


def test_a_policy_that_cannot_be_loaded_falls_back_to_lru(tmp_path: Path) -> None:
    (tmp_path / "prefix_policy.json").write_text("{}")  # a folder that is no policy
    broken, stock = served(str(tmp_path)), served(None)
    assert broken["failures"] == broken["logged"] == 1
    assert broken["outputs"] == stock["outputs"]
    assert broken["hit_ratio"] == stock["hit_ratio"]


def test_record_train_deploy_measure(log: str, recorded: dict[str, Any], trained: str) -> None:
    from kvpredict.llm.prefix import simulate_prefix
    from kvpredict.llm.request_files import read_requests

    trace = read_requests(log)
    assert len(trace) == 5 * ROUNDS
    assert trace.block_size == 32
    assert simulate_prefix(trace, "lru", BLOCKS - 1).hits > 0
    deployed, stock = served(trained, seed=1), served(None, seed=1)
    note("its own, 70 blocks, seed 1", vLLM_LRU=stock, learned=deployed)
    assert deployed["failures"] == 0
    assert deployed["outputs"] == stock["outputs"] == without_caches()["outputs"]
    assert deployed["hit_ratio"] > stock["hit_ratio"]


def test_offload_tier_hits_more_with_the_same_outputs(trained: str) -> None:
    runs = {"LRU": offloading("lru"), "ARC": offloading("arc"), "learned": offloading(trained)}
    names = {"LRU": "LRUCachePolicy", "ARC": "ARCCachePolicy", "learned": "KvpredictPolicy"}
    found = {name: run["tier_hit_ratio"] for name, run in runs.items()}
    note("36 blocks of its own, LRU, and an offload tier of 100", **{"vLLM_LRU": runs["LRU"], "vLLM_ARC": runs["ARC"]},
         learned=runs["learned"])  # fmt: skip
    for name, run in runs.items():
        assert run["tier"]["policy"] == names[name]
        assert run["queue"] == "FreeKVCacheBlockQueue"
        assert run["outputs"] == without_caches()["outputs"]
        check_nothing_left(run, SMALL, CHUNKS)
    assert runs["learned"]["tier"]["failures"] == 0
    assert found["learned"] > max(found["LRU"], found["ARC"]) + 0.03


def test_outputs_would_show_blocks_that_were_not_copied(trained: str) -> None:
    assert offloading(trained, forgetful=True)["outputs"] != without_caches()["outputs"]


def test_offload_tier_leaks_nothing_under_preemption(trained: str) -> None:
    tight = offloading(trained, blocks=LEAST, chunks=40)
    assert tight["preemptions"] > 0
    assert tight["tier_hit_ratio"] > 0
    assert tight["tier"]["failures"] == 0
    check_nothing_left(tight, LEAST, 40)
    assert tight["outputs"] == without_caches()["outputs"]


def test_both_adapters_fall_back_to_lru_when_the_policy_raises_in_service(trained: str) -> None:
    broken, stock = offloading(trained, plugin=True, fail_after=20), offloading("lru")
    assert broken["failures"] == broken["tier"]["failures"] == 1
    assert broken["logged"] == 2  # each once
    assert broken["outputs"] == without_caches()["outputs"]
    assert broken["tier_hit_ratio"] == pytest.approx(stock["tier_hit_ratio"], abs=0.03)
    assert broken["hit_ratio"] == pytest.approx(stock["hit_ratio"], abs=0.03)
    check_nothing_left(broken, SMALL, CHUNKS)


def test_both_adapters_in_one_engine(trained: str) -> None:
    both, stock = offloading(trained, plugin=True), offloading("lru")
    note("36 blocks of its own and an offload tier of 100", vLLM_LRU_in_both=stock, learned_in_both=both)
    assert (both["queue"], both["tier"]["policy"]) == ("LearnedQueue", "KvpredictPolicy")
    assert both["failures"] == both["tier"]["failures"] == both["pinned"] == 0
    check_nothing_left(both, SMALL, CHUNKS)
    assert both["outputs"] == without_caches()["outputs"]
    assert both["hit_ratio"] > stock["hit_ratio"] + 0.05
