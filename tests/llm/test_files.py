"""Readers of requests: what comes out of each kind of file, and what is said of a bad one."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvpredict as kvp
from kvpredict.core.errors import KvpredictError, TraceError, UnknownName
from kvpredict.llm.blocks import block_hashes
from kvpredict.llm.hints import FINISH, said, session_of
from kvpredict.llm.prefix import simulate_prefix
from kvpredict.llm.request_files import RequestLog, read_requests
from kvpredict.llm.requests import RequestTrace

FIXTURES = Path(__file__).parents[1] / "fixtures" / "traces"


def test_mooncake_and_bailian() -> None:
    moon, qwen = (read_requests(FIXTURES / f"{name}.jsonl") for name in ("mooncake", "bailian"))
    assert (moon.block_size, qwen.block_size) == (512, 16)
    assert qwen.sessions.tolist() == [159, 160, 159]
    assert qwen.continued.tolist() == [True, False, False]
    assert qwen.prompts.tolist() == [3, 2, 4]
    assert qwen.parent[qwen.ids].tolist() == [-1, qwen.ids[0], qwen.ids[1], -1, qwen.ids[0], -1, *qwen.ids[5:8]]


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_chat_logs_keep_hashes_only(tmp_path: Path) -> None:
    system = {"role": "system", "content": "x" * 30}
    first = [system, {"role": "user", "content": "secret question"}]
    second = [*first, {"role": "assistant", "content": "an answer"}, {"role": "user", "content": [{"text": "more"}]}]
    path = write(
        tmp_path / "log.jsonl",
        {"timestamp": "2026-01-01T00:00:10+00:00", "messages": second, "session_id": "a", "finish_reason": "stop"},
        {"timestamp": 1767225600, "messages": first, "session_id": "a", "usage": {"completion_tokens": 7}},
    )
    trace = read_requests(
        path, tokenize=lambda text: text.encode(), block_size=8, continues=lambda text: len(text) / 100
    )
    assert trace.times.tolist() == [1767225600, 1767225610]
    assert trace.output_tokens.tolist() == [7, 0]
    assert trace.sessions.tolist() == [session_of({"session": "a"})] * 2
    assert trace.hints["continues"].tolist() == [0.15, 0.04]
    assert np.isnan(trace.hints["finish"][0])
    shared = trace.prompts[0]  # the first prompt's full blocks begin the second
    assert trace.blocks[:shared].tolist() == trace.blocks[shared : 2 * shared].tolist()
    assert "secret" not in repr(vars(trace))


def test_chat_logs_may_hold_the_answer_as_the_api_gave_it(tmp_path: Path) -> None:
    asked = {"timestamp": 1, "messages": [{"role": "user", "content": "a question"}]}
    reply = {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 9}}
    path = write(
        tmp_path / "log.jsonl", asked | {"response": reply}, asked | {"response": {"body": reply}}, asked | reply
    )
    trace = read_requests(path, tokenize=str.encode)
    assert trace.output_tokens.tolist() == [9, 9, 9]
    assert trace.hints["finish"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("gives", [None, "words", ["a"], [1.5]])
def test_a_tokenizer_that_gives_no_ids_is_named(tmp_path: Path, gives: object) -> None:
    path = write(tmp_path / "log.jsonl", {"timestamp": 1, "messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(TraceError, match="tokenize must return token ids"):
        read_requests(path, tokenize=lambda _: gives, on_error="skip")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenize": lambda _: 1 / 0}, r"tokenize fails on a text \(ZeroDivisionError"),
        ({"tokenize": lambda t: [1] if "KV" in t else 1 / 0}, r"line 1: .*tokenize fails on a message \(ZeroDiv"),
        (
            {"tokenize": lambda t: [1] if "KV" in t else ["a"]},
            r"line 1: .*must be a sequence of whole token ids, got \['a'",
        ),
        ({"tokenize": str.encode, "continues": lambda _: "soon"}, "line 1: .*hint 'continues' must be a number"),
        (
            {"tokenize": str.encode, "continues": lambda _: 7},
            "line 1: .*hint 'continues' must be between 0 and 1, got 7",
        ),
        ({"tokenize": str.encode, "continues": 5}, "continues must be callable, got int"),
    ],
)
def test_functions_of_the_caller_that_fail_are_named(tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(KvpredictError, match=message):
        read_requests(write(tmp_path / "log.jsonl", chat(1)), **given)


@pytest.mark.parametrize("size", [0, 1.5, "16", True])
def test_a_block_size_is_a_whole_number(size: object) -> None:
    with pytest.raises(TraceError, match="block_size must be a whole number"):
        read_requests(FIXTURES / "mooncake.jsonl", block_size=size)


def moon(time: float, tokens: int, ids: list[int]) -> dict[str, object]:
    return {"timestamp": time, "input_length": tokens, "output_length": 1, "hash_ids": ids}


def test_requests_are_sorted_by_time_and_those_without_blocks_are_requests(tmp_path: Path) -> None:
    rows = [moon(3000, 1000, [1, 2]), moon(1000, 600, [1, 3]), moon(2000, 7, []), moon(4000, 10, [4])]
    path = write(tmp_path / "moon.jsonl", *rows)
    with path.open("a") as file:
        file.write("{damaged\n")
    trace = read_requests(path, on_error="skip")
    assert trace.times.tolist() == [1, 2, 3, 4]
    assert trace.input_tokens.tolist() == [600, 7, 1000, 10]
    assert trace.prompts.tolist() == [2, 0, 2, 1]
    assert simulate_prefix(trace, "lru", 2).requests == 4
    assert {k: trace.info[k] for k in ("reordered", "requests", "empty", "skipped")} == {
        "reordered": 2, "requests": 4, "empty": 1, "skipped": 1}  # fmt: skip


@pytest.mark.parametrize("kind", ["mooncake", "bailian"])
def test_block_ids_may_be_unsigned(tmp_path: Path, kind: str) -> None:
    line = json.loads((FIXTURES / f"{kind}.jsonl").read_text().splitlines()[0])
    line |= {"input_length": 48 if kind == "bailian" else 1536, "hash_ids": [2**64 - 1, 2**63, 7]}
    assert read_requests(write(tmp_path / "log.jsonl", line)).blocks.tolist() == [-1, -(2**63), 7]
    keys = kvp.read_trace(tmp_path / "log.jsonl")
    assert len(keys) == 3
    line["hash_ids"] = [2**64]
    with pytest.raises(TraceError, match="hash_ids, a list of 64-bit integers"):
        read_requests(write(tmp_path / "log.jsonl", line))


def test_prompts_must_fit_their_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "moon.jsonl", moon(0, 600, [1, 2]), moon(1, 10**6, [1, 2, 3, 4]), moon(2, 10, [1, 2, 3]))
    with pytest.raises(TraceError, match=r"line 2: .*1000000 tokens in 4 blocks of 512: give the block_size"):
        read_requests(path)
    assert read_requests(path, on_error="skip").info["skipped"] == 2
    with pytest.raises(TraceError, match=r"line 1: .*600 tokens in 0 blocks of 512"):
        read_requests(write(tmp_path / "moon.jsonl", moon(0, 600, [])))


def test_the_first_line_may_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n{damaged\n" + json.dumps(moon(0, 600, [1, 2])) + "\n")
    assert len(read_requests(path, on_error="skip")) == 1
    with pytest.raises(TraceError, match="line 2"):
        read_requests(path)


def test_request_log_comes_back_as_written(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl", block_size=16)
    blocks = block_hashes(range(64), 16)
    log.write(5.0, blocks, prompt_blocks=3, input_tokens=50, output_tokens=14, session=3, hints={"continues": 0.5})
    log.write(9.0, blocks[:2], prompt_blocks=2, input_tokens=33, output_tokens=0)
    log.close()
    trace = read_requests(tmp_path / "log.jsonl")
    assert trace.block_size == 16
    assert trace.blocks.tolist() == [*blocks, *blocks[:2]]
    assert trace.prompts.tolist() == [3, 2]
    assert trace.sessions.tolist() == [3, -1]
    assert trace.hints["continues"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)


def test_prompts_of_a_request_log_must_fit_their_blocks(tmp_path: Path) -> None:
    fits = [record(block_size=16, blocks=[1, 2], prompt_blocks=2, input_tokens=n) for n in (17, 47)]
    wrong = [record(block_size=16, blocks=[1, 2], prompt_blocks=2, input_tokens=n) for n in (0, 16, 48, 10**15)]
    trace = read_requests(write(tmp_path / "log.jsonl", *fits, *wrong), on_error="skip")
    assert (trace.input_tokens.tolist(), trace.info["skipped"]) == ([17, 47], 4)
    with pytest.raises(TraceError, match=r"line 1: .*1000000000000000 tokens in 2 blocks of 16"):
        read_requests(write(tmp_path / "log.jsonl", wrong[-1]))
    unsaid = record(blocks=[1, 2], prompt_blocks=2, input_tokens=60)
    assert read_requests(write(tmp_path / "log.jsonl", unsaid), block_size=32).block_size == 32
    with pytest.raises(TraceError, match="60 tokens in 2 blocks of 16: give the block_size"):
        read_requests(tmp_path / "log.jsonl")


def test_runs_in_one_log_follow_each_other_whatever_their_clocks_count_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, wall = tmp_path / "log.jsonl", NEW_YEAR
    for start in (500_000.0, 100.0):  # the second after a reboot
        monkeypatch.setattr("kvpredict.llm.request_files.time.time", lambda wall=wall: wall)
        log = RequestLog(path, 16, clock=lambda start=start: start)
        for k in range(3):
            log.write(start + 60 * k, [k], prompt_blocks=1, input_tokens=16, output_tokens=0)
            monkeypatch.setattr("kvpredict.llm.request_files.time.time", lambda wall=wall: wall - 5000)  # it is set
        log.close()
        wall += 86_400
    trace = read_requests(path)
    assert (trace.times - NEW_YEAR).tolist() == [0, 60, 120, 86_400, 86_460, 86_520]
    assert trace.info["reordered"] == 0
    assert not caplog.text


def test_a_log_of_several_clocks_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [500_000, 500_060, 500_030, 100, 160, 500_200]  # one request outlasts another; then a reboot
    path = write(tmp_path / "log.jsonl", *(record(time=time) for time in times))
    assert read_requests(path).info["reordered"] == 3
    assert "2 of 6 requests are more than an hour earlier than one above them" in caplog.text


def stored(parent: object, *hashes: object, block_size: int = 16) -> dict[str, object]:
    return {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "block_size": block_size}


def test_kv_events_give_chains(tmp_path: Path) -> None:
    path = write(
        tmp_path / "events.jsonl",
        {"ts": 1.0, "events": [stored(None, 11, 12)]},
        {"ts": 2.0, "events": [{"type": "BlockRemoved", "block_hashes": [12]}, stored(11, "ff")]},
    )
    trace = read_requests(path)
    assert trace.blocks.tolist() == [11, 12, 11, 255]
    assert trace.starts.tolist() == [0, 2, 4]


def requests_of(path: Path) -> list[tuple[float, list[int], list[int]]]:
    """Return each request's time, prompt and generated blocks."""
    trace = read_requests(path)
    found = []
    for i, (low, high) in enumerate(zip(trace.starts[:-1], trace.starts[1:], strict=True)):
        middle = low + trace.prompts[i]
        assert trace.input_tokens[i] == 16 * (middle - low)
        assert trace.output_tokens[i] == 16 * (high - middle)
        found.append((trace.times[i], trace.blocks[low:middle].tolist(), trace.blocks[middle:high].tolist()))
    return found


def test_kv_events_of_one_request_are_joined(tmp_path: Path) -> None:
    """As vLLM emits them: a prompt in pieces, then the answer block by block; two requests at once, and a next turn."""
    path = write(
        tmp_path / "events.jsonl",
        {"ts": 1.0, "events": [stored(None, 1, 2, 3)]},
        {"ts": 1.5, "events": [stored(3, 4, 5), stored(2, 30, 31)]},  # the other shares two blocks
        {"ts": 2.5, "events": [stored(31, 32), stored(5, 6)]},
        {"ts": 12.0, "events": [stored(6, 7)]},
        {"ts": 12.1, "events": [stored(32, 33)]},
        {"ts": 13.0, "events": [stored(7, 8, 9)]},  # a tool has answered
        {"ts": 13.8, "events": [stored(9, 10)]},
        {"ts": 40.0, "events": [stored(33, 34)]},  # too late to be of one answer
        {"ts": 60.0, "events": [stored(34, 35, 36)]},
    )
    assert requests_of(path) == [
        (1.0, [1, 2, 3, 4, 5], [6, 7]),
        (1.5, [1, 2, 30, 31], [32, 33]),
        (13.0, [1, 2, 3, 4, 5, 6, 7, 8, 9], [10]),
        (40.0, [1, 2, 30, 31, 32, 33, 34], []),
        (60.0, [1, 2, 30, 31, 32, 33, 34, 35, 36], []),
    ]


def test_kv_events_of_a_prompt_that_is_stored_again_are_joined(tmp_path: Path) -> None:
    """Evicted meanwhile, it is computed once more, in as many pieces."""
    pieces = [
        {"ts": start + k / 2, "events": [stored(2 * k or None, 2 * k + 1, 2 * k + 2)]}
        for start in (1.0, 60.0)
        for k in range(3)
    ]
    whole = [1, 2, 3, 4, 5, 6]
    assert requests_of(write(tmp_path / "events.jsonl", *pieces)) == [(1.0, whole, []), (60.0, whole, [])]


def test_kv_events_of_one_page_each_are_joined(tmp_path: Path) -> None:
    """As SGLang emits them: a batch has an event for each page of a prompt, or of all that was generated."""
    path = write(
        tmp_path / "events.jsonl",
        {"ts": 1.0, "events": [stored(None, 1), stored(1, 2), stored(2, 3)]},
        {"ts": 2.0, "events": [stored(3, 4), stored(4, 5)]},  # the prompt's next piece
        {"ts": 3.0, "events": [stored(5, 6)]},
        {"ts": 4.0, "events": [stored(6, 7), stored(7, 8), stored(8, 9)]},  # a next turn: its first page no answer
        {"ts": 9.0, "events": [stored(9, 10), stored(10, 11)]},  # an answer
    )
    assert requests_of(path) == [
        (1.0, [1, 2, 3, 4, 5], [6]),
        (4.0, [1, 2, 3, 4, 5, 6, 7, 8, 9], []),
        (9.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], []),
    ]


def test_kv_events_of_another_session_or_block_size_are_not_joined(tmp_path: Path) -> None:
    path = write(
        tmp_path / "events.jsonl",
        {"ts": 1.0, "events": [stored(None, 1, 2) | {"session_id": "a"}]},
        {"ts": 1.1, "events": [stored(2, 3) | {"session_id": "b"}]},
    )
    assert requests_of(path) == [(1.0, [1, 2], []), (1.1, [1, 2, 3], [])]
    path = write(tmp_path / "sizes.jsonl", {"ts": 1.0, "events": [stored(None, 1), stored(1, 2, block_size=7)]})
    with pytest.raises(TraceError, match="holds blocks of 7, 16 tokens"):
        read_requests(path)


def test_kv_events_whose_blocks_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    for events in ([stored(None, 1, 2, 1)], [stored(None, 1, 2), stored(2, 3), stored(3, 1)]):
        path = write(tmp_path / "events.jsonl", {"ts": 1.0, "events": events})
        with pytest.raises(TraceError, match="a block is its own ancestor"):
            read_requests(path)


def chat(time: object, **more: object) -> dict[str, object]:
    return {"timestamp": time, "messages": [{"role": "user", "content": "a question"}], **more}


NEW_YEAR = 1767225600  # 2026


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        ([NEW_YEAR, NEW_YEAR + 60.5], None),
        ([NEW_YEAR * 1000, NEW_YEAR * 1000 + 60_500], None),
        ([NEW_YEAR * 10**6, NEW_YEAR * 10**6 + 60_500_000], None),
        ([NEW_YEAR * 10**9, NEW_YEAR * 10**9 + 60_500_000_000], None),
        ([str(NEW_YEAR), f"{NEW_YEAR + 60}.5"], None),
        (["2026-01-01T00:00:00Z", "2026-01-01T01:01:00.5+01:00"], None),
        (["2026-01-01 00:00:00", NEW_YEAR * 1000 + 60_500], None),  # no zone: UTC
    ],
)
def test_times_of_every_unit_are_seconds(tmp_path: Path, given: list[object], unit: str | None) -> None:
    path = write(tmp_path / "log.jsonl", *map(chat, given))
    assert read_requests(path, tokenize=str.encode, time_unit=unit).times.tolist() == [NEW_YEAR, NEW_YEAR + 60.5]


def test_the_unit_of_times_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", chat(0), chat(2 * 10**11))  # since the server's start
    assert read_requests(path, tokenize=str.encode, time_unit="us").times.tolist() == [0, 200_000]
    path = write(tmp_path / "moon.jsonl", moon(0, 600, [1, 2]), moon(5, 600, [1, 2]))
    assert read_requests(path).times.tolist() == [0, 0.005]
    assert read_requests(path, time_unit="s").times.tolist() == [0, 5]
    assert read_requests(FIXTURES / "bailian.jsonl", time_unit="ms").times[-1] < 1
    for wrong in (path, write(tmp_path / "log.jsonl", chat(0))):
        with pytest.raises(UnknownName, match=r"unknown time unit 'msec'. Did you mean 'ms'"):
            read_requests(wrong, tokenize=str.encode, time_unit="msec")
    with pytest.raises(UnknownName, match=r"unknown on_error 'skp'. Did you mean 'skip'"):
        read_requests(path, on_error="skp")


@pytest.mark.parametrize("time", [None, True, "soon", "", "nan", float("inf"), [1], {"t": 1}, 10**40])
def test_a_time_that_cannot_be_read_is_named(tmp_path: Path, time: object) -> None:
    path = write(tmp_path / "log.jsonl", chat(1), chat(time))
    with pytest.raises(TraceError, match=r"log.jsonl, line 2: .*expected a time as a number or in ISO 8601"):
        read_requests(path, tokenize=str.encode)
    assert read_requests(path, tokenize=str.encode, on_error="skip").info["skipped"] == 1


def test_times_of_several_units_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", chat(NEW_YEAR * 1000), chat(NEW_YEAR))
    with pytest.raises(TraceError, match=r"line 2: .*looks like one in s, those before it are in ms: give time_unit"):
        read_requests(path, tokenize=str.encode)


def record(**change: object) -> dict[str, object]:
    return {"time": 1, "blocks": [1], "prompt_blocks": 1, "input_tokens": 9, "output_tokens": 1} | change


def test_logs_and_events_may_be_in_milliseconds(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", record(time=NEW_YEAR * 1000))
    assert read_requests(path).times.tolist() == [NEW_YEAR]
    path = write(tmp_path / "events.jsonl", {"ts": NEW_YEAR * 1000, "events": [stored(None, 11)]})
    assert read_requests(path).times.tolist() == [NEW_YEAR]


def test_blocks_are_of_one_size(tmp_path: Path) -> None:
    events = [{"ts": k, "events": [stored(None, k, block_size=size)]} for k, size in enumerate((16, 32, 16))]
    logs = [record(block_size=size) for size in (16, 32, 16)]
    for name, lines in (("events", events), ("log", logs)):
        path = write(tmp_path / f"{name}.jsonl", *lines)
        for given in (None, 16):
            with pytest.raises(TraceError, match=r"holds blocks of 16, 32 tokens.*split the file"):
                read_requests(path, block_size=given)
        path = write(tmp_path / f"{name}.jsonl", lines[0], lines[2])
        assert read_requests(path, block_size=16).block_size == 16
        with pytest.raises(TraceError, match="holds blocks of 16 tokens, block_size=32 was given: leave it out"):
            read_requests(path, block_size=32)


def test_requests_that_cannot_be_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    impossible = [record(input_tokens=-5), record(prompt_blocks=2), record(block_size=-1), record(session=0.5)]
    path = write(tmp_path / "log.jsonl", record(), *impossible, record())
    trace = read_requests(path, on_error="skip")
    assert (len(trace), trace.info["skipped"]) == (2, 4)
    assert "skipped 4 of 6 records; the first is at line 2: the request does not fit: input_tokens is -5" in caplog.text
    replies = [{"usage": {"completion_tokens": n}} for n in (1, -1, "many", 10**30)]
    path = write(tmp_path / "chat.jsonl", *(chat(1, **reply) for reply in replies))
    trace = read_requests(path, tokenize=str.encode, on_error="skip")
    assert (trace.output_tokens.tolist(), trace.info["skipped"]) == ([1], 3)
    fits = [moon(k, 600, [1, 2]) for k in range(4)]
    path = write(tmp_path / "moon.jsonl", *fits[:2], moon(1.5, 10**6, [7, 8, 9]), *fits[2:], {"damaged": 1})
    trace = read_requests(path, on_error="skip")
    assert trace.times.tolist() == [0, 0.001, 0.002, 0.003]
    assert trace.blocks.tolist() == [1, 2] * 4
    assert trace.info["skipped"] == 2
    assert "line 3: the request does not fit: 1000000 tokens in 3 blocks of 512" in caplog.text
    with pytest.raises(TraceError, match=r"holds no request; .* at line 1: .*600 tokens in 2 blocks of 16"):
        read_requests(path, block_size=16, on_error="skip")
    path = write(tmp_path / "log.jsonl", record(output_tokens=-1))
    with pytest.raises(TraceError, match="holds no request; the first fault is at line 1"):
        read_requests(path, on_error="skip")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": []}', "give tokenize="),
        ('{"blocks": [1], "time": 0}', "line 1: the request does not fit: prompt_blocks is missing"),
        (
            '{"blocks": [1], "time": null, "prompt_blocks": 1, "input_tokens": 9, "output_tokens": 1}',
            "expected a time",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 2, "input_tokens": 9, "output_tokens": 1}',
            "prompt_blocks is 2, expected 0 to 1",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 1, "input_tokens": -9, "output_tokens": 1}',
            "line 1: .*input_tokens is -9",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 1, "input_tokens": 9, "output_tokens": 1, "block_size": 0}',
            "line 1: .*block_size is 0",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 0.5, "input_tokens": 9, "output_tokens": 1}',
            "prompt_blocks: expected a whole number, found 0.5",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 1, "input_tokens": 1e300, "output_tokens": 1}',
            "line 1: .*input_tokens is 1000",
        ),
        (
            '{"blocks": [1], "time": 1, "prompt_blocks": 1, "input_tokens": 9, "output_tokens": 1, "session": 1.5}',
            "line 1: .*a session must be a whole number or a text, got 1.5",
        ),
        ('{"blocks": [1], "time": 1, "prompt_blocks": 1}', "input_tokens is missing"),
        (
            '{"ts": 1, "events": [{"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": 2, '
            '"block_size": 16}]}',
            "line 1: .*its own ancestor",
        ),
        ('{"events": 5, "ts": 1}', "line 1: expected events, a list of them, found int"),
        ('{"ts": 1, "events": []}\n{"ts": 2}', "line 2: expected events, a list of them, which is missing"),
        ('{"x": 1}', "found the fields x"),
        ("[1]", "a JSON object a line"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(TraceError, match=message) as caught:
        read_requests(tmp_path / "bad.jsonl")
    assert "bad.jsonl" in str(caught.value)


def test_ids_of_a_blocks_own_tokens_are_chained() -> None:
    trace = RequestTrace.from_lists([0, 1], [[1, 9], [2, 9]], 16)  # 9 after 1 is another prefix than 9 after 2
    assert trace.unique == 4
    assert trace.parent[trace.ids].tolist() == [-1, trace.ids[0], -1, trace.ids[2]]
    assert trace.depth[trace.ids].tolist() == [0, 1, 0, 1]


def test_chat_logs_tell_calls_tools_and_images_apart(tmp_path: Path) -> None:
    def request(*, call: str = "", tool: str = "", image: str = "", session: int | None = None) -> dict:
        parts = [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": image}}]
        asked = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": call}}]}
        named = {} if session is None else {"kv_transfer_params": {"kvpredict": {"session": session}}}
        return {"time": 1, "messages": [{"role": "user", "content": parts}, asked], "tools": [{"name": tool}], **named}

    several = [request(), request(call="a" * 40), request(tool="b" * 40), request(image="c" * 40)]
    trace = read_requests(write(tmp_path / "log.jsonl", *several), tokenize=lambda t: list(t.encode()))
    ends = {int(trace.blocks[end - 1]) for end in trace.starts[1:]}
    assert len(ends) == 4
    assert (trace.input_tokens[1:] == trace.input_tokens[0] + 40).all()
    again = [request(session=0), request(session=7), request(session=0)]
    trace = read_requests(write(tmp_path / "again.jsonl", *again), tokenize=lambda t: list(t.encode()))
    assert trace.sessions is not None
    assert trace.sessions.tolist() == [0, 7, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [1.0, 0.0]}, "sort the requests"),
        ({"input_tokens": [1]}, "input_tokens has 1 values for 2"),
        ({"hints": {"continue": np.zeros(2)}}, "Did you mean 'continues'"),
        ({"hints": {"priority": [np.nan, 101.0]}}, "'priority' of request 1 must be between -100 and 100, got 101"),
        ({"hints": {"ttl": [-1.0, np.nan]}}, "'ttl' of request 0 must be between 0 and inf, got -1"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"prompt_blocks": np.array([1, 5])}, "prompt_blocks of request 1 cannot be 5"),
        ({"prompt_blocks": np.array([-3, 1])}, "prompt_blocks of request 0 cannot be -3"),
        ({"output_tokens": [0, -500]}, "output_tokens of request 1 cannot be -500"),
    ],
)
def test_traces_that_contradict_themselves(change: dict, message: str) -> None:
    whole = {"times": [0.0, 1.0], "blocks": [[1], [2]], "block_size": 16, **change}
    with pytest.raises(KvpredictError, match=message):
        RequestTrace.from_lists(**whole)


def test_columns_may_be_lists() -> None:
    trace = RequestTrace.from_lists([0, 1], [[1], [2]], 16, sessions=[4, -1], hints={"continues": [0.5, True]})
    assert trace.sessions is not None
    assert (trace.sessions.dtype, trace.sessions.tolist()) == (np.int64, [4, -1])
    assert trace.hints["continues"].tolist() == [0.5, 1.0]


TELLS = {"continues": 0.25, "priority": 1, "ttl": 60, "pin_tokens": 32, "pin_seconds": 9, "template": 5, "kind": 3}


def lines_of(kind: str) -> list[dict[str, object]]:
    """Return two lines of a format that tell nothing but what they must."""
    return {
        "mooncake": [moon(k, 600, [1, 2]) for k in range(2)],
        "bailian": [
            {"chat_id": k, "parent_chat_id": -1, "timestamp": k, "input_length": 9, "output_length": 1, "hash_ids": [1]}
            for k in range(2)
        ],
        "request_log": [record(), record()],
        "chat": [chat(1), chat(2)],
    }[kind]


@pytest.mark.parametrize("kind", ["mooncake", "bailian", "request_log", "chat"])
@pytest.mark.parametrize(
    "told",
    [
        {"session_id": "a81", "finish_reason": "length", "hints": TELLS},
        {"user": "a81", "hints": TELLS | {"finish": "length"}},
        {"kv_transfer_params": {"kvpredict": {"session": "a81", "finish": "length", **TELLS}}},
        {"kv_transfer_params": {"session": "a81", "finish": "length", **TELLS}},
        {"session": "a81", "finish": 1, **{name: value for name, value in TELLS.items() if name != "priority"},
         "hints": {"priority": 1}},
    ],
)  # fmt: skip
def test_lines_of_every_format_tell_the_same(tmp_path: Path, kind: str, told: dict[str, object]) -> None:
    first, second = lines_of(kind)
    trace = read_requests(write(tmp_path / "log.jsonl", first | told, second), tokenize=str.encode)
    assert trace.info["format"] == kind
    assert trace.sessions is not None
    assert trace.sessions.tolist() == [session_of({"session": "a81"}), second.get("chat_id", -1)]
    assert {name: column[0] for name, column in trace.hints.items()} == TELLS | {"finish": 1.0}
    assert [name for name, column in trace.hints.items() if not np.isnan(column[1])] in ([], ["kind"])


def test_beside_messages_priority_is_the_servers(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", chat(1, priority=9), {"priority": -1, "time": 2, "request": chat(2)})
    hint = read_requests(path, tokenize=str.encode).hints["priority"]
    assert hint.tolist() == pytest.approx([np.nan, -1], nan_ok=True)


def test_bailians_sessions_are_chats_unless_lines_name_others(tmp_path: Path) -> None:
    lines = (FIXTURES / "bailian.jsonl").read_text().splitlines()
    path = write(tmp_path / "b.jsonl", *(json.loads(line) | {"session": 5} for line in lines))
    assert read_requests(path).sessions.tolist() == [5, 5, 5]
    path.write_text("\n".join(reversed(lines)))  # a turn may stand before the one that it goes on from
    assert read_requests(path).sessions.tolist() == [159, 160, 159]

    lines = [*lines[:2], json.dumps(json.loads(lines[2]) | {"session": 5})]
    path.write_text("\n".join(lines))  # one line that names a session leaves the others their chats
    assert read_requests(path).sessions.tolist() == [159, 160, 5]
    lines = [json.dumps(json.loads(lines[0]) | {"session": 5}), lines[1], lines[2].replace(', "session": 5', "")]
    path.write_text("\n".join(lines))  # a turn of which nothing is said is of the session of the turn before
    assert read_requests(path).sessions.tolist() == [5, 160, 5]


def test_a_line_that_names_a_session_leaves_the_others_theirs(tmp_path: Path) -> None:
    lines = []
    for session in range(20):
        messages = []
        for turn in range(5):
            messages = [*messages, {"role": "user", "content": f"session {session} turn {turn} " * 6}]
            lines.append({"created": 3 * session + 100.0 * turn, "messages": messages})
    unnamed = read_requests(write(tmp_path / "log.jsonl", *lines), tokenize=str.encode)
    assert unnamed.continued.mean() == 0.8
    lines[7]["user"] = "bob"
    named = read_requests(write(tmp_path / "log.jsonl", *lines), tokenize=str.encode)
    assert named.sessions is not None
    bob = int(np.argmax(named.sessions))
    differ = np.flatnonzero(named.continued != unnamed.continued)
    # Only the turn before ends: its session is not bob's.
    assert [named.times[i] for i in differ] == [named.times[bob] - 100.0]
    assert named.next_turn[bob] == 100.0  # the turn after, which names none, goes on from it


def test_a_session_is_named_before_a_user() -> None:
    assert said({"user": "u"}, {"session_id": 4})[0] == 4
    assert said({"user": None, "metadata": {"user_id": 8}})[0] == 8
    assert said({"session": -1, "prompt_cache_key": "k", "safety_identifier": "s"})[0] == session_of({"session": "s"})
    assert said({"session": ""}, {}) == (None, {})
    with pytest.raises(KvpredictError, match="a session must be a whole number or a text, got True"):
        said({"session": True})


@pytest.mark.parametrize(
    ("reasons", "code"),
    [
        (("stop", "end_turn", "stop_sequence", "STOP"), "stop"),
        (("length", "max_tokens", "MAX_TOKENS", "model_context_window_exceeded"), "length"),
        (("tool_calls", "function_call", "tool_use", "pause_turn"), "tool_calls"),
        (("abort", "error", "content_filter", "refusal", "repetition"), "abort"),
        (("a reason of tomorrow", 17), None),
    ],
)
def test_reasons_to_finish(tmp_path: Path, reasons: tuple[str, ...], code: str | None) -> None:
    for reason in reasons:
        replies = [{"finish_reason": reason}, {"response": {"stop_reason": reason}},
                   {"response": {"choices": [{"finish_reason": reason, "stop_reason": None}]}}]  # fmt: skip
        path = write(tmp_path / "log.jsonl", *(chat(1) | reply for reply in replies))
        hints = read_requests(path, tokenize=str.encode).hints
        assert code is None or hints["finish"].tolist() == [FINISH.index(code)] * 3
        assert code is not None or "finish" not in hints


ASKED = {"messages": [{"role": "user", "content": "a question"}], "user": "u"}
REPLY = {"created": 7, "usage": {"completion_tokens": 3}, "choices": [{"finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "line",
    [
        ASKED | REPLY,
        ASKED | REPLY | {"timestamp": None, "time": None},
        {"request": ASKED, "response": REPLY},
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ASKED, "response": {"body": REPLY}},
        {"request": {"body": ASKED}, "response": {"status_code": 200, "body": REPLY}, "error": None},
        {"custom_id": "1", "params": ASKED, "created_at": "1970-01-01T00:00:07Z",
         "response": {"stop_reason": "end_turn", "usage": {"output_tokens": 3}}},
    ],
)  # fmt: skip
def test_where_logs_put_request_and_answer(tmp_path: Path, line: dict[str, object]) -> None:
    trace = read_requests(write(tmp_path / "log.jsonl", line, line), tokenize=str.encode)
    assert (trace.times.tolist(), trace.output_tokens.tolist()) == ([7, 7], [3, 3])
    assert trace.hints["finish"].tolist() == [0, 0]
    assert trace.sessions.tolist() == [session_of({"session": "u"})] * 2
    assert (
        trace.blocks == read_requests(write(tmp_path / "plain.jsonl", chat(1), chat(1)), tokenize=str.encode).blocks
    ).all()


def test_batches_without_times_keep_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch = [{"custom_id": str(k), "method": "POST", "url": "/v1/chat/completions", "body": ASKED} for k in range(3)]
    trace = read_requests(write(tmp_path / "log.jsonl", *batch), tokenize=str.encode)
    assert trace.times.tolist() == [0, 1, 2]
    assert "its first request has no time" in caplog.text
    with pytest.raises(TraceError, match=r"line 4: .*it has a time, and the first request of the file has none"):
        read_requests(write(tmp_path / "log.jsonl", *batch, chat(5)), tokenize=str.encode)


def test_a_system_prompt_beside_the_messages_parts_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", *(chat(1, system=text * 30) for text in "ab"))
    blocks = read_requests(path, tokenize=str.encode).blocks
    assert len(set(blocks.tolist())) == len(blocks)


def test_texts_are_kept_only_where_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", chat(2), chat(1, messages=[{"role": "user", "content": "earlier"}]))
    assert read_requests(path, tokenize=str.encode).texts is None
    assert list(read_requests(path, tokenize=str.encode, texts=True).texts) == ["earlier", "a question"]


def test_kv_events_in_the_engines_wire_form(tmp_path: Path) -> None:
    raw = [bytes([k]) * 32 for k in (1, 2, 3)]
    number = [int.from_bytes(h[-8:], "big", signed=True) for h in raw]
    b64 = [base64.b64encode(h).decode() for h in raw]
    urlsafe = base64.urlsafe_b64encode(b"\xff" * 8).decode()
    path = write(
        tmp_path / "events.jsonl",
        [1.0, [["BlockStored", b64[:2], None, [5] * 32, 16, None, "GPU", None]], 0],
        [20.0, [["BlockRemoved", [b64[0]]], ["AllBlocksCleared"], ["BlockStored", [raw[2].hex()], b64[1], [], 16]]],
        [21.0, [stored(raw[1].hex(), 2**64 - 2) | {"session_id": "a", "medium": "GPU", "group_idx": 0}], None],
        {"ts": 22.0, "events": [["BlockStored", [urlsafe], None, [5] * 16, 16, None, None]]},
        {"ts": 22.5, "events": [["BlockStored", [b64[2].rstrip("="), urlsafe.rstrip("=")], None, [], 16]]},
        [23.0, [["BlockStored", [b64[0]], None, [], 0, None, "CPU", None], stored(None, 9) | {"group_idx": 1}], 0],
    )  # fmt: skip
    trace = read_requests(path)
    ends = [trace.blocks[a:b].tolist() for a, b in zip(trace.starts[:-1], trace.starts[1:], strict=True)]
    assert ends == [number[:2], number, [*number[:2], -2], [-1], [number[2], -1]]
    assert trace.times.tolist() == [1, 20, 21, 22, 22.5]
    assert trace.sessions.tolist() == [-1, -1, session_of({"session": "a"}), -1, -1]
    assert trace.block_size == 16


def test_one_event_that_does_not_fit_costs_only_itself(tmp_path: Path) -> None:
    events = [stored(None, 1), stored(None, "no hash"), 7, ["BlockStored"], stored(1, 2)]
    trace = read_requests(write(tmp_path / "e.jsonl", [1.0, events, 0]), on_error="skip")
    assert trace.blocks.tolist() == [1, 2]
    assert trace.info["skipped"] == 3


def test_a_missing_field_of_mooncake_is_named(tmp_path: Path) -> None:
    for name in ("timestamp", "input_length", "output_length"):
        line = {field: value for field, value in moon(0, 600, [1, 2]).items() if field != name}
        path = write(tmp_path / "moon.jsonl", line)
        for read in (read_requests, kvp.read_trace):
            with pytest.raises(TraceError, match=rf"moon.jsonl, line 1: .*expected {name}, .*which is missing"):
                read(path)


ODD = [None, True, 1.5, -1, 10**30, 1e300, float("nan"), float("inf"), "", "text", "\ud800", [], [None], [[1]], ["a"],
       {}, {"a": 1}, {"role": 1}, [{}], [{"role": None}], 0, "2026-13-01", "0001-01-01T00:00+23:59"]  # fmt: skip
WHOLE = {
    "mooncake": moon(1, 600, [1, 2]) | {"session": "s", "hints": {"ttl": 1}, "kv_transfer_params": {"kvpredict": {}}}
    | {"finish_reason": "stop", "metadata": {}, "user": "u", "priority": 1},
    "bailian": json.loads((FIXTURES / "bailian.jsonl").read_text().splitlines()[0]),
    "request_log": record(session=1, hints={"continues": 0.5}, block_size=16),
    "chat": chat(1, request={}, response={"body": REPLY}, usage={"completion_tokens": 1}, tools=[], system="s",
                 session_id="s", finish_reason="stop", choices=[{"finish_reason": "stop"}], metadata={"user_id": 1}),
    "kv_events": {"ts": 1, "events": [stored(5, 6) | {"medium": "GPU", "group_idx": 0, "session_id": "s"}]},
}  # fmt: skip
PYTHONS_OWN = re.compile(
    r"object (is not|has no|of type)|'(int|str|float|list|dict|bool|NoneType)'|cannot convert|too large to|argument|"
    r"must be (real|a string|str)|Error\b|invalid literal|unhashable|not iterable|subscriptable|indices|codec"
)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield from places(inner, (*path, name))


@pytest.mark.parametrize("kind", WHOLE)
def test_odd_values_in_any_place_are_read_or_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.jsonl"
    good = WHOLE[kind]
    seen = 0
    for place in places(json.loads(json.dumps(good))):
        for odd in ODD if place else ():
            line = json.loads(json.dumps(good))
            inner = line
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = odd
            write(path, good, line)
            error = refusal(path)
            if error is not None:
                assert "line 2" in error, f"{place} = {odd!r}: {error}"
                assert not PYTHONS_OWN.search(error), f"{place} = {odd!r}: {error}"
                seen += 1
    assert seen > 20


def refusal(path: Path) -> str | None:
    """Return what is said of a file that cannot be read; any other error than one of kvpredict's is a fault."""
    try:
        read_requests(path, tokenize=str.encode)
    except KvpredictError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("size", [1 << 18, 3 << 20])
def test_the_first_line_may_be_long(tmp_path: Path, kind: str, size: int) -> None:
    long = {"comment": "x" * size, **WHOLE[kind]}
    path = write(tmp_path / "long.jsonl", long, WHOLE[kind])
    short = read_requests(write(tmp_path / "short.jsonl", WHOLE[kind], WHOLE[kind]), tokenize=str.encode)
    packed = tmp_path / "long.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    alone = write(tmp_path / "alone.jsonl", long)
    alone.write_bytes(alone.read_bytes().rstrip(b"\n"))
    for given, requests in ((path, len(short)), (packed, len(short)), (alone, 1)):
        trace = read_requests(given, tokenize=str.encode)
        assert trace.info["format"] == kind
        assert len(trace) == requests
        assert trace.blocks.tolist() == short.blocks[: len(trace.blocks)].tolist()
    if kind in ("mooncake", "bailian"):
        assert kvp.read_trace(packed).info["format"] == kind


def test_a_line_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "endless.jsonl"
    path.write_bytes(b'{"messages": "' + b"x" * (33 << 20))
    with pytest.raises(TraceError, match=r"endless\.jsonl, line 1: no end of line within"):
        read_requests(path, tokenize=str.encode)
