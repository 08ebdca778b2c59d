"""RedisInvalidation: processes tell each other over Redis what they have changed, so that no cache keeps the old value.

Redis pub/sub tells every process that listens, once, within about a millisecond; it does not keep messages for a
process that does not listen. So the guarantee is about time. While the connection stands, a change is heard as soon as
Redis delivers it. A connection that is lost is noticed within ``heartbeat`` seconds; from then until it is back the
cache is emptied every ``heartbeat`` seconds, and once more when it is back. So nothing is served that was changed
elsewhere more than about two heartbeats ago.

A process need not listen to publish, and its own messages do not concern it: it has changed its cache already.
"""

import logging
import threading
import time
import uuid
from collections.abc import Hashable
from typing import Any

from kvpredict.cache.arguments import with_methods
from kvpredict.cache.codec import Codec
from kvpredict.cache.errors import CodecError, TierError
from kvpredict.cache.expiry import duration
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.redis_tier import redis_client

__all__ = ["RedisInvalidation"]

log = logging.getLogger("kvpredict")


class RedisInvalidation:
    """Keeps one cache in step with those of other processes.

    Parameters
    ----------
    cache : Cache or TieredCache
        Keys must be plain: text, bytes, numbers, and tuples of these.
    url : str
        Of Redis, such as ``redis://localhost:6379/0``.
    channel : str, default "kvpredict"
        Caches of one kind share a channel.
    heartbeat : float, default 1.0
        Seconds; also the timeout of ``publish``.

    Attributes
    ----------
    connected : bool
        Whether it listens now.
    received, lost : int
        Messages of others, and times that the connection was lost.

    ``close`` ends it; so does a ``with`` block.
    """

    def __init__(self, cache: Any, url: str, *, channel: str = "kvpredict", heartbeat: float = 1.0) -> None:
        # Tiers that processes share were changed by whoever made the change.
        self.cache, self.channel = getattr(cache, "local", cache), channel
        with_methods("cache", self.cache, "a Cache or TieredCache", "clear", "invalidate", "invalidate_tags")
        self._heartbeat = duration("heartbeat", heartbeat)
        self._me = uuid.uuid4().hex
        self._codec = Codec("json", compress=None)
        self._url = url
        self._client = redis_client(url, self._heartbeat)
        self.connected = False
        self.received = self.lost = 0
        self._end = threading.Event()
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="kvpredict-invalidation", daemon=True)
        self._thread.start()
        starts_over_in_child(self)

    def _forked(self) -> None:
        """Listen in a forked child, too, over a connection of its own."""
        self._me = uuid.uuid4().hex
        self._client = redis_client(self._url, self._heartbeat)
        self.connected = False
        self._heard = threading.Event()
        closed, self._end = self._end.is_set(), threading.Event()
        if closed:
            self._end.set()
        self._thread = threading.Thread(target=self._listen, name="kvpredict-invalidation", daemon=True)
        self._thread.start()

    def wait_connected(self, timeout: float = 10.0) -> bool:
        """Wait until it listens; tell whether it does."""
        return self._heard.wait(timeout)

    def publish(self, *keys: Hashable, tags: tuple[str, ...] = (), before: int | None = None) -> int:
        """Have other processes invalidate ``keys``, or versions of them older than ``before``, and ``tags``.

        Call it when the change is in the source of truth. Returns how many processes were told.

        Raises
        ------
        TierError
            When Redis cannot be reached: those that can reach it do not know of the change.
        """
        import redis

        message = self._codec.encode([self._me, list(keys), list(tags), before])
        try:
            return int(self._client.publish(self.channel, message))
        except (redis.RedisError, OSError) as error:
            raise TierError(f"an invalidation was not published: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Stop listening."""
        self._end.set()
        self._thread.join(10 * self._heartbeat)
        self._client.close()

    def __enter__(self) -> "RedisInvalidation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        import redis

        while not self._end.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=False) as pubsub:
                    pubsub.subscribe(self.channel)
                    self._follow(pubsub)
            except (redis.RedisError, OSError) as error:
                if self.connected:
                    self.lost += 1
                    log.warning("invalidations are not heard, so the cache is emptied each heartbeat: %s", error)
                self.connected = False
                self._heard.clear()
                self.cache.clear()
                self._end.wait(self._heartbeat)

    def _follow(self, pubsub: Any) -> None:
        last = asked = time.monotonic()
        while not self._end.is_set():
            message = pubsub.get_message(timeout=self._heartbeat / 4)
            now = time.monotonic()
            if message is not None:
                last = now
                if message["type"] == "subscribe":
                    self.cache.clear()  # of whatever was changed while nobody listened
                    self.connected = True
                    self._heard.set()
                elif message["type"] == "message":
                    self._obey(message["data"])
            elif now - last > self._heartbeat:
                raise OSError(f"no answer for {self._heartbeat:g} s")
            if now - asked > self._heartbeat / 3:  # a connection may die without a word: the answer shows that it lives
                pubsub.ping()
                asked = now

    def _obey(self, data: bytes) -> None:
        try:
            sender, keys, tags, before = self._codec.decode(data)
        except (CodecError, ValueError) as error:
            log.warning("a message on channel %s is no invalidation: %s", self.channel, error)
            return
        if sender == self._me:
            return
        self.received += 1
        for key in keys:
            if before is None:
                self.cache.invalidate(key)
            else:
                self.cache.invalidate(key, before=before)
        if tags:
            self.cache.invalidate_tags(*tags)
