"""The decode cache's experiment: parts share no document, facts are said before they are asked for, tables add up."""

import numpy as np
import pytest

from experiments.decode_cache.documents import LEAST, Document, _part, _read
from experiments.decode_cache.facts import PREFIX, with_facts
from experiments.decode_cache.tables import added, by_genre, learners, losses, retrieval


@pytest.mark.parametrize("genre", ["help", "code"])
def test_documents_of_python_itself_are_divided_by_name(genre: str) -> None:
    documents: list[Document] = _read(genre)
    assert len(documents) == len({d.name for d in documents}) > 5
    assert {d.part for d in documents} == {"train", "validation", "test"}
    assert all(d.part == _part(genre, d.name) and len(d.text) >= LEAST for d in documents)


def test_licences_and_two_novels_are_for_the_test_alone() -> None:
    assert _part("licences", "GPL-3") == _part("novels", "PRIDE AND PREJUDICE") == "test"
    assert _part("novels", "EMMA") == "train"


def test_facts_are_said_in_the_prefix_and_asked_for_after_it() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {chr(i): i for i in range(128)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [])))
    plain = [[ord("x")] * 1024 for _ in range(40)]
    out = with_facts(plain, tokenizer, 0.5)
    assert [len(tokens) for tokens in out] == [1024] * 40
    changed = ["".join(map(chr, tokens)) for tokens in out if set(tokens) != {ord("x")}]
    assert 10 <= len(changed) <= 30
    for text in changed:
        asked = [line for line in text[PREFIX:].split("\n") if " is " in line]
        assert len(asked) in (2, 3)
        for line in asked:
            answer = line.rpartition(" is ")[2].strip("x.")
            assert answer in text[:PREFIX]
    assert with_facts(plain, tokenizer, 0.5) == out


def rows(policy: str, budget: float, nll: list[float]) -> list[dict[str, str]]:
    return [
        {"part": "test", "length": "1024", "genre": "code" if n % 2 else "help", "document": f"d{n}", "offset": "0",
         "mode": "once", "policy": policy, "budget": str(budget), "nll": str(value)}
        for n, value in enumerate(nll)
    ]  # fmt: skip


def test_tables_say_shares_and_paired_intervals() -> None:
    full = np.linspace(2, 3, 6)
    h2o, learned = full + 0.1 + 0.01 * np.arange(6), full + 0.02
    given = [*rows("full", 1.0, list(full)), *rows("h2o", 0.25, list(h2o)), *rows("learned", 0.25, list(learned[:5]))]
    found = added(given, "test")
    assert set(found) == {(1024, "once", "h2o", 0.25), (1024, "once", "learned", 0.25)}
    text = losses(found, 1024, "once")
    assert "| learned | 0.0200 | 0.17 (-0.100, -0.120 to -0.080) |" in text  # 0.02 / 0.12, over the five of both
    assert "| h2o | 0.1250 |  |" in text
    assert "| code | 3 | 0.1300 | 0.17 |" in by_genre(found, 1024, "once", 0.25)
    assert added(given, "validation") == {}


def test_tables_of_retrieval_and_learners() -> None:
    found = [
        {"part": "test", "policy": "h2o", "budget": "0.25", "kind": kind, "full": full, "kept": kept}
        for kind, full, kept in (
            ("passkey", "1", "1"),
            ("passkey", "1", "0"),
            ("passkey", "0", "1"),
            ("needle", "1", "1"),
        )
    ]
    assert "| h2o | 25.0% | 1 of 2 | 1 of 1 |" in retrieval(found, "test")
    assert "| ridge |  |  | 0.0500 |  |" in learners(
        [{"learner": "ridge", "scope": "head", "budget": "0.25", "added_nll": "0.05", "sequences": "9"}]
    )
