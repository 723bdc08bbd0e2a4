"""The stream of every change of every job, for whoever follows some of them."""

from typing import Any

from jobs.connection import away

BLOCK_S = 1  # below the connection's own patience
ROWS = 1000


class Events:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._key = redis, f"{prefix}:events"

    @away
    def latest(self) -> str:
        """Where the stream ends now."""
        newest = self._redis.xrevrange(self._key, count=1)
        return str(newest[0][0]) if newest else "0-0"

    @away
    def after(self, place: str) -> tuple[str, set[str]]:
        """The next place, and the jobs that have changed in between; waits for some, BLOCK_S."""
        answer = self._redis.xread({self._key: place}, ROWS, int(BLOCK_S * 1000))
        rows = answer[0][1] if answer else []
        return (str(rows[-1][0]) if rows else place), {fields["job"] for _, fields in rows}
