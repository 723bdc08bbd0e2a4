"""Group: all ranks of this node. run() deals a job's items to them and yields what they report."""

import logging
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import JOB_ERRORS, Internal, Interrupted, JobError, RankDied, RankHung
from jobs.request import Item
from jobs.settings import Settings
from worker.dealing import worth_dealing
from worker.keeper import Gone, Keeper
from worker.plan import Plan
from worker.protocol import (
    MEETING,
    Cancel,
    Canceled,
    Done,
    Ended,
    Event,
    Failed,
    FromRank,
    Progress,
    Run,
    Said,
    Tick,
)

logger = logging.getLogger(__name__)

TICK_S = 0.1
OTHERS_FAULT = "The group restarts because of a rank outside this job's lane."
CANCEL_S = 10  # from the wish to the kill, for a lane that does not answer


@dataclass
class Turn:
    """One item on one replica, until each of its ranks has answered."""

    item: Item
    waiting: set[int]
    stage: dict[int, str]
    heard: dict[int, float]
    began: float
    steps: list[float] = field(default_factory=list)  # durations


class Group:
    def __init__(self, size: int, settings: Settings) -> None:
        self.size = size
        self._settings = settings
        self._keeper = Keeper(size, settings.start_timeout_s)
        self._at_work: dict[tuple[int, ...], str] = {}  # lanes, and their jobs

    def start(self) -> None:
        """Returns when every rank is ready. Raises: GroupFault."""
        self._keeper.start()
        if not self.wait_ready():
            raise RankDied(f"The group of {self.size} ranks does not come up.")

    def stop(self) -> None:
        self._keeper.stop()

    def wait_ready(self, leaving: Callable[[], bool] = lambda: False) -> bool:
        """Whether every rank is there, within the time that a start may take, unless leaving()."""
        until = time.monotonic() + self._settings.start_timeout_s
        while not self._keeper.ready.wait(TICK_S):
            if leaving() or time.monotonic() > until:
                return False
        return True

    def restart(self) -> None:
        """Ends all ranks at once; wait_ready() waits for the new ones."""
        self._keeper.kill()

    @property
    def ready(self) -> bool:
        return self._keeper.ready.is_set()

    def least_memory(self) -> int:
        """Bytes that the smallest of the ranks' devices has."""
        return self._keeper.least_memory

    def holders(self, model: str) -> set[int]:
        """The ranks that have it in memory."""
        return self._keeper.holders(model)

    def about(self) -> dict[str, Any]:
        """For `inspect stats`, Flower and the API."""
        return {
            "ready": self.ready,
            "incarnation": self._keeper.incarnation,
            "restarts": max(0, self._keeper.starts - 1),
            "ranks": self._keeper.about(),
            "lanes": [{"ranks": r, "job": job} for r, job in self._at_work.copy().items()],
        }

    def run(
        self,
        job: str,
        request: str,
        items: list[Item],
        plan: Plan,
        lane: Sequence[int],
        folder: Path,
        cancel: threading.Event,
    ) -> Generator[Event, None, None]:
        """Deals the items to the plan's replicas as these become free; the stream ends with Ended.
        lane: ranks that nobody else uses. cancel: set it, and they stop at the end of a denoising
        step; in a stage that asks nobody, at its end, or by a kill after CANCEL_S if no other job
        is at work in the group.
        Raises: a JobError, after which no rank works on this job any more.
        """
        until = time.monotonic() + self._settings.start_timeout_s
        while not self._keeper.ready.wait(TICK_S):
            if cancel.is_set():
                yield Ended(canceled=True)
                return
            if time.monotonic() > until:
                raise RankDied(f"The group of {self.size} ranks does not come up.")
            yield Tick()
        turns = _Turns(self._keeper, self._settings, job, request, items, plan, lane, folder)
        self._at_work[tuple(lane)] = job
        try:
            yield from turns.events(cancel, lambda: len(self._at_work) == 1)
        finally:
            self._at_work.pop(tuple(lane), None)
            if turns.busy:  # the consumer left, or a rank was lost: nobody must go on computing
                self._keeper.kill(turns.incarnation)


class _Turns:
    """One job's items on the ranks of its lane."""

    def __init__(
        self,
        keeper: Keeper,
        settings: Settings,
        job: str,
        request: str,
        items: list[Item],
        plan: Plan,
        lane: Sequence[int],
        folder: Path,
    ) -> None:
        self._events, self.incarnation = keeper.listen(lane)
        self._keeper, self._settings = keeper, settings
        self._job, self._request, self._folder = job, request, folder
        self._plan, self._replicas = plan, plan.replicas(lane)
        self._todo = deque(items)
        self.busy: dict[int, Turn] = {}
        self._paces: dict[int, float] = {}  # by replica: seconds of its last item
        self._error: JobError | None = None
        self._give_up_at: float | None = None

    def events(
        self, cancel: threading.Event, alone: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        if not self._keeper.ready.is_set():  # it went between our look and our listening
            raise Interrupted(OTHERS_FAULT)
        self._deal_all()
        while self.busy:
            if cancel.is_set():
                self._stop_all()
            try:
                event = self._events.get(timeout=TICK_S)
            except queue.Empty:
                event = None
            if isinstance(event, Gone) and not event.guilty:
                raise Interrupted(OTHERS_FAULT)
            if isinstance(event, Gone):
                raise RankDied(f"Rank {event.rank} died.")
            if event is not None and not self._take(event):
                event = None
            if self._events.empty():  # who is behind with his reading knows nothing of silence
                self._watch(alone)
            yield event if isinstance(event, Progress | Said | Done) else Tick()
        if self._error:
            raise self._error
        yield Ended(canceled=bool(self._todo) or self._give_up_at is not None)

    def _deal_all(self) -> None:
        """To every replica that is free, unless the others are so much faster."""
        now = time.monotonic()
        fastest_first = sorted(range(len(self._replicas)), key=lambda r: self._paces.get(r, 0.0))
        for replica in fastest_first:
            if not self._todo or self._give_up_at is not None:
                return
            others = {r: (self._paces.get(r), now - t.began) for r, t in self.busy.items()}
            pace = self._paces.get(replica)
            if replica not in self.busy and worth_dealing(pace, others, len(self._todo)):
                self._deal(replica)

    def _deal(self, replica: int) -> None:
        item, ranks = self._todo.popleft(), self._replicas[replica]
        now = time.monotonic()
        self.busy[replica] = Turn(
            item, set(ranks), dict.fromkeys(ranks, "dealt"), dict.fromkeys(ranks, now), now
        )
        run = Run(
            self._job,
            item.index,
            item.prompt,
            item.seed,
            self._request,
            asdict(self._plan),
            list(ranks),
            [rank for replica in self._replicas for rank in replica],
            str(self._folder),
        )
        if not self._keeper.send(list(ranks), run):
            raise RankHung("A rank of this job's lane reads nothing.")

    def _take(self, event: FromRank) -> bool:
        """Books what a rank says; False for what belongs to another job or turn."""
        replica = next((r for r, ranks in enumerate(self._replicas) if event.rank in ranks), -1)
        turn = self.busy.get(replica)
        if turn is None or getattr(event, "job", None) != self._job:
            return False
        now = time.monotonic()
        if isinstance(event, Progress):
            if event.stage == "denoise" and event.step > 1:
                turn.steps.append(now - turn.heard[event.rank])
            turn.stage[event.rank], turn.heard[event.rank] = event.stage, now
            return True
        if isinstance(event, Failed):
            self._failed(event)
        if isinstance(event, Done | Failed | Canceled):
            turn.waiting.discard(event.rank)
        if not turn.waiting:
            del self.busy[replica]
            self._paces[replica] = now - turn.began
            self._deal_all()
        return True

    def _failed(self, event: Failed) -> None:
        error = JOB_ERRORS.get(event.code, Internal)(event.message, event.stage)
        logger.error("%s item %d rank %d: %s", self._job, event.index, event.rank, error)
        if not event.clean:
            raise error
        if self._error is None or not event.echo:
            self._error = error
        self._stop_all()

    def _stop_all(self) -> None:
        """Asks once; the ranks agree on the step at which they stop."""
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + CANCEL_S
            ranks = [rank for turn in self.busy.values() for rank in turn.waiting]
            self._keeper.send(ranks, Cancel(self._job))

    def _watch(self, alone: Callable[[], bool]) -> None:
        """The step watchdog. Raises: RankHung, naming a rank that is silent."""
        now = time.monotonic()
        slow = max((self._typical(turn) for turn in self.busy.values()), default=0)
        wish = self._give_up_at
        patience = 0.0 if alone() else self._patience()
        if self.busy and wish is not None and now > max(patience, wish + 3 * slow):
            if self._error:
                raise self._error
            self._todo.clear()
            self.busy.clear()
            self._keeper.kill(self.incarnation)
            return
        for turn in self.busy.values():
            for rank in turn.waiting:
                limit = self._limit(turn, turn.stage[rank])
                if now - turn.heard[rank] > limit:
                    stage = turn.stage[rank]
                    raise RankHung(f"Rank {rank} said nothing for {limit:.0f} s.", stage)

    def _patience(self) -> float:
        """Until when a lane that was asked to stop may be in a stage that asks nobody: a load, a
        first step that compiles, a decoding. To kill it costs every other lane its work."""
        return max(
            (
                turn.heard[rank] + self._limit(turn, turn.stage[rank])
                for turn in self.busy.values()
                for rank in turn.waiting
                if turn.stage[rank] != "denoise" or not turn.steps
            ),
            default=0.0,
        )

    def _limit(self, turn: Turn, stage: str) -> float:
        if stage in ("load_model", MEETING):  # to meet is to wait for a peer that may be loading
            return self._settings.load_timeout_s
        if stage == "dealt" or (stage == "denoise" and turn.steps):
            return max(self._settings.stall_s, 10 * self._typical(turn))
        return self._settings.stage_timeout_s  # of the first step too: nothing is known of it

    def _typical(self, turn: Turn) -> float:
        """Seconds of a denoising step."""
        return statistics.median(turn.steps) if turn.steps else 0.0
