"""Effect: a setting that a run would not read is refused, since whoever gave it expects it to do something.

Each kind of pipeline says here what it reads beside its own settings, and which of those it does not read as things
are; whatever else is given, on the command line or by the choice of a trace or policy in an experiment, has no effect.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvpredict.pipelines.config import Config

__all__ = ["without_effect"]

ALWAYS = ("pipeline", "experiment", "seed", "tracking", "report.html", "trace=file")
REQUESTS = ("trace.path", "capacity", "report.windows")
OF_FILES = ("pipeline.tokenizer", "pipeline.block_size", "trace.on_error", "trace.time_unit")
GENERATED = ("pipeline.mix", "pipeline.requests")
LEAVE = "leave it out"


def _reads(config: "Config") -> tuple[Sequence[str] | None, Mapping[str, str]]:
    """Return the settings that a run reads, None for all, and those that it does not with what to do instead."""
    name, policy = config.pipeline.name, (config.policy or {}).get("name")
    if name.startswith(("prefix_", "decode_")):
        unread = {"tracking.model_name": LEAVE}  # of what is registered
        unread["policy"] = f"give pipeline.policies=[{policy}]" if hasattr(config.pipeline, "policies") else LEAVE
        if name.startswith("decode_"):
            return (*ALWAYS, *(["decode_learner"] if name == "decode_train" else [])), unread
        if getattr(config.trace, "path", None) is None:
            unread |= dict.fromkeys(OF_FILES, "requests are generated unless trace.path is given")
        else:
            unread |= dict.fromkeys(GENERATED, "requests are those of trace.path, none are generated")
        return (*ALWAYS, *REQUESTS, *OF_FILES), unread
    unread = {"decode_learner": LEAVE}
    if config.trace.source == "file":
        unread["workload"] = "it reads a file; add trace=workload"
    return None, unread


def without_effect(config: "Config", overrides: Sequence[str]) -> str | None:
    """Return what is to be said of the first setting that this run would not read; None where there is none.

    Parameters
    ----------
    config : Config
    overrides : sequence of str
        The command line's settings, ``name=value``.
    """
    reads, unread = _reads(config)
    chosen = [f"trace={config.trace.source}", *([f"policy={config.policy['name']}"] if config.policy else [])]
    for given in [*overrides, *chosen]:
        bare = given.lstrip("+~")
        name = bare.partition("=")[0].rpartition("@")[2].replace("/", ".")
        instead = next((what for other, what in unread.items() if _within(name, other)), None)
        if instead is None and reads is not None and bare not in reads and not any(_within(name, r) for r in reads):
            instead = LEAVE
        if instead is not None:
            return f"{given} has no effect on pipeline={config.pipeline.name}: {instead}"
    return None


def _within(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")
