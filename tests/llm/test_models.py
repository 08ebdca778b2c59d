"""Tokenizers and models by name: what is said where the hub cannot be asked."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.llm import models

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")
NOBODYS = "nobody/has-this"


@contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as bound:  # and never listens
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("network", [refusing, silent])
@pytest.mark.parametrize("load", [models.load_tokenizer, models.load_model])
def test_without_a_network_a_name_fails_at_once(network: object, load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PATIENCE", 1.0)
    with network() as endpoint:
        monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
        started = time.monotonic()
        with pytest.raises(KvpredictError, match=rf"at {NOBODYS}: it is no folder .* does not answer, .*give a folder"):
            load(NOBODYS)
    assert time.monotonic() - started < 20  # it was 50 and more


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            assert not models._offline(NOBODYS)
            monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
            assert models._offline(NOBODYS)
        finally:
            server.shutdown()
    assert asked == ["/"]


def test_a_folder_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert not models._offline(str(tmp_path))
    with pytest.raises(KvpredictError, match=f"no tokenizer at {tmp_path}: (?!it is no folder)"):
        models.load_tokenizer(str(tmp_path))
