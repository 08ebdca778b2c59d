"""What the documentation shows is there and does what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import kvpredict.cache

ROOT = Path(__file__).resolve().parents[2]
MODULES = [f"kvpredict.cache.{module.name}" for module in pkgutil.iter_modules(kvpredict.cache.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_can_be_imported_and_says_what_it_is() -> None:
    for name in kvpredict.cache.__all__:
        thing = getattr(kvpredict.cache, name)
        assert thing is not None
        assert name == "ERASED" or thing.__doc__
    with pytest.raises(AttributeError, match="crystal_ball"):
        kvpredict.cache.crystal_ball  # noqa: B018
    assert set(kvpredict.cache.__all__) <= set(dir(kvpredict.cache))


def test_the_guide_names_what_there_is() -> None:
    text = (ROOT / "docs" / "cache.md").read_text()
    named = set(re.findall(r"\b([A-Z][a-z]+(?:[A-Z][a-z]+)+)\(", text)) | set(re.findall(r"`([A-Z]\w+)", text))
    public = set(kvpredict.cache.__all__) | {"KvpredictError", "MissingExtra", "KVPREDICT_CACHE"}
    assert named - public == set()
    tests = re.findall(r"`(test_\w+)`", text)
    assert len(tests) > 10
    assert all((ROOT / "tests" / "cache" / f"{name}.py").exists() for name in tests)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(re.sub(r"(?m)^(.*)\bawait\b ", r"\1", block), "docs/cache.md", "exec")
