"""Which workers are there, what they say of themselves, and which of them are to drain."""

import json
from typing import Any

from jobs.connection import away

TTL_S = 15


def takes_jobs(about: dict[str, Any]) -> bool:
    """By what a worker says of itself: its group is ready, and nothing keeps it from claiming."""
    return bool(about["group"]["ready"]) and not about.get("draining")


class Workers:
    """Every method raises StoreUnavailable within about 2 s when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    @away
    def announce(self, worker: str, about: dict[str, Any], ttl_s: int = TTL_S) -> None:
        """Says for ttl_s seconds that this worker is there, and what it has."""
        text = json.dumps({**about, "ttl_s": ttl_s})
        self._redis.set(self._key(f"worker:{worker}"), text, ex=ttl_s)
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
        """What each live worker said of itself, and when: heartbeat_age_s."""
        names = sorted(self._redis.smembers(self._key("workers")))
        with self._redis.pipeline() as pipe:
            for name in names:
                pipe.get(self._key(f"worker:{name}"))
                pipe.pttl(self._key(f"worker:{name}"))
            said = pipe.execute()
        alive = {}
        for name, text, left_ms in zip(names, said[::2], said[1::2], strict=True):
            if text:
                about = json.loads(text)
                age_s = about.pop("ttl_s", TTL_S) - left_ms / 1000
                alive[name] = {**about, "heartbeat_age_s": max(0.0, round(age_s, 1))}
        if gone := set(names) - set(alive):
            self._redis.srem(self._key("workers"), *gone)
        return alive
