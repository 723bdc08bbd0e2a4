"""Files that callers send ahead of a job: what is known of each, for a day.

The file itself lies in the object storage. Its key is noted here before it is stored, and stays
until it was removed there: no file is left that nobody knows of, whoever dies in between.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from jobs.artifacts import upload_key
from jobs.connection import away

LIFE_S = 24 * 3600


@dataclass(frozen=True)
class Upload:
    """Times: seconds since 1970. sha256: None where the caller PUTs it into the storage himself,
    and then `bytes` and `content_type` are what he said of it."""

    id: str
    tenant: str
    content_type: str
    bytes: int
    created_at: float
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Where it lies in the object storage."""
        return upload_key(self.tenant, self.id)

    @property
    def expires_at(self) -> float:
        return self.created_at + LIFE_S


class Uploads:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    @away
    def begin(self, id: str, tenant: str) -> float:
        """Before anything is stored: answers the time, from which its life counts."""
        now = self._now()
        self._redis.zadd(f"{self._prefix}:uploads", {upload_key(tenant, id): now + LIFE_S})
        return now

    @away
    def add(self, upload: Upload) -> None:
        """From now on it can be asked for."""
        key = f"{self._prefix}:upload:{upload.id}"
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping={k: json.dumps(v) for k, v in asdict(upload).items()})
            pipe.expireat(key, int(upload.expires_at))
            pipe.execute()

    @away
    def get(self, id: str, tenant: str) -> Upload | None:
        fields = self._redis.hgetall(f"{self._prefix}:upload:{id}")
        if not fields:
            return None
        upload = Upload(**{name: json.loads(text) for name, text in fields.items()})
        return upload if upload.tenant == tenant else None

    @away
    def forget(self, id: str) -> None:
        """Its key stays noted: a PUT may still be on its way, and is removed in the end."""
        self._redis.delete(f"{self._prefix}:upload:{id}")

    @away
    def expired(self, most: int = 100) -> list[str]:
        """Keys of files to be removed from the storage."""
        found = self._redis.zrangebyscore(
            f"{self._prefix}:uploads", "-inf", self._now(), start=0, num=most
        )
        return list(found)

    @away
    def removed(self, key: str) -> None:
        self._redis.zrem(f"{self._prefix}:uploads", key)

    def _now(self) -> float:
        """Redis's clock is the only one."""
        seconds, micros = self._redis.time()
        return int(seconds) + int(micros) / 1e6
