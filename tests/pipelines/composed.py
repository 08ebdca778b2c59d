"""A run's configuration as the command line would compose it, in process."""

from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from kvpredict.pipelines.config import Config, read_config, register_schemas

SMALL = ("trace=workload", "workload.requests=20000", "workload.objects=2000", "tracking=none")


def composed(*overrides: str) -> Any:
    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_module("kvpredict.conf", version_base="1.3"):
        return compose("config", list(overrides))


def config(*overrides: str) -> Config:
    return read_config(composed(*overrides), overrides)
