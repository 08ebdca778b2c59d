"""Write golden.csv: the miss counts of libcachesim 0.3.5, at its defaults, on the traces of ``traces.py``.

Run it from the repository's root, with the folder of public traces (without it their rows are kept as they are)::

    python -m tests.golden.make_golden [FOLDER] [--policies LRU,ARC] [--traces zipf,oltp]

Rows have ``trace, capacity, unit, policy, misses``; unit ``objects`` counts every object as 1, ``bytes`` takes the
trace's sizes, both at 1 % and 10 % of the distinct keys or of their bytes. Each policy runs in a process of its own
and is given up after ``LIMIT`` (``HANGS``) seconds; what was given up is printed.
"""

import argparse
import csv
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

from kvpredict.trace import Trace
from tests.golden.traces import GENERATED, PUBLIC, checksum, load

__all__ = ["POLICIES", "main"]

HERE = Path(__file__).parent
LIMIT = 120.0
HANGS = {"lfuda": 10.0}  # loops for ever on many traces; where it ends, it ends within a second
FRACTIONS = (0.01, 0.1)
# kvpredict's name -> libcachesim's class
POLICIES = {
    "fifo": "FIFO",
    "random": "Random",
    "lru": "LRU",
    "clock": "Clock",
    "sieve": "Sieve",
    "lfu": "LFU",
    "lfuda": "LFUDA",
    "slru": "SLRU",
    "twoq": "TwoQ",
    "lruk": "LRUK",
    "arc": "ARC",
    "lirs": "LIRS",
    "s3fifo": "S3FIFO",
    "clock2qplus": "Clock2QPlus",
    "wtinylfu": "WTinyLFU",
    "lhd": "LHD",
    "hyperbolic": "Hyperbolic",
    "gdsf": "GDSF",
    "lecar": "LeCaR",
    "cacheus": "Cacheus",
    "belady": "Belady",
    "beladysize": "BeladySize",
}
RECORD = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])  # oracleGeneral


def _write(trace: Trace, path: Path, sized: bool) -> None:
    made = np.zeros(len(trace), RECORD)
    made["time"] = np.arange(len(trace))
    made["key"] = trace.ids.astype(np.uint64) + 1
    made["size"] = np.maximum(trace.sizes, 1) if sized else 1
    made["next"] = np.where(np.isinf(trace.next_use), -1, trace.next_use + 1)  # libcachesim counts requests from 1
    made.tofile(path)


def _run(policy: str, capacity: int, path: str, n: int, answer: object) -> None:
    import libcachesim

    reader = libcachesim.TraceReader(path, libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, POLICIES[policy])(cache_size=capacity)
    ratio, _ = cache.process_trace(reader)
    answer.send(round(ratio * n))  # type: ignore[attr-defined]


def misses(policy: str, capacity: int, path: Path, n: int) -> int | str:
    """Return libcachesim's misses, or why there is no count."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(policy, capacity, str(path), n, send))
    process.start()
    send.close()
    limit = HANGS.get(policy, LIMIT)
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return f"no end within {limit:.0f} s"
    if not receive.poll():
        return f"no answer, exit status {process.exitcode}"
    try:
        count: int = receive.recv()
    except EOFError:
        return f"died, exit status {process.exitcode}"
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--traces", default="")
    given = parser.parse_args()
    names = given.traces.split(",") if given.traces else [*GENERATED, *(PUBLIC if given.folder else ())]
    rows = _read(HERE / "golden.csv", 4)
    facts = _read(HERE / "golden_traces.csv", 1)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            trace = load(name, given.folder)
            facts[(name,)] = [name, str(len(trace)), str(trace.unique), str(checksum(trace))]
            sized = name in GENERATED or PUBLIC[name][1]
            for unit in ("objects", "bytes") if sized else ("objects",):
                path = Path(scratch) / f"{name}.{unit}"
                _write(trace, path, unit == "bytes")
                for fraction in FRACTIONS:
                    capacity = trace.capacity(fraction, unit)
                    for policy in given.policies.split(","):
                        count = misses(policy, capacity, path, len(trace))
                        key = (name, str(capacity), unit, policy)
                        if isinstance(count, str):
                            print(f"{' '.join(key)}: {count}", flush=True)
                            rows.pop(key, None)
                        else:
                            rows[key] = [*key, str(count)]
                path.unlink()
            _save(HERE / "golden.csv", "trace,capacity,unit,policy,misses", rows)
            _save(HERE / "golden_traces.csv", "trace,requests,unique,checksum", facts)


def _read(path: Path, width: int) -> dict[tuple[str, ...], list[str]]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[:width]): row for row in list(csv.reader(file))[1:]}


def _save(path: Path, header: str, rows: dict[tuple[str, ...], list[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows[key] for key in sorted(rows))


if __name__ == "__main__":
    main()
