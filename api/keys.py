"""API keys: a file with a line of JSON for each, with its SHA-256 in place of the key itself.

`fleet keys` writes it, FLEET_API_KEYS_FILE names it; it is read again when it changes.
"""

import contextlib
import hashlib
import logging
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import SettingsError

logger = logging.getLogger(__name__)

Scope = Literal["read", "write", "admin"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Caller(BaseModel):
    """A key's line. The limits hold for its tenant, all of whose keys count: requests a minute,
    jobs that are not over, GPU seconds a day. None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    tenant: Name
    scopes: frozenset[Scope]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = "0" * 64
    created_at: str = ""
    revoked_at: str | None = None
    per_minute: int | None = Field(None, ge=1)
    active_jobs: int | None = Field(None, ge=1)
    gpu_seconds_per_day: float | None = Field(None, gt=0)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    def __init__(self, file: Path) -> None:
        """Raises: SettingsError."""
        self._file = file
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._callers = _read(file)

    def caller(self, key: str) -> Caller | None:
        """Of a key that is known and not revoked."""
        # Where it can't be read now, what was read before holds.
        with self._lock, contextlib.suppress(SettingsError):
            if (stamp := self._stamp()) != self._seen:
                self._callers = _read(self._file)
                self._seen = stamp
        return self._callers.get(hashlib.sha256(key.encode()).hexdigest())

    def _stamp(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            about = self._file.stat()
            return about.st_mtime_ns, about.st_size
        return None


def _read(file: Path) -> dict[str, Caller]:
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        callers = [Caller.model_validate_json(line) for line in lines]
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        logger.error("FLEET_API_KEYS_FILE=%s: %s", file, reason)
        raise SettingsError(f"FLEET_API_KEYS_FILE={file} can't be read: {reason}.") from None
    return {c.sha256: c for c in callers if c.revoked_at is None}
