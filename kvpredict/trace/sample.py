"""The sample: page accesses of a SQLite database under a shop's queries, recorded by the project and shipped with it.

It makes the first run need nothing but the package. ``traces/README.md`` says what is in it and how it was recorded.
"""

from pathlib import Path

from kvpredict.core.errors import TraceError
from kvpredict.trace.trace import Trace

__all__ = ["load_sample", "sample_path"]

_NAME = "sqlite_shop.csv.xz"


def sample_path() -> Path:
    """Return the sample's file: inside the package when installed, in ``traces/`` in a checkout.

    Raises
    ------
    TraceError
        When it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "_sample" / _NAME, package.parent / "traces" / _NAME]
    for place in places:
        if place.is_file():
            return place
    raise TraceError(
        f"the sample {_NAME} is not where it should be ({' or '.join(map(str, places))}); reinstall kvpredict, or "
        "record it again with traces/record_sqlite.py"
    )


def load_sample() -> Trace:
    """Read the sample: 490,278 accesses to 18,206 pages of 4 KiB, with columns ``op`` and ``query``.

    Needs the ``train`` extra, as all text traces do.

    >>> load_sample().unique
    18206
    """
    from kvpredict.trace.read import read_trace

    return read_trace(sample_path())
