"""The scripts against a plain Python model of them: random steps, the same answers."""

import secrets
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from jobs.catalog import Catalog
from jobs.errors import LeaseLost
from jobs.parse import parse_request
from jobs.record import TRANSITIONS, Claim, JobState
from jobs.store import JobStore
from tests.conftest import Server

ERROR = {"code": "rank_died", "message": "Rank 1 died.", "stage": None, "retryable": True}
PRIORITIES = ["high", "normal", "low"]


@dataclass
class Known:
    """What the model knows of one job."""

    order: tuple[int, int]
    ranks: int
    state: JobState = JobState.QUEUED
    token: str | None = None
    attempt: int = 0
    errors: int = 0
    wished: bool = False
    deleted: bool = False
    claims: list[Claim] = field(default_factory=list)


class Life(RuleBasedStateMachine):
    """One queue, two sizes of workers; leases that don't run out (time is tested elsewhere)."""

    ids = Bundle("ids")
    store: JobStore
    catalog: Catalog

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Known] = {}
        self.keys: dict[str, str] = {}
        self.count = 0

    @rule(
        target=ids,
        priority=st.sampled_from(PRIORITIES),
        ranks=st.sampled_from([1, 4]),
        key=st.sampled_from(["", "", "k1", "k2"]),
    )
    def submit(self, priority: str, ranks: int, key: str) -> str:
        body = {"model": "tiny-image", "input": {"prompt": "x"}, "priority": priority}
        body["parallel"] = {"data": ranks}
        id, created = self.store.submit(parse_request(body, self.catalog)[0], key=key)
        before = self.jobs.get(self.keys.get(key, ""))
        assert created == (before is None or before.deleted)
        if not created:
            assert id == self.keys[key]
            return id
        if key:
            self.keys[key] = id
        self.count += 1
        self.jobs[id] = Known((PRIORITIES.index(priority), self.count), ranks)
        return id

    @rule(ranks=st.sampled_from([2, 4]))
    def claim(self, ranks: int) -> None:
        waiting = [
            (known.order, id)
            for id, known in self.jobs.items()
            if known.state is JobState.QUEUED and known.ranks <= ranks
        ]
        claim = self.store.claim("gpu", "w", ranks)
        if not waiting:
            assert claim is None
            return
        _, expected = min(waiting)
        assert claim is not None and claim.id == expected
        known = self.jobs[expected]
        known.state, known.token = JobState.RUNNING, claim.token
        known.attempt += 1
        known.claims.append(claim)
        assert claim.attempt == known.attempt and len(claim.errors) == known.errors

    def holder(self, id: str, back: int) -> tuple[Known, Claim | None, bool]:
        """A claim of this job, the newest or an older one, and whether it is worth something."""
        known = self.jobs[id]
        if len(known.claims) <= back:
            return known, None, False
        claim = known.claims[-1 - back]
        # A requeued job has no lease, but its last token is the newest until somebody claims.
        good = claim.token == known.token and not known.state.final
        return known, claim, good

    @rule(id=ids, back=st.integers(0, 1))
    def renew(self, id: str, back: int) -> None:
        known, claim, good = self.holder(id, back)
        if claim is None or known.state is JobState.QUEUED:
            return
        try:
            assert self.store.renew(claim) == known.wished and good
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
            assert good
            known.state = state
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
        if known.wished:
            assert state is JobState.CANCELED
        else:
            assert state is JobState.QUEUED
            known.errors += counted
        known.state = state

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        known = self.jobs[id]
        assert self.store.cancel(id) == (not known.deleted)
        self._wish(known)

    @rule(id=ids)
    def delete(self, id: str) -> None:
        known = self.jobs[id]
        assert self.store.delete(id) == (not known.deleted)
        self._wish(known)
        known.deleted = True

    def _wish(self, known: Known) -> None:
        if known.deleted:
            return
        if known.state is JobState.QUEUED:
            known.state = JobState.CANCELED
        elif known.state is JobState.RUNNING:
            known.wished = True

    @rule()
    def reap(self) -> None:
        due, purge = self.store.reap()
        waiting = {id for id, known in self.jobs.items() if known.state is JobState.QUEUED}
        assert set(due) <= waiting
        ended = {id for id, known in self.jobs.items() if known.deleted and known.state.final}
        assert set(purge) == ended

    @invariant()
    def the_records_are_as_the_model_says(self) -> None:
        for id, known in self.jobs.items():
            job = self.store.get(id)
            if known.deleted:
                assert job is None
                continue
            assert job is not None and job.state is known.state
            assert len(job.attempts) == known.attempt
            assert job.state.final == (not TRANSITIONS[job.state])
            listed = self.store.list_jobs(state=known.state, limit=100)[0]
            assert id in [j.id for j in listed]


def test_the_scripts_do_what_the_model_does(valkey: Server, catalog: Catalog) -> None:
    class Fresh(Life):
        def __init__(self) -> None:
            super().__init__()
            self.store = JobStore(valkey.url, f"model-{secrets.token_hex(4)}", 300)
            self.catalog = catalog

    run_state_machine_as_test(
        Fresh,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
