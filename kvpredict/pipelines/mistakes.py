"""Mistakes: what Hydra, OmegaConf and the system say of a wrong command line, in one line with the nearest name."""

import re
import traceback
from collections.abc import Sequence
from typing import Any

from kvpredict.core.errors import KvpredictError, UnknownName, unknown_name
from kvpredict.pipelines.config import ConfigError, first_line, nearest

__all__ = ["explain"]

FAILURE, USAGE = 1, 2  # exit statuses


def explain(error: BaseException, arguments: Sequence[str]) -> tuple[int, str] | None:
    """Return the exit status and the one line that explain ``error``; None for one that nobody foresaw."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, ConfigError | UnknownName):
        return USAGE, str(error)
    if isinstance(error, KvpredictError):
        return FAILURE, as_settings(str(error))
    if isinstance(error, OverrideParseException):
        quoted = "; a value with = , or spaces in it needs quotes, such as 'trace.path=\"my=file.csv\"'"
        return USAGE, f"cannot read {error.override!r}: expected setting=value{quoted}"
    if isinstance(error, MissingConfigException):
        return USAGE, _missing(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return USAGE, _override(error, arguments)
    if isinstance(error, OSError):
        # A full disk does not say which file it had no room for.
        where = error.filename if error.filename is not None else "writing the results"
        return FAILURE, f"{where}: {error.strerror or error}"
    if isinstance(error, ValueError) and _raised_in(error).startswith("hydra."):
        return USAGE, first_line(error)
    return None


def as_settings(message: str) -> str:
    """Return a message with the arguments of ``read_trace`` that it recommends as settings of the command line."""
    message = re.sub(r'columns=\{"(\w+)": \'([^\']*)\'\}', r"trace.columns.\1=\2", message)
    message = re.sub(r'\b(on_error|format|order)="(\w+)"', r"trace.\1=\2", message)
    message = re.sub(r"\bheader=(True|False)", lambda m: f"trace.header={m[1].lower()}", message)
    message = re.sub(r"\bgive (time_unit\b|format=)", r"give trace.\1", message)
    return re.sub(r"\b(block_size=\d|block_size of this file)", r"pipeline.\1", message)


def _raised_in(error: BaseException) -> str:
    """Return the module in which ``error`` was raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def _missing(error: Any) -> str:
    """A choice that its group does not have."""
    found = re.search(r"Could not find '([^']+)'", str(error))
    if error.missing_cfg_file is None and found is None:
        return first_line(error)
    group, _, option = (error.missing_cfg_file or found.group(1)).rpartition("/")  # type: ignore[union-attr]
    if not group or not error.options:
        return first_line(error)
    return str(unknown_name(group, option, [o for o in error.options if not o.startswith("schema")]))


def _override(error: BaseException, arguments: Sequence[str]) -> str:
    """A setting that does not exist, or a value of the wrong type."""
    text = str(error)
    cause = str(error.__cause__) if error.__cause__ is not None else ""
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Could not find '([^']+)'", text)
    if unknown:
        name = unknown.group(1).removesuffix("/")
        given = next((a.lstrip("+~").partition("=")[0] for a in arguments if a.lstrip("+~").startswith(name)), name)
        known = settings(arguments)
        if given in known:
            group = given.partition(".")[0]
            return f"{given!r} is not a setting of the chosen {group}; kvpredict --cfg job lists those that are"
        near = nearest(given, known)
        hint = f"Did you mean {near!r}?" if near else "kvpredict --cfg job lists them."
        return f"unknown setting {given!r}. {hint}"
    if "Ambiguous value for argument" in text:
        return f"{first_line(error)}: several values need -m"
    wrong = re.search(r"Error merging override (\S+)", text)
    reason = cause or text.partition("\n")[2] or text
    if wrong and "is not a subclass of" in reason:
        return f"{wrong.group(1)}: set what is in it, such as {wrong.group(1).partition('=')[0]}.…=…"
    if wrong and "is not a ListConfig" in reason:
        name, _, value = wrong.group(1).partition("=")
        return f"{wrong.group(1)}: expected a list, such as {name}=[{value}]"
    if wrong:
        return f"{wrong.group(1)}: {reason.strip().splitlines()[0]}"
    return " ".join(part for part in (first_line(error), cause.strip().partition("\n")[0]) if part)


def settings(arguments: Sequence[str] = ()) -> list[str]:
    """Return the dotted names of all settings that a command line can give, under the choices in ``arguments``."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from kvpredict.pipelines.config import register_schemas

    register_schemas()
    GlobalHydra.instance().clear()
    choices = [a for a in arguments if re.fullmatch(r"[a-z]+=[a-z0-9_]+", a)]
    names: set[str] = set()
    with initialize_config_module("kvpredict.conf", version_base="1.3"):
        for overrides in ([], ["trace=workload"], ["pipeline=simulate"], ["pipeline=ingest"], *([c] for c in choices)):
            try:
                _walk(OmegaConf.to_container(compose("config", overrides)), "", names)
            except HydraException:
                continue  # a choice that is itself mistaken
    return sorted(names)


def _walk(node: Any, prefix: str, names: set[str]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            names.add(path)
            _walk(value, path, names)
