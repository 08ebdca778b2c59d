"""The whole loop in one process: serve, record a sample, learn from it, put what was learned in place, measure.

    python examples/learning_loop.py [--capacity 500] [--requests 60000]

Served is a generated shop workload. The recorder keeps one key in two, at the cost of a call an access; the policy is
trained on that recording for a cache of half the size (half the keys), checked against the present policy on the part
of the recording that it was not trained on, and swapped in if it is better. No entry is lost by the swap.
"""

import argparse
import tempfile
from pathlib import Path

import kvpredict as kvp
from kvpredict.trace.workloads import workload

SAMPLE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity", type=int, default=500)
    parser.add_argument("--requests", type=int, default=60_000)
    options = parser.parse_args()
    requests = workload("online_shop", requests=options.requests).generate(seed=0).keys.tolist()
    first, second = requests[: len(requests) // 2], requests[len(requests) // 2 :]

    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "accesses.csv.gz"
        with kvp.Recorder(recording, sample=SAMPLE) as recorder:
            cache: kvp.Cache[int, int] = kvp.Cache(options.capacity, "lru", recorder=recorder)
            print(f"served with lru      hit ratio {serve(cache, first):.3f}")

        trace = kvp.read_trace(recording)
        capacity = max(1, round(options.capacity * SAMPLE))
        learned = kvp.fit(trace.head(0.6), capacity, learner="lightgbm")
        learned.save(Path(folder) / "policy")

        candidates = {"lru": "lru", "s3fifo": "s3fifo", "learned": kvp.load_policy(Path(folder) / "policy")}
        missed = {
            name: kvp.simulate(trace, policy, capacity, warmup=0.6).object_miss_ratio
            for name, policy in candidates.items()
        }
        best = min(missed, key=missed.__getitem__)
        print("on the rest of the recording, misses " + ", ".join(f"{n} {m:.3f}" for n, m in missed.items()))

        before = len(cache)
        cache.swap_policy(candidates[best])
        assert len(cache) == before
        print(f"swapped to {best}")
        print(f"served with {best:8} hit ratio {serve(cache, second):.3f}")
    stay: kvp.Cache[int, int] = kvp.Cache(options.capacity, "lru")
    serve(stay, first)
    print(f"with lru it had been hit ratio {serve(stay, second):.3f}")


def serve(cache: "kvp.Cache[int, int]", requests: list[int]) -> float:
    """Answer ``requests`` and return the share found in the cache."""
    before = cache.stats()
    for key in requests:
        cache.get_or_load(key, lambda key: key)
    after = cache.stats()
    return (after.hits - before.hits) / len(requests)


if __name__ == "__main__":
    main()
