"""What the task needs of its worker; the bootstep sets it as app.fleet."""

import logging
import secrets
import shutil
import time
from dataclasses import dataclass, field
from typing import Any

from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog, ModelSpec
from jobs.errors import StoreUnavailable
from jobs.record import Claim
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.weights import encoder_bytes, weights_bytes
from worker.gpus import NOTHING, Gpus
from worker.group import Group
from worker.lanes import Lanes
from worker.lease import Drain
from worker.planner import Room

logger = logging.getLogger(__name__)

FAULTS_S = 600  # how long a GPU's fault is remembered
AWAY_S = 0.5  # between tries while Redis is away
LONG_S = 0.02  # of Redis, for a claim
REST_S = 30  # for so long a worker takes no more jobs once its spool or its storage refused one


@dataclass
class Fleet:
    name: str  # of this worker
    settings: Settings
    catalog: Catalog
    store: JobStore
    storage: ArtifactStorage
    group: Group
    drain: Drain
    lanes: Lanes
    at_work: set[str] = field(default_factory=set)  # jobs that are looked after here
    start: str = field(default_factory=lambda: secrets.token_hex(8))  # one life of its name
    heard: float = field(default_factory=time.monotonic)  # when the last hint came
    rests_until: float = 0.0
    _rests_for: str = ""
    _gpu_faults: dict[str, float] = field(default_factory=dict)  # job -> when
    _looks_at: float = 0.0  # for a job again, at the earliest
    _gpus: Gpus = field(default_factory=Gpus)

    @property
    def idle(self) -> bool:
        """Whether it could take a job at once."""
        return self.group.ready and self.lanes.idle and not self.refusing

    @property
    def refusing(self) -> str | None:
        """Why this worker takes no jobs, if it does not."""
        if self.drain.begun:
            return self.drain.reason
        try:
            self.settings.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.settings.spool).free
        except OSError as error:
            return f"its spool can't be used: {error.strerror}"
        if free < self.settings.spool_free_bytes:
            return f"its spool has {free / 1e9:.2g} GB left"
        return self._rests_for if time.monotonic() < self.rests_until else None

    def loaded(self) -> list[str]:
        """The models that some rank of this worker has in memory."""
        return [model for model in self.catalog if self.group.holders(model)]

    def loaded_elsewhere(self) -> set[str]:
        """The models in memory of other workers that wait for a job, of any that we could run."""
        others = [
            about
            for name, about in self.store.workers.alive().items()
            if name != self.name and about.get("idle") and about["size"] >= self.group.size
        ]
        return {model for worker in others for model in worker.get("loaded", ())}

    def claim(self, queue: str, loaded_elsewhere: set[str]) -> Claim | None:
        """The next job that this worker can run. Asks again where Redis does not answer, for a
        lease: it may have heard, and a job that nobody runs counts as a crash.
        Raises: StoreUnavailable."""
        about = self.group.size, self.loaded(), loaded_elsewhere, list(self.catalog)
        time.sleep(max(0.0, self._looks_at - time.monotonic()))
        nonce, until = secrets.token_hex(4), time.monotonic() + self.settings.lease_s
        while True:
            try:
                began = time.monotonic()
                if claim := self.store.claim(queue, self.name, *about, nonce):
                    return claim
                took_s = time.monotonic() - began
                if took_s > LONG_S:  # many wait that it can't run: a hint of each, and in vain
                    self._looks_at = began + 10 * took_s
                return None
            except StoreUnavailable:
                if self.drain.begun or time.monotonic() > until:
                    raise
                time.sleep(AWAY_S)

    def waiting(self, queue: str) -> int:
        """How many jobs it could claim now, up to its ranks. Raises: StoreUnavailable."""
        return self.store.waiting(queue, self.group.size, list(self.catalog))

    def announce(self) -> None:
        """Says to the API and to the others that this worker is there. Raises: StoreUnavailable."""
        ttl_s = max(15, int(4 * self.settings.reap_s))
        self.store.workers.announce(self.name, self.announcement(), ttl_s)

    def announcement(self) -> dict[str, Any]:
        """What this worker says of itself to the API and to the other workers."""
        group = self.group.about()
        uuids = [rank["uuid"] for rank in group["ranks"] if rank["uuid"]]
        readings = self._gpus.latest(uuids)
        ranks = [{**rank, **readings.get(rank["uuid"], NOTHING)} for rank in group["ranks"]]
        return {
            "start": self.start,
            "size": self.group.size,
            "group": {**group, "ranks": ranks},
            "models": list(self.catalog),
            "loaded": self.loaded(),
            "idle": self.idle,
            "draining": self.refusing,
        }

    def rest(self, reason: str) -> None:
        """The next jobs are for others, for a while."""
        self.rests_until, self._rests_for = time.monotonic() + REST_S, reason

    def gpu_fault(self, job: str) -> None:
        """A GPU has failed under this job. Where it was not the job's doing, for others failed here
        too, the worker takes no more."""
        now, limit = time.monotonic(), self.settings.gpu_faults
        self._gpu_faults = {j: at for j, at in self._gpu_faults.items() if at > now - FAULTS_S}
        self._gpu_faults[job] = now
        if limit and len(self._gpu_faults) >= limit:
            self.drain.begin(f"GPU faults under {limit} jobs within {FAULTS_S // 60} minutes")
            logger.critical("drained: %s", self.drain.reason)

    def room(self, spec: ModelSpec) -> Room:
        """For a model's weights, on the ranks of this worker."""
        source = spec.source(self.settings.models_dir)
        bytes_of = weights_bytes(source, spec.dtype), encoder_bytes(source, spec.dtype)
        return Room(*bytes_of, self.group.least_memory())
