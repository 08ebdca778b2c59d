"""The example services, each started as its docstring says and asked over HTTP."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cache.servers import free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def service(name: str, *options: str) -> Iterator[httpx.Client]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "--port", str(port), *options],
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 90
            while True:
                try:
                    client.get("/stats")
                    break
                except httpx.TransportError:
                    assert process.poll() is None, "the service ended"
                    assert time.monotonic() < deadline, "the service did not start"
                    time.sleep(0.05)
            yield client
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.wait()


def at_once(client: httpx.Client, path: str, count: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: client.get(path), range(count)))


@pytest.mark.slow
def test_the_web_api(tmp_path: Path) -> None:
    with service("web_api.py", "--database", str(tmp_path / "shop.db")) as client:
        answers = at_once(client, "/products/7", 12)
        assert {answer.json()["name"] for answer in answers} == {"Product 7"}
        assert client.get("/stats").json()["queries"] == 1
        for _ in range(5):
            assert client.get("/products/5000").status_code == 404
        assert client.get("/stats").json()["queries"] == 2
        assert client.put("/products/7", json={"name": "Tea", "price": "4.20"}).json()["price"] == "4.20"
        assert client.get("/products/7").json() == {"id": 7, "name": "Tea", "price": "4.20"}
        assert client.get("/stats").json()["queries"] == 2  # written through
        assert client.put("/products/5000", json={"name": "New", "price": "1"}).status_code == 200
        assert client.get("/products/5000").json()["name"] == "New"
        assert client.delete("/products/7").status_code == 204
        assert client.get("/products/7").status_code == 404
        assert 'kvpredict_cache_hits_total{cache="products"}' in client.get("/metrics").text
        (tmp_path / "shop.db").rename(tmp_path / "gone.db")
        assert client.get("/products/5000").json()["name"] == "New"


@pytest.mark.slow
def test_the_course_site(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    with service("course_site.py", "--folder", str(folder)) as client:
        assert {answer.text[:23] for answer in at_once(client, "/algebra/1", 12)} == {"<h1>Lesson 1 of algebra"}
        assert client.get("/stats").json()["rendered"] == 1
        assert client.get("/algebra/99").status_code == 404
        client.get("/biology/1")
        (folder / "algebra" / "1.txt").write_text("Lesson 1, edited\n\nText.")
        assert "edited" not in client.get("/algebra/1").text
        assert client.post("/algebra/publish").json() == {"pages taken out": 1}
        assert "edited" in client.get("/algebra/1").text
        for student in range(12):
            for number in range(1, 13):
                client.get(f"/algebra/{number}?student={student}")
        rendered = client.get("/stats").json()["rendered"]
        assert rendered == 1 + 1 + 12
    with service("course_site.py", "--folder", str(folder)) as client:
        assert "edited" in client.get("/algebra/1").text
        for number in range(1, 13):
            assert client.get(f"/algebra/{number}").status_code == 200
        assert client.get("/stats").json()["rendered"] == 0  # all of it came from the snapshot


@pytest.mark.slow
def test_the_payments_lookup(tmp_path: Path) -> None:
    database = str(tmp_path / "payments.db")
    with service("payments.py", "--database", database) as one, service("payments.py", "--database", database) as two:
        assert one.get("/accounts/7").json()["cents"] == two.get("/accounts/7").json()["cents"] == 10_000
        for n in range(1, 30):
            writer, reader = (one, two) if n % 2 else (two, one)
            path = f"/transfers?source=7&target=8&cents={n}"
            assert writer.post(path).json() == {"status": "done"}
            spent = n * (n + 1) // 2
            assert reader.get("/accounts/7").json()["cents"] == 10_000 - spent  # at once, in the other process
            assert writer.get("/accounts/8").json()["cents"] == 10_000 + spent
        built = one.get("/stats").json()["built"]
        at_once(one, "/accounts/7", 20)
        assert one.get("/stats").json()["built"] <= built + 1
        assert one.post("/transfers?source=1&target=2&cents=10001").status_code == 409
        assert one.post("/transfers?source=1&target=2000&cents=1").status_code == 404
        assert one.post("/transfers?source=1&target=2&cents=-1").status_code == 422
        assert two.get("/accounts/1").json()["cents"] == 10_000
        # Money in flight between two processes under load: each answer is of its moment, and none is lost.
        done = threading.Event()
        versions: list[str] = []

        def watch() -> None:
            last = 0
            while not done.is_set():
                answer = random.choice((one, two)).get("/accounts/9").json()
                if answer["version"] < last:
                    versions.append(f"{answer['version']} after {last}")
                last = answer["version"]

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                clients = [one, two] * 20
                paths = [
                    f"/transfers?source={9 if n % 2 else 10}&target={10 if n % 2 else 9}&cents=5" for n in range(40)
                ]
                answers = list(pool.map(lambda pair: pair[0].post(pair[1]), zip(clients, paths, strict=True)))
            assert {answer.status_code for answer in answers} == {200}
        finally:
            done.set()
            watcher.join()
        assert versions == []
        assert two.get("/accounts/9").json() == {"account": 9, "version": 41, "cents": 10_000, "entries": 41}


@pytest.mark.slow
def test_the_learning_loop() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "learning_loop.py"), "--requests", "20000", "--capacity", "200"],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ratios = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "hit ratio" in line]
    assert len(ratios) == 3
    assert ratios[1] >= ratios[2] - 0.01  # what was chosen serves no worse than what was there
