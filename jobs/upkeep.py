"""What is put back, sent again or removed, whoever does it."""

import json
from collections.abc import Callable
from typing import Any

from jobs.connection import away
from jobs.errors import Poisoned, WorkerLost

PURGE_AGAIN_S = 600  # no upload lasts as long: see jobs/artifacts.py
_WORKER_LOST = json.dumps(WorkerLost("The worker of this attempt is gone.").answer())
_POISONED = json.dumps(Poisoned().answer())


class Upkeep:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, step: Callable[..., Any], lease_s: float) -> None:
        self._step, self._lease_s = step, lease_s

    @away
    def reap(self) -> tuple[list[str], list[str], list[str]]:
        """Puts back what lost workers held, expires what waited too long.

        Answers the ids whose hint is due, those whose artifacts are to be removed, and those that
        may have some which no manifest names.
        """
        due, purge, sweep = self._step("reap", self._lease_s, _WORKER_LOST, _POISONED)
        return due, purge, sweep

    @away
    def swept(self, id: str) -> None:
        self._step("swept", id)

    @away
    def purged(self, id: str) -> None:
        """The artifacts of a deleted job are gone: so goes its record. What an attempt was still
        sending is to be removed later: reap() names the job once more."""
        self._step("purged", id, PURGE_AGAIN_S)
