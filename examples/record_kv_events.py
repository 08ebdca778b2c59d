"""Write the KV events of a running vLLM or SGLang server to a file that ``read_requests`` reads.

    vllm serve MODEL --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557"}'
    python examples/record_kv_events.py events.jsonl --endpoint tcp://localhost:5557
    kvpredict pipeline=inspect trace.path=events.jsonl

For servers into which no plugin can be installed: events say what was stored and nothing of hits, so where the plugin
runs, its log of requests (``KVPREDICT_REQUEST_LOG``) shows more. Needs pyzmq and msgpack. Each batch is written as it
came, hashes in hex, but for the tokens and what else of the prompts the engine sends along: only hashes are kept.
Batches that the network lost are counted. Stop it with Ctrl-C.
"""

import argparse
import json
import sys
from typing import Any

import msgpack
import zmq

# What shows a prompt's content, and its places in arrays, as older versions send events.
CONTENT = {"token_ids": 3, "extra_keys": 8}


def plain(value: Any) -> Any:
    """Return a batch as JSON takes it."""
    return value.hex() if isinstance(value, bytes) else repr(value)


def without_content(event: Any) -> Any:
    """Return an event without tokens."""
    if isinstance(event, dict):
        return {name: value for name, value in event.items() if name not in CONTENT}
    stores = event[:1] == ["BlockStored"]
    return [None if stores and place in CONTENT.values() else value for place, value in enumerate(event)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="file to append to, a line a batch")
    parser.add_argument("--endpoint", default="tcp://localhost:5557")
    parser.add_argument("--topic", default="", help="the server's topic; default: all")
    options = parser.parse_args()
    socket = zmq.Context.instance().socket(zmq.SUB)
    socket.connect(options.endpoint)
    socket.setsockopt_string(zmq.SUBSCRIBE, options.topic)
    written = lost = 0
    expected = None
    with open(options.out, "a", buffering=1) as file:
        print(f"recording {options.endpoint} to {options.out}", flush=True)
        try:
            while True:
                _, number, payload = socket.recv_multipart()
                sequence = int.from_bytes(number, "big")
                lost += max(0, sequence - (sequence if expected is None else expected))
                expected = sequence + 1
                batch = msgpack.unpackb(payload, strict_map_key=False)
                if isinstance(batch, dict):
                    batch["events"] = [without_content(event) for event in batch["events"]]
                else:
                    batch[1] = [without_content(event) for event in batch[1]]
                file.write(json.dumps(batch, default=plain) + "\n")
                written += 1
        except KeyboardInterrupt:
            print(f"{written} batches written, {lost} lost", file=sys.stderr)


if __name__ == "__main__":
    main()
