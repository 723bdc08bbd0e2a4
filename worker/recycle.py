"""Ranks are started anew after so many jobs, or when they have grown: what leaks ends there."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from jobs.settings import Settings
from worker.group import Group
from worker.lanes import Lanes

logger = logging.getLogger(__name__)

PAGE = 4096


class Recycling:
    """Of one group. again: called with the new ranks, before any job has them."""

    def __init__(
        self, settings: Settings, group: Group, lanes: Lanes, again: Callable[[], None]
    ) -> None:
        self._settings, self._group, self._lanes, self._again = settings, group, lanes, again
        self._lock = threading.Lock()
        self._restarts, self._jobs, self._first = -1, 0, 0

    def after_job(self, leaving: Callable[[], bool]) -> None:
        """Where it is time: waits for the jobs on other lanes, while nobody claims a new one."""
        with self._lock:
            reason, restarts = self._reason(), self._restarts
        turn = self._lanes.turn(leaving) if reason else None
        if turn is None:
            return
        with turn, self._lanes.lane(self._group.size, turn, lambda: None):
            if leaving() or self._group.about()["restarts"] != restarts:  # nothing to do any more
                return
            logger.warning("the ranks are started anew: %s", reason)
            self._group.restart()
            if self._group.wait_ready():
                self._again()

    def _reason(self) -> str | None:
        """Says so once: the caller does it."""
        settings, about = self._settings, self._group.about()
        if about["restarts"] != self._restarts:
            self._restarts, self._jobs = about["restarts"], 0
        size = sum(_resident_bytes(rank["pid"]) for rank in about["ranks"])
        self._jobs += 1
        if self._jobs == 1:  # models are loaded, and warm
            self._first = size
        grown = size - self._first
        if self._jobs == settings.recycle_jobs:
            return f"{self._jobs} jobs"
        if settings.recycle_growth_bytes and grown > settings.recycle_growth_bytes:
            self._first = size
            return f"their processes have grown by {grown / 1e9:.3g} GB"
        return None


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:  # it is gone
        return 0
