"""What webhooks are to be told: written by the step that ends the job, sent by worker/webhooks.py.

    pending ──settle──> delivered | failed ──redeliver──> pending

pending    due at next_at. An attempt claims it for a lease; if its worker dies it is due again.
the rest   kept for 30 days, or until the job is deleted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jobs.connection import away

State = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True)
class Delivery:
    """attempts: begun, since it was last asked for. status: of the last answer, if there was one.
    Times: Redis's clock, seconds since 1970."""

    id: str
    job: str
    event: str
    url: str
    state: State
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: float
    next_at: float | None
    delivered_at: float | None


@dataclass(frozen=True)
class Errand:
    """One attempt at a delivery. began_at: by Redis's clock."""

    id: str
    job: str
    tenant: str
    event: str
    url: str
    attempt: int
    fence: str
    created_at: float
    began_at: float


class Outbox:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str, step: Callable[..., Any]) -> None:
        """step: runs one of lua/outbox.lua."""
        self._redis, self._prefix, self._step = redis, prefix, step

    @away
    def of(self, job: str) -> list[Delivery]:
        """The job's deliveries, the oldest first."""
        ids = self._redis.lrange(f"{self._prefix}:deliveries:{job}", 0, -1)
        with self._redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hgetall(f"{self._prefix}:delivery:{id}")
            return [_delivery(fields) for fields in pipe.execute() if fields]

    @away
    def due(self) -> int:
        return int(self._step("due_deliveries"))

    @away
    def claim(self, lease_s: float) -> Errand | None:
        """The next one that is due, for lease_s nobody else's; None: there is none."""
        if (answer := self._step("claim_delivery", lease_s)) is None:
            return None
        id, job, tenant, event, url, attempt, fence, created_at, now = answer
        times = float(created_at), float(now)
        return Errand(id, job, tenant, event, url, int(attempt), str(fence), *times)

    @away
    def settle(
        self,
        errand: Errand,
        state: State,
        status: int | None = None,
        error: str | None = None,
        delay_s: float = 0,
    ) -> None:
        """How the attempt ended; may be said twice. delay_s: before the next one, while pending.
        Nothing happens where somebody else has claimed the delivery since, or deleted its job."""
        news = (status or "", error or "", delay_s)
        self._step("settle_delivery", errand.id, errand.fence, state, *news)

    @away
    def redeliver(self, job: str, id: str) -> bool:
        """Due now, its attempts start anew. False: the job has no such delivery."""
        return self._step("redeliver", id, job) is not None


def _delivery(fields: dict[str, str]) -> Delivery:
    def number(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

    state: Any = fields["state"]
    return Delivery(
        id=fields["id"],
        job=fields["job"],
        event=fields["event"],
        url=fields["url"],
        state=state,
        attempts=int(fields["attempts"]),
        last_status=int(fields["status"]) if fields.get("status") else None,
        last_error=fields.get("error") or None,
        created_at=float(fields["created_at"]),
        next_at=number("next_at"),
        delivered_at=number("delivered_at"),
    )
