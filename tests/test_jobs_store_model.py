"""The scripts against a plain Python model of them: random steps, the same answers."""

import secrets
from dataclasses import dataclass, field

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.errors import LeaseLost
from jobs.lists import DEAD, Wanted
from jobs.parse import parse_request
from jobs.record import TRANSITIONS, Claim, JobState
from jobs.store import JobStore
from tests.conftest import Server

ERROR = {"code": "rank_died", "message": "Rank 1 died.", "stage": None, "retryable": True}
PRIORITIES = ["high", "normal", "low"]
CRASHES = 3


@dataclass
class Known:
    """What the model knows of one job."""

    priority: int
    tenant: str
    number: int
    ranks: int
    state: JobState = JobState.QUEUED
    token: str | None = None
    attempt: int = 0
    errors: int = 0
    wished: bool = False
    committing: bool = False
    crashes: int = 0
    lost: bool = False  # queued, for its lease ran out
    deleted: bool = False
    claims: list[Claim] = field(default_factory=list)


class Life(RuleBasedStateMachine):
    """One queue, two sizes of workers; leases that run out when they are told to."""

    ids = Bundle("ids")
    store: JobStore
    catalog: Catalog
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Known] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.purged: set[str] = set()
        self.count = 0
        self.served: dict[str, int] = {}  # tenant -> when, of its last job

    @rule(
        target=ids,
        priority=st.sampled_from(PRIORITIES),
        ranks=st.sampled_from([1, 4]),
        key=st.sampled_from(["", "", "k1", "k2"]),
        tenant=st.sampled_from(["a", "b", "c"]),
    )
    def submit(self, priority: str, ranks: int, key: str, tenant: str) -> str:
        body = {"model": "tiny-image", "input": {"prompt": "x"}, "priority": priority}
        body["parallel"] = {"data": ranks}
        id, created = self.store.submit(
            parse_request(body, self.catalog)[0], asker=Asker(tenant), key=key
        )
        before = self.jobs.get(self.keys.get((tenant, key), ""))
        assert created == (before is None or before.deleted)
        if not created:
            assert id == self.keys[tenant, key]
            return id
        if key:
            self.keys[tenant, key] = id
        self.count += 1
        self.jobs[id] = Known(PRIORITIES.index(priority), tenant, self.count, ranks)
        return id

    @staticmethod
    def fits(known: Known, ranks: int) -> bool:
        settled = known.committing and (known.wished or known.crashes >= CRASHES)
        return known.state is JobState.QUEUED and (known.ranks <= ranks or settled)

    @rule(ranks=st.sampled_from([2, 4]))
    def claim(self, ranks: int) -> None:
        waiting = [
            (
                min(
                    other.priority
                    for other in self.jobs.values()
                    if other.tenant == known.tenant and self.fits(other, ranks)
                ),
                self.served.get(known.tenant, 0),
                known.priority,
                known.number,
                id,
            )
            for id, known in self.jobs.items()
            if self.fits(known, ranks)
        ]
        claim = self.store.claim("gpu", "w", ranks)
        if not waiting:
            assert claim is None
            return
        *_, expected = min(waiting)
        assert claim is not None and claim.id == expected
        known = self.jobs[expected]
        self.count += 1
        self.served[known.tenant] = self.count
        known.state, known.token = JobState.RUNNING, claim.token
        known.attempt += 1
        known.lost = False
        known.claims.append(claim)
        assert claim.attempt == known.attempt and len(claim.errors) == known.errors
        assert (claim.committing, claim.canceled) == (known.committing, known.wished)
        assert claim.poisoned == (known.crashes >= CRASHES)

    def holder(self, id: str, back: int) -> tuple[Known, Claim | None, bool]:
        """A claim of this job, the newest or an older one, and whether it is worth something."""
        known = self.jobs[id]
        if len(known.claims) <= back:
            return known, None, False
        claim = known.claims[-1 - back]
        # A requeued job has no lease, but its last token is the newest until somebody claims.
        good = claim.token == known.token and not known.state.final
        return known, claim, good

    @rule(id=ids, back=st.integers(0, 1), publish=st.booleans())
    def renew(self, id: str, back: int, publish: bool) -> None:
        known, claim, good = self.holder(id, back)
        if claim is None or (known.state is JobState.QUEUED and not known.lost):
            return
        try:
            assert self.store.renew(claim, publish=publish) == known.wished and good
            if known.lost:  # nobody has claimed it meanwhile
                known.state, known.lost = JobState.RUNNING, False
                known.crashes -= 1
            known.committing |= publish and not known.wished
        except LeaseLost:
            assert not good

    @rule(
        id=ids,
        back=st.integers(0, 1),
        state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED]),
    )
    def finish(self, id: str, back: int, state: JobState) -> None:
        known, claim, good = self.holder(id, back)
        if claim is None:
            return
        try:
            self.store.finish(claim, state, error=ERROR if state is JobState.FAILED else None)
            again = known.state is state and claim.token == known.token
            assert good or again, "the answer to the first may have been lost"
            known.state, known.lost = state, False
        except LeaseLost:
            assert not good

    @rule(id=ids, back=st.integers(0, 1), counted=st.booleans())
    def fail(self, id: str, back: int, counted: bool) -> None:
        known, claim, good = self.holder(id, back)
        if claim is None or known.state is JobState.QUEUED:
            return
        try:
            state = self.store.fail(claim, ERROR, 0, counted)
            assert good
        except LeaseLost:
            assert not good
            return
        if known.wished and not known.committing:
            assert state is JobState.CANCELED
        else:
            assert state is JobState.QUEUED
            known.errors += counted
        known.state = state

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        known = self.jobs[id]
        assert self.store.cancel(id, known.tenant) == (not known.deleted)
        self._wish(known)

    @rule(id=ids)
    def delete(self, id: str) -> None:
        known = self.jobs[id]
        assert self.store.delete(id, known.tenant) == (not known.deleted)
        self._wish(known)
        known.deleted = True

    def _wish(self, known: Known) -> None:
        if known.deleted:
            return
        if known.state is JobState.QUEUED and not known.committing:
            known.state = JobState.CANCELED
        elif not known.state.final:
            known.wished = True

    @rule(id=ids)
    def lease_runs_out(self, id: str) -> None:
        known = self.jobs[id]
        if known.state is not JobState.RUNNING:
            return
        with redis.Redis.from_url(self.url) as direct:
            direct.zadd(f"{self.store._prefix}:running", {id: 1.0}, xx=True)
        known.crashes += 1
        if known.committing:
            known.state = JobState.QUEUED
        elif known.wished:
            known.state = JobState.CANCELED
        elif known.crashes >= CRASHES:
            known.state = JobState.FAILED
        else:
            known.state = JobState.QUEUED
        known.lost = known.state is JobState.QUEUED
        self.reap()
        if not known.deleted:
            dead = [job.id for job in self.store.lists.page(known.tenant, DEAD, 100)[0]]
            assert (id in dead) == (known.state is JobState.FAILED)

    @rule()
    def reap(self) -> None:
        due, purge, _ = self.store.upkeep.reap()
        waiting = {id for id, known in self.jobs.items() if known.state is JobState.QUEUED}
        assert set(due) <= waiting
        ended = {id for id, known in self.jobs.items() if known.deleted and known.state.final}
        assert set(purge) == ended - self.purged
        for id in purge:
            self.store.upkeep.purged(id)
        self.purged.update(purge)

    @invariant()
    def the_records_are_as_the_model_says(self) -> None:
        for id, known in self.jobs.items():
            job = self.store.get(id, known.tenant)
            assert self.store.get(id, "nobody") is None
            if known.deleted:
                assert job is None
                continue
            assert job is not None and job.state is known.state
            assert len(job.attempts) == known.attempt
            assert job.state.final == (not TRANSITIONS[job.state])
            listed = self.store.lists.page(known.tenant, Wanted(job.status), 100)[0]
            assert id in [j.id for j in listed]


def test_the_scripts_do_what_the_model_does(valkey: Server, catalog: Catalog) -> None:
    class Fresh(Life):
        def __init__(self) -> None:
            super().__init__()
            self.store = JobStore(valkey.url, f"model-{secrets.token_hex(4)}", 300)
            self.catalog, self.url = catalog, valkey.url

    run_state_machine_as_test(
        Fresh,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
