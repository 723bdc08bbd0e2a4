"""A worker that dies while it publishes, of whose job then nobody but the storage knows.

The test is that worker: it claims, says that it will publish, publishes or not, and is not heard of
any more. Then something ends the job, and a real worker has to find out how.
"""

import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog
from jobs.errors import LeaseLost
from jobs.lists import DEAD
from jobs.record import Claim, JobState
from jobs.settings import Settings
from jobs.store import JobStore
from tests.conftest import Server, until
from tests.fixtures.jobs import ask, claim
from tests.fixtures.worker import LoneWorker
from worker.lease import Drain, Lease
from worker.publish import Voided, commit, void

LEASE_S = 0.3
RUNS, WAITS, LATE, THRICE = "canceled as it ran", "canceled as it waited", "late", "lost thrice"
ENDS: dict[str, tuple[JobState, str | None]] = {
    RUNS: (JobState.CANCELED, None),
    WAITS: (JobState.CANCELED, None),
    LATE: (JobState.FAILED, "deadline_exceeded"),
    THRICE: (JobState.FAILED, "poisoned"),
}


def lost(store: JobStore, ids: list[str]) -> None:
    """The leases run out, and no script knows how the jobs ended."""

    def queued() -> bool:
        store.upkeep.reap()
        return {job.state for id in ids if (job := store.get(id))} == {JobState.QUEUED}

    until(queued, 60)


def test_a_job_has_a_manifest_if_and_only_if_it_succeeded(
    valkey: Server, catalog: Catalog, models_dir: Path, tmp_path: Path
) -> None:
    prefix = f"settle-{secrets.token_hex(4)}"
    store = JobStore(valkey.url, prefix, LEASE_S)
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    held: dict[tuple[str, bool], Claim] = {}
    for end in ENDS:
        for publishes in (True, False):
            fields: dict[str, Any] = {"deadline_s": 3} if end == LATE else {}
            store.submit(ask(catalog, priority="high" if end == THRICE else "low", **fields))
            held[end, publishes] = mine = claim(store)
            assert not store.renew(mine, publish=True)
            if publishes:
                commit(storage, mine, [], {"total_s": 1.0})
    ids = [mine.id for mine in held.values()]
    of = {end: [held[end, publishes].id for publishes in (True, False)] for end in ENDS}
    for id in of[RUNS]:
        store.cancel(id)
    lost(store, ids)
    for _ in range(2):
        assert sorted(claim(store).id for _ in of[THRICE]) == of[THRICE]
        lost(store, ids)
    for id in of[WAITS]:
        store.cancel(id)
        job = store.get(id)
        assert job and job.status == "canceling"
    until(lambda: all((j := store.get(id)) and time.time() > j.deadline_at for id in of[LATE]))
    lost(store, ids)

    own = {"FLEET_REDIS_URL": valkey.url, "FLEET_KEY_PREFIX": prefix, "FLEET_REAP_S": "0.5"}
    worker = LoneWorker(tmp_path, models_dir, **own)
    try:
        ended = {key: worker.wait(mine.id) for key, mine in held.items()}
    finally:
        assert worker.stop() == 0
    for (end, published), job in ended.items():
        state, code = ENDS[end]
        if published:
            assert job.state is JobState.SUCCEEDED and job.metrics == {"total_s": 1.0}, end
        else:
            assert (job.state, (job.error or {}).get("code")) == (state, code), end
            with pytest.raises(Voided) as verdict:
                commit(storage, held[end, False], [], {})
            assert verdict.value.state is state, "who holds it ends it so"
    assert [job.id for job in store.lists.page(wanted=DEAD)[0]] == [held[THRICE, False].id]


def test_a_job_that_was_voided_ends_so_whoever_holds_it(
    valkey: Server, catalog: Catalog, models_dir: Path, tmp_path: Path
) -> None:
    """The worker that voided it was lost before it could say so to Redis."""
    prefix = f"settle-{secrets.token_hex(4)}"
    store = JobStore(valkey.url, prefix, LEASE_S)
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    store.submit(ask(catalog))
    mine = claim(store)
    assert not store.renew(mine, publish=True)
    error = {"code": "out_of_memory", "message": "x", "stage": None, "retryable": False}
    assert void(storage, mine, Voided(JobState.FAILED, error, True)) is None
    lost(store, [mine.id])
    own = {"FLEET_REDIS_URL": valkey.url, "FLEET_KEY_PREFIX": prefix, "FLEET_REAP_S": "0.5"}
    worker = LoneWorker(tmp_path, models_dir, **own)
    try:
        job = worker.wait(mine.id)
    finally:
        assert worker.stop() == 0
    assert job.state is JobState.FAILED and job.error == error
    assert [each.id for each in store.lists.page(wanted=DEAD)[0]] == [mine.id]


def test_who_slept_voids_nothing_that_another_is_making(store: JobStore, catalog: Catalog) -> None:
    store.submit(ask(catalog))
    mine = claim(store)
    lease = Lease(store, mine, Drain())
    lease.still_ours()
    store.fail(mine, {"code": "rank_died"}, 0)
    claim(store)
    with pytest.raises(LeaseLost):
        lease.still_ours()
