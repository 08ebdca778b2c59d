"""The command line: one Hydra application whose job is a pipeline.

Every run writes its results into its own folder before it tracks them, so a store that fails loses nothing. Whatever
goes wrong on purpose is said in one line on stderr: exit status 1 for a failure, 2 for a command line that cannot be
understood. ``HYDRA_FULL_ERROR=1`` shows the traceback.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from kvpredict.core.errors import KvpredictError

__all__ = ["main"]

FULL_ERROR = "HYDRA_FULL_ERROR"
TRACEBACK = "KVPREDICT_TRACEBACK"  # what the user asked for, for cells in other processes


def main() -> None:
    """Run ``kvpredict`` with the arguments of the process."""
    # The parser takes overrides on one side of an option only.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    traceback_wanted = os.environ.get(FULL_ERROR) == "1"
    # With it Hydra hands exceptions through instead of printing and ending the process itself.
    os.environ[FULL_ERROR] = "1"
    os.environ[TRACEBACK] = "1" if traceback_wanted else "0"
    try:
        _application()()
    except KeyboardInterrupt:
        _abandon()
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left; a further flush at exit would only complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Failed as error:
        _abandon()
        print("error: cells of the sweep have failed, as said above", file=sys.stderr)
        sys.exit(error.status)
    except Exception as error:
        _abandon()
        if traceback_wanted:
            raise
        from kvpredict.pipelines.mistakes import explain

        said = explain(error, sys.argv[1:])
        if said is None:
            raise
        status, message = said
        print(f"error: {message}", file=sys.stderr)
        sys.exit(status)
    finally:
        if not traceback_wanted:
            os.environ.pop(FULL_ERROR, None)


def _application() -> Any:
    try:
        import hydra
    except ImportError as error:
        print(f"error: the command line needs Hydra: pip install 'kvpredict[train]' ({error})", file=sys.stderr)
        sys.exit(1)
    from kvpredict.pipelines.config import register_schemas

    register_schemas()
    return hydra.main(version_base="1.3", config_path="pkg://kvpredict.conf", config_name="config")(job)


class Failed(Exception):
    """A cell of a sweep has failed and has said so."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def job(composed: Any) -> None:
    """Run one cell: read the configuration, run its pipeline, write and show the results, track them."""
    from hydra.core.hydra_config import HydraConfig

    from kvpredict.pipelines.mistakes import explain

    about = HydraConfig.get()
    sweeps = about.mode is not None and about.mode.name == "MULTIRUN"
    try:
        _run(composed, about, sweeps)
    except Exception as error:
        said = explain(error, about.overrides.task)
        if said is None or os.environ.get(TRACEBACK) == "1":
            raise
        status, message = said
        print(f"error: {message}", file=sys.stderr)
        if sweeps:
            raise Failed(status) from None  # the other cells go on
        sys.exit(status)  # which Hydra lets pass, without a word of its own


def _run(composed: Any, about: Any, sweeps: bool) -> None:
    from kvpredict.pipelines.config import read_config
    from kvpredict.pipelines.run import run_pipeline
    from kvpredict.pipelines.sweep import parent_run

    start = Path(about.runtime.cwd)
    config = read_config(composed, about.overrides.task)
    run_pipeline(
        config,
        folder=Path(about.runtime.output_dir),
        start=start,
        overrides=list(about.overrides.task),
        parent=parent_run(start / about.sweep.dir) if sweeps else None,
        started=time.time(),
    )


def _abandon() -> None:
    """Close the parent run of a sweep that ends early."""
    module = sys.modules.get("kvpredict.pipelines.sweep")
    if module is not None:
        try:
            module.abandon()
        except KvpredictError as error:
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
