"""The page's code runs as it stands, with a tiny model."""

import re
from pathlib import Path

import torch

import kvpredict as kvp
from tests.llm.decode import models

PAGE = Path(__file__).parents[3] / "docs" / "decode_cache.md"


def test_the_code_of_the_page_runs(capsys) -> None:
    on, ids = models.model("gpt2"), models.tokens(1, 190)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 4
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names = {"kvp": kvp, "model": on, "ids": ids, "inputs": inputs, "mask": inputs["attention_mask"]}
    for block in blocks:
        small = block.replace("768", "100").replace("192", "60")
        exec(compile(small, str(PAGE), "exec"), names)
    assert names["new"].shape == (1, 200)
    assert "Interval(mean=" in capsys.readouterr().out


def test_the_page_names_every_policy() -> None:
    text = PAGE.read_text()
    for name in models.NAMES:
        assert f"`{name}`" in text
