"""Lanes: which ranks run which job. Claims take turns, so that who came first is served first."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Self

from worker.planner import Choice

Lane = tuple[int, ...]
TICK_S = 0.1


def free_lane(
    width: int, free: Set[int], size: int, holders: Set[int] = frozenset()
) -> Lane | None:
    """A block of `width` free ranks that begins at a multiple of it: process groups exist for those
    only. holders: ranks that have the model in memory; the first block with most of them."""
    blocks = (tuple(range(first, first + width)) for first in range(0, size, width))
    lanes = (lane for lane in blocks if set(lane) <= free)
    return max(lanes, key=lambda lane: len(holders & set(lane)), default=None)


def choose_lane(
    choices: Sequence[Choice], waiting: int, free: Set[int], size: int
) -> tuple[Choice, str]:
    """Which of the widths that could run a job it gets, and why. Pure.

    An empty queue gives it all free ranks, for latency; a deep one as few as it can run on, for
    throughput: a split costs, and there is enough to do. waiting: other jobs that could run now.
    The choice may have to wait for its ranks.
    """
    share = len(free) / (waiting + 1)
    fitting = [c for c in choices if c.width <= share and free_lane(c.width, free, size)]
    if not fitting:
        narrowest = min(choices, key=lambda c: c.width)
        return narrowest, f"{narrowest.width} of {len(free)} free ranks, the fewest it can run on"
    best = min(fitting, key=lambda c: (c.duration, c.width))
    return best, f"{best.width} of {len(free)} free ranks, {waiting} jobs waiting"


class Lanes:
    def __init__(self, size: int) -> None:
        self._size = size
        self._free = set(range(size))
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._jobs = 0

    @property
    def idle(self) -> bool:
        """Whether a job could be claimed at once."""
        spare = self._jobs < self._size + 1  # the threads of worker/bootstep.py
        return bool(self._free) and spare and not self._turn.locked()

    @property
    def unused(self) -> bool:
        """Whether nobody looks after a job."""
        return not self._jobs

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """A job is being looked after by a thread, with or without a lane."""
        with self._changed:
            self._jobs += 1
        try:
            yield
        finally:
            with self._changed:
                self._jobs -= 1

    def turn(self, leaving: Callable[[], bool]) -> "Turn | None":
        """Waits until it is the caller's turn to claim and a rank is free; None if leaving() first.

        Whoever has the turn and needs more ranks than are free keeps it while these become free:
        nobody narrower overtakes.
        """
        while not leaving():
            if not self._turn.acquire(timeout=TICK_S):
                continue
            turn = Turn(self._turn)
            try:
                while not leaving():
                    with self._changed:
                        if self._free:
                            return turn
                        self._changed.wait(TICK_S)
            except BaseException:
                turn.end()
                raise
            turn.end()
        return None

    def free(self) -> frozenset[int]:
        with self._changed:
            return frozenset(self._free)

    @contextlib.contextmanager
    def lane(
        self, width: int, turn: "Turn", tick: Callable[[], None], holders: Set[int] = frozenset()
    ) -> Iterator[Lane]:
        """The ranks, once they are free; then the turn is over. tick() may end the waiting.
        holders: see free_lane()."""
        while (lane := self._try(width, holders)) is None:
            tick()
        turn.end()
        try:
            yield lane
        finally:
            with self._changed:
                self._free |= set(lane)
                self._changed.notify_all()

    def _try(self, width: int, holders: Set[int]) -> Lane | None:
        with self._changed:
            lane = free_lane(width, self._free, self._size, holders)
            if lane is None:
                self._changed.wait(TICK_S)
            else:
                self._free -= set(lane)
            return lane


class Turn:
    """The right to claim. As a context it ends with it, at the latest."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._over = lock, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._lock.release()
