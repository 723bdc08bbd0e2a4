"""The latest preview of each running job."""

import base64
from typing import Any

from jobs.connection import away

KEPT_S = 3600
MOST_BYTES = 200_000


class Previews:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    @away
    def put(self, job: str, picture: bytes) -> None:
        """picture: a WebP."""
        if len(picture) <= MOST_BYTES:
            text = base64.b64encode(picture).decode()
            self._redis.set(f"{self._prefix}:preview:{job}", text, ex=KEPT_S)

    @away
    def get(self, job: str) -> bytes | None:
        text = self._redis.get(f"{self._prefix}:preview:{job}")
        return base64.b64decode(text) if text else None
