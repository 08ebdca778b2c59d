"""What happens around the cells of a sweep: the store is made ready and a parent run opened before the first, and
one table of all cells is printed and written after the last.

Hydra calls it (``hydra.callbacks``). Cells may run in other processes: they find the parent run by a file in the
sweep's folder.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from kvpredict.core.errors import KvpredictError
from kvpredict.pipelines.files import write_text
from kvpredict.pipelines.run import TRACKED

__all__ = ["PARENT", "Sweep", "abandon", "parent_run"]

PARENT = "parent_run.json"


def parent_run(sweep: Path) -> str | None:
    """Return the id of the run that the cells of the sweep in this folder belong to, None when there is none."""
    path = sweep / PARENT
    return None if not path.is_file() else str(json.loads(path.read_text())["run_id"])


_open: list[Path] = []  # the sweep of this process that has begun and not ended


def abandon() -> None:
    """End the sweep of this process when one of its cells has failed: Hydra does not say so itself."""
    while _open:
        _finish(_open.pop(), failed=True)


def _finish(folder: Path, *, failed: bool) -> None:
    """Print and write the table of all cells, and close the parent run."""
    from kvpredict.pipelines.output import print_sweep

    cells = sorted(folder.glob("*/result.json"), key=lambda p: (len(p.parent.name), p.parent.name))
    print_sweep(folder, [(path.parent.name, json.loads(path.read_text())) for path in cells])
    parent = folder / PARENT
    if parent.is_file():
        from kvpredict import tracking

        stored = json.loads(parent.read_text())
        tracking.end_sweep(stored["uri"], stored["run_id"], failed=failed, folder=folder)


class Sweep(Callback):
    """Hydra's hooks. Hydra would turn an error in one into a warning, so it ends the process here."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Make the store ready and open the parent run."""
        folder = Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir
        with _fatal():
            folder.mkdir(parents=True, exist_ok=True)
            if config.tracking.name == "mlflow" and config.pipeline.name in TRACKED:
                from kvpredict import tracking

                uri = tracking.store_uri(config.tracking.uri, Path(config.hydra.runtime.cwd))
                tracking.prepare(uri)
                name = config.tracking.run_name or " ".join(config.hydra.overrides.task) or "sweep"
                run_id = tracking.start_sweep(uri, config.tracking.experiment, name)
                write_text(folder / PARENT, json.dumps({"uri": uri, "run_id": run_id}))
            _open.append(folder)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Show all cells together."""
        with _fatal():
            while _open:
                _finish(_open.pop(), failed=False)


@contextmanager
def _fatal() -> Iterator[None]:
    try:
        yield
    except (KvpredictError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
