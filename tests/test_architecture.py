"""Which part of the package may import which, and what importing it costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kvpredict

ROOT = Path(kvpredict.__file__).parent

# Layers from the bottom; a module imports from its own part and from lower layers. ``load`` belongs to the caller's
# side of artifact and policies; its ways to MLflow and to prefix policies are upward steps, taken inside functions, as
# is the simulator's way to the prefix cache's.
LAYERS = [
    {"core"},
    {"trace", "features", "scorers"},
    {"artifact"},
    {"policies"},
    {"load"},
    {"simulate"},
    {"learn", "cache"},
    {"llm"},
    {"training"},
    {"tracking", "report"},
    {"pipelines"},
    {"cli", "conf"},
    {"__main__"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
ALLOWED_UP = {("load", "tracking"), ("simulate", "llm"), ("load", "llm")}
HEAVY = {
    "torch": {"learn", "llm"},
    "sklearn": {"learn", "llm"},
    "lightgbm": {"learn", "llm"},
    "transformers": {"llm"},
    "hydra": {"pipelines", "cli"},
    "omegaconf": {"pipelines", "cli"},
    "mlflow": {"tracking"},
    "matplotlib": {"report"},
    "redis": {"cache"},
    "msgpack": {"cache"},
    "prometheus_client": {"cache"},
}


# Closer still: the only files that may.
ONLY = {
    "torch": {
        "learn/agent.py",
        "learn/mlp.py",
        "llm/kv_pool.py",
        "llm/models.py",
        "llm/prefix_cache.py",
        "llm/states.py",
    },
    "gymnasium": {"learn/env.py"},
}
# Subclasses of transformers' classes have to import it first; nothing but each other imports these at its top level.
AT_TOP = {f"llm/decode/{name}.py" for name in ("attention", "cache", "clock", "decoder", "layer", "slots")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return the absolute names a module imports and whether at its top level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [(node.module, id(node) in top)]
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    part = part_of(path)
    for name, at_top in imports(path):
        package, _, rest = name.partition(".")
        if package == "kvpredict" and rest:
            target = rest.split(".")[0]
            if target == part or target not in RANK:
                continue
            assert RANK[target] < RANK[part] or (part, target) in ALLOWED_UP, f"{part} imports {name}"
        if package in ONLY:
            relative = path.relative_to(ROOT).as_posix()
            assert relative in ONLY[package] or relative.startswith("llm/decode/"), f"{path.name} imports {package}"
        if package in HEAVY:
            assert part in HEAVY[package], f"{part} imports {package}"
            if part in ("learn", "llm", "tracking", "cache") and path.relative_to(ROOT).as_posix() not in AT_TOP:
                assert not at_top, f"{path.name} imports {package} at its top level"


def test_importing_is_light() -> None:
    code = (
        "import sys, json, kvpredict; kvpredict.Trace, kvpredict.simulate, kvpredict.policy, kvpredict.Cache; "
        "import kvpredict.llm.decode.policies, kvpredict.llm.decode.budgets; "
        "kvpredict.llm.decode.policies.decode_policy('h2o'); "
        "print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    heavy = {
        "torch",
        "gymnasium",
        "pandas",
        "mlflow",
        "hydra",
        "sklearn",
        "lightgbm",
        "pyarrow",
        "rich",
        "matplotlib",
        "zstandard",
        "redis",
        "msgpack",
        "prometheus_client",
    }
    assert heavy & {name.split(".")[0] for name in loaded} == set()


def test_exported_members() -> None:
    assert sorted(kvpredict.__all__) == kvpredict.__all__
    for name in kvpredict.__all__:
        assert getattr(kvpredict, name) is not None
    assert callable(kvpredict.simulate)
    with pytest.raises(AttributeError, match="crystal_ball"):
        kvpredict.crystal_ball  # noqa: B018
