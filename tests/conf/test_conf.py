"""Every choice and every experiment composes, every parameter is stated and explained, and mistakes are named."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

import kvpredict.conf
from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.learn import decode_learner, decode_learner_names
from kvpredict.llm.decode.learn.end_to_end import EndToEnd
from kvpredict.pipelines import config as schemas
from kvpredict.pipelines.mistakes import explain, settings
from tests.pipelines.composed import composed, config

CONF = Path(kvpredict.conf.__file__).parent
GROUPS = ("pipeline", "trace", "workload", "policy", "learner", "decode_learner", "tracking")
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OURS = ["config.yaml", *(f"{g}/{p.name}" for g in ("pipeline", "trace", "tracking") for p in (CONF / g).glob("*.yaml"))]


def nodes(value: Any) -> Iterator[Any]:
    yield value
    if is_dataclass(value):
        for f in fields(value):
            yield from nodes(getattr(value, f.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from nodes(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from nodes(item)


def test_choices_are_found() -> None:
    assert {"pipeline=train", "trace=file", "workload=online_shop", "policy=lru", "learner=lightgbm"} <= set(CHOICES)
    assert len(EXPERIMENTS) >= 3


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_to_plain_values(choice: str) -> None:
    read = schemas.read_config(composed(choice))
    assert not [n for n in nodes(read) if isinstance(n, DictConfig | ListConfig)]
    group, _, option = choice.partition("=")
    node = getattr(read, group)
    name = node["name"] if isinstance(node, dict) else getattr(node, "name", None) or node.source
    assert name == option


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_changes_something(experiment: str) -> None:
    default, changed = config(), config(f"experiment={experiment}")
    assert [f.name for f in fields(default) if getattr(default, f.name) != getattr(changed, f.name)]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_only_override(experiment: str) -> None:
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    for entry in yaml.safe_load(text).get("defaults", []):
        assert all(key.startswith("override /") for key in entry)


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_is_explained(name: str) -> None:
    body = (CONF / name).read_text().partition("\nhydra:")[0]
    for line in body.splitlines():
        parameter, colon, value = line.partition(":")
        says_itself = parameter.strip() in ("name", "source", "defaults") or line.lstrip().startswith(
            ("#", "- override")
        )
        if colon and value.strip() and not says_itself:
            assert "#" in line, f"{name}: {line.strip()}"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        *((schema, f"pipeline/{name}.yaml") for name, schema in schemas.PIPELINES.items()),
        (schemas.FileTrace, "trace/file.yaml"),
        (schemas.WorkloadTrace, "trace/workload.yaml"),
        (schemas.Tracking, "tracking/mlflow.yaml"),
        (schemas.Tracking, "tracking/none.yaml"),
        (schemas.Capacity, "config.yaml:capacity"),
        (schemas.Fit, "config.yaml:fit"),
        (schemas.Report, "config.yaml:report"),
    ],
)
def test_yaml_states_every_field_of_its_schema(schema: type, place: str) -> None:
    name, _, node = place.partition(":")
    stated = yaml.safe_load((CONF / name).read_text())
    stated = stated[node] if node else stated
    assert [key for key in stated if key != "defaults"] == [f.name for f in fields(schema)]


def test_yaml_of_training_states_every_field_of_the_learner() -> None:
    stated = yaml.safe_load((CONF / "pipeline/decode_train.yaml").read_text())["end_to_end"]
    assert stated == {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(EndToEnd)}


@pytest.mark.parametrize("name", decode_learner_names())
def test_yaml_of_decode_learners_states_their_defaults(name: str) -> None:
    stated = yaml.safe_load((CONF / f"decode_learner/{name}.yaml").read_text())
    assert stated == {"name": name, **decode_learner(name).params()}


def said(*overrides: str) -> tuple[int, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, explain must know it
        config(*overrides)
    explained = explain(caught.value, overrides)
    assert explained is not None, repr(caught.value)
    assert "\n" not in explained[1]
    return explained


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("capasity.fraction=0.1", "Did you mean 'capacity.fraction'?"),
        ("polcy=lru", "Did you mean 'policy'?"),
        ("trace.colums.key=url", "Did you mean 'trace.columns.key'?"),
        ("policy=lrru", "Did you mean 'lru'?"),
        ("pipeline=trian", "Did you mean 'train'?"),
        ("learner=lightgmb", "Did you mean 'lightgbm'?"),
        ("workload=onlineshop", "Did you mean 'online_shop'?"),
        ("experiment=shopp", "Did you mean 'shop'?"),
        ("tracking=mlfow", "Did you mean 'mlflow'?"),
        ("capacity.unit=object", "Did you mean 'objects'?"),
        ("capacity.fraction=abc", "capacity.fraction=abc: Value 'abc'"),
        ("capacity.count=1.5", "capacity.count=1.5"),
        ("capacity.fraction=1.5", "at most 1"),
        ("capacity.count=0", "at least 1"),
        ("capacity=3", "set what is in it"),
        ("seed=x", "seed=x"),
        ("report.fractions=[0.1,2]", "report.fractions has 2"),
        ("pipeline.split_by=times", "Did you mean 'time'?"),
        ("+foo.bar=3", "unknown setting 'foo'"),
        ("=3", "must be a string"),
        ("x y", "cannot read 'x y'"),
        ("policy=", "unknown policy"),
    ],
)
def test_mistakes_are_usage_errors_of_one_line_with_the_nearest_name(override: str, message: str) -> None:
    status, line = said(override)
    assert status == 2
    assert message in line


def test_mistakes_in_parameters_of_a_choice() -> None:
    assert "Did you mean 'policy.samples'?" in said("policy=hyperbolic", "policy.sample=3")[1]
    assert "policy.samples=abc" in said("policy=hyperbolic", "policy.samples=abc")[1]
    assert "workload.requests=many" in said("workload=zipf", "workload.requests=many")[1]
    assert "not a setting of the chosen trace" in said("trace=workload", "trace.path=x")[1]


@pytest.mark.parametrize("pipeline", ["prefix_train", "prefix_simulate", "decode_record", "decode_evaluate"])
def test_a_policy_of_plain_caches_is_refused_where_it_would_be_ignored(pipeline: str) -> None:
    instead = "leave it out" if pipeline == "decode_record" else "give pipeline.policies=[lru]"
    assert said(f"pipeline={pipeline}", "policy=lru")[1].endswith(instead)


def test_settings_name_groups_and_leaves() -> None:
    names = settings(["policy=hyperbolic"])
    assert {"capacity", "capacity.fraction", "trace.columns.key", "policy.samples", "pipeline.fractions"} <= set(names)


def test_unforeseen_errors_are_not_explained_away() -> None:
    assert explain(RuntimeError("a bug"), []) is None
    assert explain(ValueError("a bug of ours"), []) is None
    assert explain(KvpredictError("no"), []) == (1, "no")


def test_interpolations_are_resolved_and_defaults_are_those_of_the_readme() -> None:
    read = config()
    assert read.pipeline.name == "train"
    assert read.trace.path is None
    assert (read.capacity.fraction, read.capacity.unit) == (0.1, "objects")
    assert read.policy is None
    assert read.learned["name"] == "learned"
    assert OmegaConf.missing_keys(composed()) == set()
