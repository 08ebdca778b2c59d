"""decode_record: run a language model over texts; write down what tokens looked like and how much they mattered."""

from pathlib import Path
from typing import Any

from kvpredict.llm.decode.record import record
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.decode_data import load_data
from kvpredict.pipelines.progress import track

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; the recording goes to ``pipeline.out``."""
    settings = config.pipeline
    data = load_data(config, start)
    out = folder / "recording" if settings.out is None else (start / Path(settings.out).expanduser()).resolve()
    recording = record(
        data.model,
        data.train,
        out,
        horizon=settings.horizon,
        every=settings.interval,
        label=settings.label,
        rank=settings.rank,
        early=settings.delay,
        seed=config.seed,
        progress=track,
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    return {
        "trace": data.facts | {"label": settings.label, "horizon": settings.horizon, "megabytes": size / 1e6},
        "written": {"path": str(out), "sequences": len(recording)},
    }
