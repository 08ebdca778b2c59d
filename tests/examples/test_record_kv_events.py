"""The recorder of KV events, beside a publisher that sends what vLLM sends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import zmq

from kvpredict.llm.request_files import read_requests
from tests.cache.servers import free_port

RECORDER = Path(__file__).resolve().parents[2] / "examples" / "record_kv_events.py"
HASHES = [bytes([k] * 32) for k in range(6)]


def stored(parent: bytes | None, hashes: list[bytes]) -> list[Any]:
    return ["BlockStored", hashes, parent, list(range(16 * len(hashes))), 16, None, "GPU", None, [["secret salt"]]]


def as_object(event: list[Any]) -> dict[str, Any]:
    """As vLLM 0.32 sends events; older versions send arrays."""
    names = ("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
             "extra_keys")  # fmt: skip
    return dict(zip(names, event, strict=True))


def test_what_a_server_publishes_is_read_back(tmp_path: Path) -> None:
    endpoint, out = f"tcp://127.0.0.1:{free_port()}", tmp_path / "events.jsonl"
    first, second = stored(None, HASHES[:2]), stored(HASHES[1], HASHES[2:4])
    removed = ["BlockRemoved", [HASHES[0]], "GPU"]
    batches = [  # too far apart to be pieces of one request
        [1767225600.0, [first], 0],
        [1767225603.0, [removed, as_object(second)], 0],
        {"ts": 1767225606.0, "events": [as_object(stored(None, HASHES[4:])), ["AllBlocksCleared"]]},
    ]
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(endpoint)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, so would the child
        recorder = subprocess.Popen(
            [sys.executable, str(RECORDER), str(out), "--endpoint", endpoint],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (out.exists() and out.read_text()):  # a subscriber hears nothing before it is connected
                assert recorder.poll() is None, recorder.stderr.read()
                assert time.monotonic() < deadline, "the recorder did not connect"
                publisher.send_multipart([b"", (0).to_bytes(8, "big"), msgpack.packb([1767225599.0, [], 0])])
                time.sleep(0.05)
            for number, batch in zip((1, 2, 5), batches, strict=True):  # two are lost
                publisher.send_multipart([b"", number.to_bytes(8, "big"), msgpack.packb(batch)])
            while "1767225606" not in out.read_text():
                assert time.monotonic() < deadline, "the recorder stopped writing"
                time.sleep(0.05)
            recorder.send_signal(signal.SIGINT)
            _, said = recorder.communicate(timeout=30)
        finally:
            recorder.kill()
            recorder.wait()
    assert "2 lost" in said
    assert "secret" not in out.read_text()
    trace = read_requests(out)
    number = [int.from_bytes(h[-8:], "big", signed=True) for h in HASHES]
    assert trace.times.tolist() == [1767225600, 1767225603, 1767225606]
    assert trace.blocks.tolist() == [*number[:2], *number[:4], *number[4:]]
    assert (trace.block_size, trace.input_tokens.tolist()) == (16, [32, 64, 32])
