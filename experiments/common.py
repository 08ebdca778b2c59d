"""What several experiments need: the public traces and how they are divided, a table of rows that grows, a README.

Experiments run from the repository's root, as ``python -m experiments.NAME.run``.
"""

import csv
import fcntl
import os
import sys
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEVELOPMENT", "PUBLIC", "VALIDATION", "Rows", "find_traces", "into_readme", "number", "part_of", "table"]

# Public traces by the name that the tables use; the file is searched for under the folder given.
PUBLIC = {
    "arc_oltp": "arc/OLTP.lis.zst",
    "arc_p3": "arc/P3.lis.zst",
    "arc_p6": "arc/P6.lis.zst",
    "cloudphysics": "cloudphysics/cloudPhysicsIO.oracleGeneral.bin",
    "lirs_2_pools": "lirs/2_pools.trace.gz",
    "lirs_loop": "lirs/loop.trace.gz",
    "lirs_multi3": "lirs/multi3.trace.gz",
    "lirs_sprite": "lirs/sprite.trace.gz",
    "mqsim_tpcc": "mqsim/tpcc-small.trace",
    "tencent_ns1326": "tencent/tencentBlock.ns1326.sample.csv",
    "tencent_ns1360": "tencent/tencentBlock.ns1360.sample.csv",
    "tencent_ns2706": "tencent/tencentBlock.ns2706.sample.csv",
    "tencent_ns3300": "tencent/tencentBlock.ns3300.sample.csv",
    "adaptsize": "adaptsize/request.trace.xz",
    "wiki": "wiki/wiki_sampled_train_trace.tsv",
    "cpu_gcc": "address/gcc.trace.gz",
    "orm_busy": "cache2k/orm-busy.trace.xz",
    "scarab": "scarab/scarab-recs.trace.xz",
    "web07": "cache2k/web07.trace.xz",
    "mooncake": "mooncake/conversation_trace.head60.jsonl",
}

# Guarded's settings were chosen on the first and checked on the second; the rest was looked at only afterwards.
DEVELOPMENT = (
    "arc_oltp", "lirs_multi3", "lirs_sprite", "web07", "tencent_ns2706", "cloudphysics", "mooncake", "wiki",
)  # fmt: skip
VALIDATION = ("arc_p6", "lirs_2_pools", "tencent_ns3300", "scarab")


def part_of(trace: str) -> str:
    """Return whether a trace served for development, for validation, or for neither (test)."""
    return "development" if trace in DEVELOPMENT else "validation" if trace in VALIDATION else "test"


def number(text: str) -> int:
    """Return ``"3_000_000"`` as a number."""
    return int(text.replace("_", ""))


def find_traces(given: list[Path]) -> dict[str, Path]:
    """Return the traces to run on, by name: a folder's public ones, or files."""
    found: dict[str, Path] = {}
    for path in given:
        if path.is_dir():
            here = {name: path / file for name, file in PUBLIC.items() if (path / file).is_file()}
            if not here:
                sys.exit(f"{path} holds none of the public traces, such as {next(iter(PUBLIC.values()))}; name files")
            for name in sorted(set(PUBLIC) - set(here)):
                print(f"{name}: left out, {path / PUBLIC[name]} does not exist", file=sys.stderr)
            found |= here
        elif path.is_file():
            found[path.name.partition(".")[0]] = path
        else:
            sys.exit(f"{path} does not exist")
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, against other processes that do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Rows:
    """A csv file of rows with a key, written after each addition, so that a run can be taken up where it ended.

    Several processes may add to one file.

    Parameters
    ----------
    path : Path
    columns : iterable of str
    key : iterable of str
        Columns that tell rows apart; a row replaces the one of the same key.
    """

    def __init__(self, path: Path, columns: Iterable[str], key: Iterable[str]) -> None:
        self.path, self.columns, self.key = path, list(columns), list(key)
        self.rows: dict[Hashable, dict[str, str]] = self._read()
        self._dropped: set[Hashable] = set()

    def _read(self) -> dict[Hashable, dict[str, str]]:
        if not self.path.is_file():
            return {}
        with open(self.path, newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != self.columns:
                sys.exit(f"{self.path} has other columns than this version writes; remove it to start anew")
            return {self._key(row): row for row in reader}

    def __contains__(self, values: dict[str, Any]) -> bool:
        return self._key(values) in self.rows

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows and write the file, with what others have added to it meanwhile."""
        fresh = {self._key(row): {column: str(row[column]) for column in self.columns} for row in rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            others = {key: row for key, row in self._read().items() if key not in self._dropped}
            self.rows = self.rows | others | fresh
            self._dropped -= fresh.keys()
            part = self.path.with_suffix(".part")
            with open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows.values())
            part.replace(self.path)

    def drop(self, chosen: Any) -> None:
        """Forget the rows for which ``chosen(row)`` is true."""
        self._dropped |= {key for key, row in self.rows.items() if chosen(row)}
        self.rows = {key: row for key, row in self.rows.items() if key not in self._dropped}

    def _key(self, row: dict[str, Any]) -> Hashable:
        return tuple(str(row[column]) for column in self.key)


def into_readme(folder: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers called ``name`` in the folder's README; print it where there is none."""
    begin, end = f"<!-- {name}: written by the command -->", f"<!-- end of {name} -->"
    readme = folder / "README.md"
    before, found, rest = readme.read_text().partition(begin) if readme.is_file() else ("", "", "")
    if not found:
        print(text)
        return
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def table(header: str, rows: list[list[str]]) -> str:
    """Return a table in Markdown; the header's columns are parted by ``|``."""
    columns = header.count("|") + 1
    return "\n".join([f"| {header} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
