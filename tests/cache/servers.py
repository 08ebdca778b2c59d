"""Real Redis servers on loopback, started for a test and killed when it wants."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

SERVER = shutil.which("redis-server")
needs_redis = [
    pytest.mark.redis,
    pytest.mark.skipif(SERVER is None, reason="no redis-server on this machine (Debian: apt-get install redis-server)"),
]


def free_port() -> int:
    """Return a port that nobody uses, nor the one 10,000 above, which a node of a cluster takes too."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            if port > 55_000:
                continue
            with socket.socket() as second:
                try:
                    second.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
                return port


class Server:
    """One redis-server."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder, self._options = folder, options
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert SERVER is not None
        self.process = subprocess.Popen(
            [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir",
             str(self.folder), "--logfile", "redis.log", *self._options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis(port=self.port, socket_timeout=1) as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, (self.folder / "redis.log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Let it hang: connections stand and nothing is answered."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def one_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.kill()


def _formed(client: "redis.Redis") -> bool:
    info: bytes = client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


@contextmanager
def three_nodes(folder: Path) -> Iterator[list[Server]]:
    """A cluster of three masters."""
    nodes: list[Server] = []
    try:
        for i in range(3):
            nodes.append(
                Server(folder / str(i), "--cluster-enabled", "yes", "--cluster-node-timeout", "500",
                       "--cluster-require-full-coverage", "no")
            )  # fmt: skip
        clients = [redis.Redis(port=node.port) for node in nodes]
        bounds = [0, 5461, 10923, 16384]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
            client.execute_command("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
            if i:
                clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[i].port)
        deadline = time.monotonic() + 30
        while not all(_formed(client) for client in clients):
            assert time.monotonic() < deadline, "the cluster did not form"
            time.sleep(0.05)
        for client in clients:
            client.close()
        yield nodes
    finally:
        for node in nodes:
            node.kill()
