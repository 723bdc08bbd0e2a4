"""Which workers are there, what they say of themselves, and which of them are to drain."""

import json
from typing import Any

from jobs.connection import away


class Workers:
    """Every method raises StoreUnavailable within about 2 s when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    @away
    def announce(self, worker: str, about: dict[str, Any], ttl_s: int = 15) -> None:
        """Says for ttl_s seconds that this worker is there, and what it has."""
        self._redis.set(self._key(f"worker:{worker}"), json.dumps(about), ex=ttl_s)
        self._redis.sadd(self._key("workers"), worker)

    @away
    def wish_drain(self, worker: str, start: str) -> None:
        """Wishes that the worker takes no more jobs. start: which life of it; not the next one."""
        self._redis.set(self._key(f"drain:{worker}"), start, ex=86400)

    @away
    def drain_wished(self, worker: str, start: str) -> bool:
        return bool(self._redis.get(self._key(f"drain:{worker}")) == start)

    @away
    def leave(self, worker: str) -> None:
        self._redis.delete(self._key(f"worker:{worker}"))
        self._redis.srem(self._key("workers"), worker)

    @away
    def alive(self) -> dict[str, dict[str, Any]]:
        """What each live worker said of itself."""
        names = sorted(self._redis.smembers(self._key("workers")))
        texts = self._redis.mget([self._key(f"worker:{name}") for name in names]) if names else []
        alive = {name: json.loads(text) for name, text in zip(names, texts, strict=True) if text}
        if gone := set(names) - set(alive):
            self._redis.srem(self._key("workers"), *gone)
        return alive
