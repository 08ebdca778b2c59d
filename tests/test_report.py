"""The report: complete, self-contained, well-formed, and safe whatever names a trace brings."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from kvpredict.report import draw, render

NASTY = '<script>alert("1")</script>&\'\x07'
VOID = {"meta", "br", "link", "img", "hr"}


def row(policy: str, ratio: float | None, *, oracle: bool = False, capacity: int = 50) -> dict[str, Any]:
    return {
        "policy": policy,
        "oracle": oracle,
        "capacity": capacity,
        "unit": "objects",
        "object_miss_ratio": ratio,
        "byte_miss_ratio": None if ratio is None else ratio / 2,
        "gap_closed": None if ratio is None else 1 - ratio,
        "requests_per_second": 3.2e6,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    policies = ["learned", "lru", "arc", "belady"]
    return {
        "trace": {"name": "orders", "requests": 1000, "unique": 100, "footprint_bytes": None, "columns": ["op"],
                  "columns_map": {"key": "url"}, "skipped": 0, "span_seconds": 1.5},
        "subject": "learned",
        "capacity": {"count": 50, "unit": "objects"},
        "split": {"at": 500, "trained_on": 500, "compared_on": 500},
        "policies": [row("belady", 0.1, oracle=True), row("learned", 0.2), row("arc", 0.3), row("lru", 0.4)],
        "curves": [
            {"policy": p, "fraction": [0.1, 0.5], "capacity": [10, 50], "object_miss_ratio": [0.5, 0.2 + i / 10],
             "byte_miss_ratio": [0.4, 0.1]}
            for i, p in enumerate(policies)
        ],
        "series": [
            {"policy": p, "start": [500, 600, 700], "object_miss_ratio": [0.2, None, 0.3], "byte_miss_ratio": [0, 0, 0]}
            for p in policies
        ],
        "learned": {
            "metrics": {"roc_auc": 0.87654, "log_loss": None},
            "calibration": {"predicted": [0.1, 0.9], "observed": [0.2, 0.8], "count": [10, 10]},
            "importance": {"recency": 0.75, "gap_1": 0.25},
            "folds": [{"roc_auc": 0.8}, {"roc_auc": None}],
            "settings": {"learner": "lightgbm", "capacity": 50},
        },
        "config": {"seed": 0, "name": "café"},
        "versions": {"python": "3.11.7", "torch": None},
        "machine": {"system": "Linux"},
        "overrides": ["capacity.fraction=0.5"],
        "seed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 12.34,
    }  # fmt: skip


class Page(HTMLParser):
    """Collects texts, tags and links, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(result: dict[str, Any]) -> tuple[str, Page]:
    text = render(result, draw(result))
    return text, Page(text)


def test_it_shows_the_figures_and_where_they_come_from(result: dict[str, Any]) -> None:
    _, shown = page(result)
    for figure in ("0.2000", "50.0%", "3.2 M", "0.8765", "1 of 3", "kvpredict capacity.fraction=0.5", "12.3 s", "café"):
        assert figure in shown.text, figure
    assert "torch" not in shown.text, "what is not installed is not listed"
    assert "learned" in shown.text


def test_it_needs_nothing_from_outside(result: dict[str, Any]) -> None:
    text, shown = page(result)
    assert not {"script", "link", "img", "iframe", "object"} & set(shown.tags)
    assert all(link.startswith("#") for link in shown.links)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_plot_is_an_svg_with_its_own_names(result: dict[str, Any]) -> None:
    plots = draw(result)
    assert set(plots) == {"curves", "curves_bytes", "windows", "calibration", "importance"}
    names: list[str] = []
    for svg in plots.values():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        names += re.findall(r'<clipPath id="([^"]+)"', svg)
    assert names
    assert len(names) == len(set(names)), "clip paths of two plots must not meet in one page"
    texts = "".join(ElementTree.fromstring(plots["curves"]).itertext())
    for policy in ("learned", "lru", "arc", "belady", "10%", "50%"):
        assert policy in texts


def test_the_guard_is_drawn_where_a_policy_gives_an_account(result: dict[str, Any]) -> None:
    series = {"request": [0, 100, 200], "leader": ["lru", "arc", "lru"], "lambda": [3.0, 1.5, None]}
    result["accounts"] = [{"policy": "guarded", "counts": {"fits": 3}, "series": series}]
    plots = draw(result)
    text = "".join(ElementTree.fromstring(plots["guarded"]).itertext())
    for words in ("arc led", "lru led", "lambda"):
        assert words in text
    assert "who led" in page(result)[1].text


def test_drawing_twice_gives_the_same_bytes(result: dict[str, Any]) -> None:
    assert page(result)[0] == page(result)[0]


def test_texts_are_escaped(result: dict[str, Any]) -> None:
    result["trace"] |= {"name": NASTY, "path": NASTY, "columns_map": {NASTY: NASTY}}
    result["learned"]["importance"] = {NASTY: 0.6, "$x^2": 0.4}
    result["learned"]["settings"]["learner"] = NASTY
    result["config"]["name"] = NASTY
    result["overrides"] = [NASTY]
    for some in (result["policies"], result["curves"], result["series"]):
        some[1]["policy"] = NASTY
    text, shown = page(result)
    assert "script" not in shown.tags
    assert "<script" not in text
    assert "<script>" in shown.text
    for svg in draw(result).values():
        ElementTree.fromstring(svg)


def test_a_run_without_learning(result: dict[str, Any]) -> None:
    result |= {"learned": None, "subject": "arc", "split": {"at": 0, "trained_on": 0, "compared_on": 1000}}
    assert set(draw(result)) == {"curves", "curves_bytes", "windows"}
    _, shown = page(result)
    assert "The learned policy" not in shown.text
    assert "trained on" not in shown.text


def test_a_run_with_next_to_nothing(result: dict[str, Any]) -> None:
    result |= {"policies": [row("lru", None)], "curves": [], "series": [], "learned": None, "subject": "lru"}
    assert draw(result) == {}
    _, shown = page(result)
    assert "Plots" not in shown.text


def test_several_capacities(result: dict[str, Any]) -> None:
    result["policies"] = [row("lru", 0.4, capacity=c) for c in (10, 5000)]
    _, shown = page(result)
    assert "5,000" in shown.text


def test_equal_byte_ratios_are_drawn_once(result: dict[str, Any]) -> None:
    for r in result["policies"]:
        r["byte_miss_ratio"] = r["object_miss_ratio"]
    assert "curves_bytes" not in draw(result)
