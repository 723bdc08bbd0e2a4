"""What each tenant asks for, uses and has: requests of this minute, jobs and GPU seconds of each
day; whose job one is, and what signs the links to its outputs."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.connection import away

DAY_S = 86400


@dataclass(frozen=True)
class Usage:
    """Of one key on one day, UTC: what succeeded, and the GPU seconds of that and of what was
    canceled. images, video_s: what came out."""

    day: str
    key: str
    jobs: int
    images: int
    video_seconds: float
    gpu_seconds: float


class Tenants:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str, step: Callable[..., Any]) -> None:
        self._redis, self._prefix, self._step = redis, prefix, step

    @away
    def count(self, tenant: str, limit: int) -> tuple[int, int]:
        """One more request: how many are left in this minute, below 0 for none; seconds to the
        next."""
        asked, next_s = self._step("count", tenant)
        return limit - int(asked), int(next_s)

    @away
    def usage(self, tenant: str, days: int) -> list[Usage]:
        """Of the last days, today's first."""
        today = int(self._redis.time()[0]) // DAY_S
        with self._redis.pipeline(transaction=False) as pipe:
            for day in range(today, today - days, -1):
                pipe.hgetall(f"{self._prefix}:usage:{tenant}:{day}")
            found = pipe.execute()
        return [
            _usage(today - back, key, fields)
            for back, fields in enumerate(found)
            for key in sorted({name.partition(" ")[0] for name in fields if " " in name})
        ]

    @away
    def of(self, job: str) -> str | None:
        """Whose job it is."""
        tenant: str | None = self._redis.hget(f"{self._prefix}:job:{job}", "tenant")
        return tenant

    @away
    def link_secret(self) -> bytes:
        """32 bytes by chance, the same for every process of this fleet."""
        key = f"{self._prefix}:link_secret"
        secret = self._redis.get(key)  # first: a full Redis refuses a SET that would change nothing
        if secret is None:
            self._redis.set(key, secrets.token_hex(32), nx=True)
            secret = self._redis.get(key)
        return bytes.fromhex(secret)

    @away
    def remember(self, tenant: str, request: str, id: str, made: bool, for_s: int) -> None:
        """Which job a request of this digest is to make, or has made."""
        note = f"{id} made" if made else id
        self._redis.set(f"{self._prefix}:fold:{tenant}:{request}", note, ex=for_s)

    @away
    def recall(self, tenant: str, request: str) -> tuple[str, bool]:
        """The id, '' for none; whether the job was certainly made."""
        note = self._redis.get(f"{self._prefix}:fold:{tenant}:{request}") or ""
        id, _, made = note.partition(" ")
        return id, bool(made)


def _usage(day: int, key: str, fields: dict[str, str]) -> Usage:
    def of(name: str) -> float:
        return float(fields.get(f"{key} {name}", 0))

    date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
    counts = int(of("jobs")), int(of("images"))
    return Usage(date, key, *counts, round(of("video_s"), 3), round(of("gpu_s"), 3))
