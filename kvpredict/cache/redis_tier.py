"""RedisTier: a tier that processes share, in Redis or a Redis Cluster; also the client that all parts use.

Every call returns within the timeout. Keys have a prefix, so that one Redis serves many caches, and every value a
time to live, so that whatever goes wrong nothing is served for longer than that.
"""

from typing import Any

from kvpredict.cache.errors import TierError
from kvpredict.cache.expiry import duration
from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["RedisTier", "redis_client"]


def redis_client(url: str, timeout: float, *, cluster: bool = False) -> Any:
    """Return a client of redis-py with no retries of its own: the breaker decides when to try again."""
    if not isinstance(url, str):
        raise KvpredictError(f"url must be a text such as redis://host:port/0, got {url!r}")
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise MissingExtra('Redis needs redis-py: pip install "kvpredict[redis]"') from None
    try:
        if cluster:
            return redis.RedisCluster.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 1)
            )
        return redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise KvpredictError(f"{url!r} is no address of Redis: {error}; write redis://host:port/0") from None


class RedisTier:
    """A tier in Redis.

    Parameters
    ----------
    url : str
        Such as ``redis://localhost:6379/0``; of any node of a cluster.
    cluster : bool, default False
        Whether it is a Redis Cluster.
    prefix : str, default "kvpredict:"
        What its keys begin with. Deleting all its entries looks through all keys of the server.
    ttl : float, default 3600.0
        The most seconds that a value stays.
    timeout : float, default 0.1
        Seconds for a call.
    fill : "load" or "evict", default "load"
        See ``Tier``.

    Redis chooses itself what to evict at its ``maxmemory``. The connection is made by the first call, so a Redis that
    is down when the service starts is only a tier that is down.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool = False,
        prefix: str = "kvpredict:",
        ttl: float = 3600.0,
        timeout: float = 0.1,
        fill: str = "load",
    ) -> None:
        self.name, self.fill, self.shared = f"redis {url}", fill, True
        if not isinstance(prefix, str):
            raise KvpredictError(f"prefix must be a text, got {prefix!r}")
        self._url, self._cluster, self._prefix = url, cluster, prefix.encode()
        self._ttl, self._timeout = duration("ttl", ttl), duration("timeout", timeout)
        self._client: Any = None
        if not cluster:
            self._client = redis_client(url, self._timeout)

    def get(self, key: bytes) -> bytes | None:
        """Return what is stored under ``key``, or None."""
        data: bytes | None = self._call("get", self._prefix + key)
        return data

    def put(self, key: bytes, data: bytes, ttl: float | None) -> bool:
        """Store ``data`` for ``ttl`` seconds, or the tier's where that is less."""
        milliseconds = int(1000 * min(self._ttl if ttl is None else ttl, self._ttl))
        if milliseconds < 1:
            self.delete(key)
            return False
        self._call("set", self._prefix + key, data, px=milliseconds)
        return True

    def holds(self, key: bytes) -> bool:
        """False: only Redis knows."""
        return False

    def delete(self, key: bytes) -> None:
        """Remove ``key``."""
        self._call("delete", self._prefix + key)

    def clear(self) -> None:
        """Remove every key with the prefix."""
        import redis

        pattern = b"".join(b"\\" + bytes((c,)) if c in b"*?[]^\\" else bytes((c,)) for c in self._prefix) + b"*"
        try:
            for key in self._connected().scan_iter(match=pattern, count=1000):
                self._client.delete(key)
        except redis.RedisError as error:
            raise TierError(f"{self.name}: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> Any:
        if self._client is None:  # a cluster's client asks for its nodes when it is made
            self._client = redis_client(self._url, self._timeout, cluster=True)
        return self._client

    def _call(self, command: str, *arguments: Any, **options: Any) -> Any:
        import redis

        try:
            return getattr(self._connected(), command)(*arguments, **options)
        except (redis.RedisError, OSError) as error:
            raise TierError(f"{self.name}: {type(error).__name__}: {error}") from None
