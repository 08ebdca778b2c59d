"""Decisions a second that the environment takes: many caches in one compiled call, on one core.

    python benchmarks/env.py [--traces FILE …] [--lanes 1,16,64] [--candidates 16]

Checked first: an environment whose agent picks the least recently used of all residents hits as often as LRU in the
simulator. Timed is ``CacheVectorEnv.step`` with actions drawn beforehand, rows and distances written and copied; the
column "with net" adds the agent's net and the draw from its softmax, in PyTorch on one thread. CPU time, the best of
three rounds. Generated: Zipf keys; a trace file is played in miniature as the agent plays it.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from kvpredict import Trace, read_trace, simulate
from kvpredict.learn.env import CacheEnv, CacheVectorEnv
from kvpredict.learn.lanes import miniatures
from kvpredict.trace.workloads import workload

ROUNDS, SECONDS, SLOTS = 3, 1.0, 256


def check(trace: Trace) -> None:
    capacity = 50
    env = CacheEnv(trace, capacity, candidates=capacity)
    rows, info = env.reset(seed=0)
    hits, ended = info["hits"], False
    while not ended:
        rows, reward, ended, _, _ = env.step(int(rows[:, 0].argmax()))
        hits += int(reward)
    assert hits == simulate(trace, "lru", capacity).hits


def speed(env: CacheVectorEnv, net: torch.nn.Module | None) -> float:
    """Return decisions a second of CPU time."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, env.single_action_space.n, (256, env.num_envs))
    best = 0.0
    for _ in range(ROUNDS):
        rows, _ = env.reset(seed=0)
        steps, started = 0, time.process_time()
        while time.process_time() - started < SECONDS:
            action = drawn[steps % 256]
            if net is not None:
                with torch.no_grad():
                    logits = -net(torch.from_numpy(rows))[..., 0].numpy()
                action = (logits - np.log(rng.exponential(size=logits.shape))).argmax(1)
            rows, _, ended, _, _ = env.step(action)
            steps += 1
            if ended.any():
                rows, _ = env.reset(options={"reset_mask": ended})
        best = max(best, steps * env.num_envs / (time.process_time() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Decisions a second of the environment.")
    parser.add_argument("--traces", type=Path, nargs="*", default=[])
    parser.add_argument("--lanes", default="1,16,64")
    parser.add_argument("--candidates", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    check(workload("zipf", requests=5_000, objects=500).generate(seed=0))
    traces = [workload("zipf", requests=400_000, objects=50_000, alpha=0.8).generate(seed=0)]
    traces += [read_trace(path).head(400_000) for path in options.traces]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, seed 0, one core")
    print("| trace | capacity | caches | decisions/s | with net |\n|---|---|---|---|---|")
    for trace in traces:
        for lanes in map(int, options.lanes.split(",")):
            small, capacity = miniatures(trace, trace.capacity(0.05), lanes, SLOTS)
            env = CacheVectorEnv(small, capacity, options.candidates)
            width = env.single_observation_space.shape[1]
            net = torch.nn.Sequential(
                torch.nn.Linear(width, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.ReLU(),
                torch.nn.Linear(16, 1),
            )  # fmt: skip
            print(f"| {trace.name} | {capacity} | {lanes} | {speed(env, None):,.0f} | {speed(env, net):,.0f} |")


if __name__ == "__main__":
    main()
