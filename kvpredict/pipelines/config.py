"""Configuration: the types of the yaml tree in ``kvpredict/conf``, and the way from Hydra's config to plain objects.

Hydra checks names and types of overrides against these dataclasses; policies, learners and workloads are their own
schemas, being dataclasses of parameters. ``read_config`` returns plain objects: nothing beyond it sees a DictConfig.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any

from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.pipelines.effect import without_effect
from kvpredict.policies import contributed_names, policy_class
from kvpredict.trace.trace import UNITS

__all__ = [
    "Capacity",
    "Columns",
    "Config",
    "ConfigError",
    "DecodeEvaluate",
    "DecodeRecord",
    "DecodeTrain",
    "EndToEnd",
    "FileTrace",
    "Fit",
    "Ingest",
    "Inspect",
    "PrefixSimulate",
    "PrefixTrain",
    "Report",
    "Simulate",
    "Tracking",
    "Train",
    "WorkloadTrace",
    "nearest",
    "read_config",
    "register_schemas",
]


class ConfigError(KvpredictError, ValueError):
    """A setting that does not exist, or a value that it cannot take; names the nearest right one."""


@dataclass
class Capacity:
    fraction: float = 0.1
    count: int | None = None
    unit: str = "objects"


@dataclass
class Fit:
    extra: list[str] = field(default_factory=list)
    horizon: float = 1.5
    rounds: int = 2
    rows: int = 50_000
    validation: float = 0.25
    cv: int = 0


@dataclass
class Report:
    html: bool = True
    fractions: list[float] = field(default_factory=list)
    best: int = 2
    windows: int = 60


@dataclass
class Train:
    name: str = "train"
    split: float = 0.5
    split_by: str = "count"
    policies: list[str] = field(default_factory=lambda: ["all"])
    register: bool = True


@dataclass
class Simulate:
    name: str = "simulate"
    warmup: float = 0.0
    policies: list[str] = field(default_factory=lambda: ["all"])
    fractions: list[float] = field(default_factory=list)


@dataclass
class Ingest:
    name: str = "ingest"
    out: str | None = None


@dataclass
class Inspect:
    name: str = "inspect"
    tokenizer: str | None = None
    block_size: int | None = None


@dataclass
class PrefixTrain:
    name: str = "prefix_train"
    split: float = 0.5
    policies: list[str] = field(default_factory=lambda: ["all"])
    every: float = 120.0
    growth: float = 0.05
    host: float = 0.0
    hint_accuracy: float | None = None
    hint_from_text: bool = False
    tokenizer: str | None = None
    block_size: int | None = None
    mix: str = "mixed"
    requests: int = 4000
    register: bool = False


@dataclass
class PrefixSimulate:
    name: str = "prefix_simulate"
    warmup: float = 0.5
    policies: list[str] = field(default_factory=lambda: ["all"])
    policy: str | None = None
    host: float = 0.0
    hint_accuracy: float | None = None
    hint_from_text: bool = False
    tokenizer: str | None = None
    block_size: int | None = None
    mix: str = "mixed"
    requests: int = 4000


@dataclass
class Decode:
    """What all pipelines of the decode cache ask for: a model, texts, and where to part them."""

    name: str = ""
    model: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    text: list[str] = field(default_factory=list)
    later: float = 0.5


@dataclass
class DecodeRecord(Decode):
    name: str = "decode_record"
    length: int = 1024
    sequences: int = 30
    each: int = 3
    horizon: int = 256
    interval: int = 256
    label: str = "attention"
    rank: int = 0
    delay: int = 0
    out: str | None = None


@dataclass
class EndToEnd:
    steps: int = 150
    prefix: int = 768
    continuation: int = 256
    budgets: list[float] = field(default_factory=lambda: [0.25, 0.125])
    scope: str = "model"
    sinks: int = 4
    recent: int = 32
    temperature: list[float] = field(default_factory=lambda: [0.6, 0.15])
    rate: float = 0.001
    rate_few: float = 0.01
    every: int = 25
    average: float = 0.0
    attention: bool = False


@dataclass
class DecodeTrain(Decode):
    name: str = "decode_train"
    length: int = 1024
    sequences: int = 120
    each: int = 3
    validation: float = 0.15
    validated: int = 12
    recorded: int = 30
    horizon: int = 256
    interval: int = 256
    label: str = "attention"
    rank: int = 0
    delay: int = 0
    end_to_end: EndToEnd = field(default_factory=EndToEnd)
    work: str | None = None
    register: bool = False


@dataclass
class DecodeEvaluate(Decode):
    name: str = "decode_evaluate"
    sequences: int = 8
    each: int = 2
    prefix: int = 768
    continuation: int = 256
    policies: list[str] = field(default_factory=list)
    policy: str | None = None
    budgets: list[float] = field(default_factory=list)
    shares: str | None = None
    sinks: int = 4
    recent: float | None = None
    interval: int = 16
    online: bool = True
    block: int = 32
    depths: list[float] = field(default_factory=list)
    trials: int = 1
    answer: int = 32


@dataclass
class Columns:
    key: str | None = None
    time: str | None = None
    size: str | None = None
    op: str | None = None


@dataclass
class FileTrace:
    source: str = "file"
    path: str | None = None
    format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    delimiter: str | None = None
    header: bool | None = None
    time_unit: str | None = None
    text_keys: bool = False
    limit: int | None = None
    order: str = "clamp"
    on_error: str = "raise"


@dataclass
class WorkloadTrace:
    source: str = "workload"


@dataclass
class Tracking:
    name: str = "mlflow"
    uri: str | None = None
    experiment: str | None = "kvpredict"
    run_name: str | None = None
    model_name: str | None = None


@dataclass
class Config:
    """One run's configuration. ``policy``, ``learned``, the learners and ``workload`` hold a name and parameters."""

    pipeline: Any = None
    trace: Any = None
    workload: Any = None
    policy: Any = None
    learned: Any = None
    learner: Any = None
    decode_learner: Any = None
    tracking: Tracking = field(default_factory=Tracking)
    experiment: Any = None
    capacity: Capacity = field(default_factory=Capacity)
    fit: Fit = field(default_factory=Fit)
    report: Report = field(default_factory=Report)
    seed: int = 0


PIPELINES: dict[str, type] = {
    "train": Train,
    "simulate": Simulate,
    "ingest": Ingest,
    "inspect": Inspect,
    "prefix_train": PrefixTrain,
    "prefix_simulate": PrefixSimulate,
    "decode_record": DecodeRecord,
    "decode_train": DecodeTrain,
    "decode_evaluate": DecodeEvaluate,
}

# Values that are one of a few words: checked here, since a schema's type is only ``str``.
_WORDS = {
    "capacity.unit": UNITS,
    "pipeline.split_by": ("count", "time"),
    "trace.order": ("clamp", "sort"),
    "trace.on_error": ("raise", "skip"),
    "trace.time_unit": ("s", "ms", "us", "ns", None),
    "pipeline.dtype": ("auto", "float32", "bfloat16", "float16"),
    "pipeline.shares": (None, "equal", "pyramid"),
    "tracking.name": ("mlflow", "none"),
}


def register_schemas() -> None:
    """Give Hydra the types of the yaml files (idempotent)."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    named = {**PIPELINES, "file": FileTrace, "workload": WorkloadTrace, "tracking": Tracking}
    for name, schema in named.items():
        store.store(group="schema", name=name, node=schema)
    for name in contributed_names():
        store.store(group="policy", name=name, node=_contributed_node(name))


def _contributed_node(name: str) -> dict[str, Any]:
    """Return what a yaml of ``conf/policy`` would state of a policy that another distribution adds."""
    try:
        known = [f for f in fields(policy_class(name)) if f.metadata.get("config", True)]
    except KvpredictError:
        known = []  # choosing it raises the error; other commands go on without it
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in known}
    return {"name": name, **{key: value for key, value in defaults.items() if _plain(value)}}


def _plain(value: Any) -> bool:
    """Return whether a yaml can state ``value``."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def read_config(composed: Any, overrides: Sequence[str] = ()) -> Config:
    """Return the plain form of what Hydra composed (a DictConfig without the node ``hydra``).

    Parameters
    ----------
    composed : DictConfig
    overrides : sequence of str
        The command line's settings.

    Raises
    ------
    ConfigError
        On a parameter of the wrong type, a word that is none of the choices, a number out of range, or a setting that
        has no effect on this run.
    """
    from omegaconf import OmegaConf

    from kvpredict.learn import learner
    from kvpredict.llm.decode.learn import decode_learner
    from kvpredict.trace.workloads import workload_class

    known = [f.name for f in fields(Config)]
    for key in composed:
        if key not in known:
            raise unknown_name("setting", key, known)
    pipeline = composed.get("pipeline") or {}
    plain = {
        "pipeline": _merged("pipeline", PIPELINES.get(str(pipeline.get("name")), Train), pipeline),
        "trace": _merged("trace", _trace_schema(composed), composed.get("trace")),
        "tracking": _merged("tracking", Tracking, composed.get("tracking")),
        "capacity": _merged("capacity", Capacity, composed.get("capacity")),
        "fit": _merged("fit", Fit, composed.get("fit")),
        "report": _merged("report", Report, composed.get("report")),
        "policy": _typed("policy", composed.get("policy"), policy_class),
        "learned": _typed("learned", composed.get("learned"), policy_class),
        "learner": _typed("learner", composed.get("learner"), lambda name: type(learner(name))),
        "decode_learner": _typed(
            "decode_learner", composed.get("decode_learner"), lambda name: type(decode_learner(name))
        ),
        "workload": _typed("workload", composed.get("workload"), workload_class),
        "experiment": OmegaConf.to_container(composed).get("experiment"),  # type: ignore[union-attr]
        "seed": composed.get("seed", 0),
    }
    config = Config(**plain)
    _check(config)
    if said := without_effect(config, overrides):
        raise ConfigError(said)
    return config


def _trace_schema(composed: Any) -> type:
    return WorkloadTrace if (composed.get("trace") or {}).get("source") == "workload" else FileTrace


def _merged(group: str, schema: type, node: Any) -> Any:
    """Return an instance of ``schema`` with the values of ``node``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node or {}))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{group}: {first_line(error)}") from error


def _typed(group: str, node: Any, find: Callable[[str], type]) -> dict[str, Any] | None:
    """Return the name and the parameters in ``node``, checked against the dataclass that takes them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if node is None:
        return None
    if not OmegaConf.is_dict(node) or "name" not in node:
        raise ConfigError(f"{group}={node}: expected a choice such as {group}=name")
    name = node["name"]
    cls = find(name)
    known = [f for f in fields(cls) if f.metadata.get("config", True)]
    # The yaml states every parameter; a field that it leaves out is not for the command line (a model, a report).
    schema = make_dataclass(cls.__name__, [(f.name, f.type, _default(f)) for f in known if f.name in node])
    typed = OmegaConf.structured(schema)
    for key, value in node.items():
        if key == "name":
            continue
        if key not in typed:
            raise unknown_name(f"parameter of {group} {name!r}", key, [f.name for f in known])
        try:
            typed[key] = value
        except OmegaConfBaseException as error:
            raise ConfigError(f"{group}.{key}={value}: {first_line(error)}") from error
    return {"name": name, **OmegaConf.to_container(typed)}  # type: ignore[dict-item]


def _default(f: Any) -> Any:
    return field(default_factory=f.default_factory) if f.default is MISSING else field(default=f.default)


def _check(config: Config) -> None:
    for path, words in _WORDS.items():
        group, name = path.split(".")
        value = getattr(getattr(config, group), name, words[0])
        if value not in words:
            raise ConfigError(str(unknown_name(path, value, [w for w in words if w])))
    kind = config.pipeline.name.partition("_")[0]
    if kind in ("prefix", "decode") and getattr(config.pipeline, "register", False):
        raise ConfigError(
            f"pipeline.register=true: {kind} policies cannot be registered; the policy is among the run's artifacts"
        )
    if getattr(config.pipeline, "hint_from_text", False) and config.pipeline.hint_accuracy is not None:
        raise ConfigError("pipeline.hint_from_text and pipeline.hint_accuracy both make the hint continues: give one")
    if not 0 < config.capacity.fraction <= 1:
        raise ConfigError(f"capacity.fraction={config.capacity.fraction}: expected a number above 0 and at most 1")
    if config.capacity.count is not None and config.capacity.count < 1:
        raise ConfigError(f"capacity.count={config.capacity.count}: expected a whole number of at least 1")
    for path in ("pipeline.later", "pipeline.validation"):
        group, name = path.split(".")
        share = getattr(getattr(config, group), name, 0)
        if not 0 <= share <= 1:
            raise ConfigError(f"{path}={share}: expected a share of the documents from 0 to 1")
    for depth in getattr(config.pipeline, "depths", []):
        if not 0 <= depth <= 1:
            raise ConfigError(f"pipeline.depths has {depth}: expected numbers from 0, the beginning, to 1, the end")
    for path in ("report.fractions", "pipeline.fractions", "pipeline.budgets"):
        group, name = path.split(".")
        for fraction in getattr(getattr(config, group), name, []):
            if not 0 < fraction <= 1:
                raise ConfigError(f"{path} has {fraction}: expected numbers above 0 and at most 1")
    for path, least in (
        ("report.best", 0),
        ("report.windows", 1),
        ("pipeline.split", 0),
        ("pipeline.warmup", 0),
        ("pipeline.host", 0),
        ("pipeline.every", 0),
        ("pipeline.growth", 0),
        ("pipeline.requests", 1),
        ("pipeline.block_size", 1),
        ("pipeline.sequences", 1),
        ("pipeline.length", 1),
        ("pipeline.each", 1),
        ("pipeline.validated", 1),
        ("pipeline.threads", 1),
        ("pipeline.prefix", 1),
        ("pipeline.continuation", 3),
        ("pipeline.block", 1),
        ("pipeline.trials", 1),
        ("pipeline.answer", 0),
    ):
        group, name = path.split(".")
        number: Any = getattr(getattr(config, group), name, least)
        if number is not None and not least <= number < float("inf"):
            raise ConfigError(f"{path}={number}: expected at least {least}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, which says what is wrong; the rest is OmegaConf's bookkeeping."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that is closest to a mistyped dotted ``name``."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else None
