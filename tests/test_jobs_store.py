"""The job's life on a real Valkey."""

import secrets
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.errors import KeyReused, LeaseLost, StoreUnavailable
from jobs.record import TRANSITIONS, JobState
from jobs.request import JobRequest
from jobs.store import JobStore
from tests.conftest import Server, until
from tests.fixtures.jobs import ask, claim

ERROR = {"code": "rank_died", "message": "Rank 1 died.", "stage": "denoise", "retryable": True}


@pytest.fixture
def request_(catalog: Catalog) -> JobRequest:
    return ask(catalog)


def state(store: JobStore, id: str) -> JobState:
    job = store.get(id)
    assert job is not None
    return job.state


def test_a_job_goes_from_queued_to_succeeded(store: JobStore, request_: JobRequest) -> None:
    id, created = store.submit(request_)
    assert created and state(store, id) is JobState.QUEUED
    mine = claim(store)
    assert mine.id == id and mine.attempt == 1 and store.claim("gpu", "w2", 2) is None
    assert store.renew(mine, {"data": 1}, {"value": 0.5}) is False
    store.finish(mine, JobState.SUCCEEDED, [], {"total_s": 1})
    job = store.get(id)
    assert job is not None and job.state is JobState.SUCCEEDED and job.state.final
    assert job.progress == {"value": 0.5} and job.plan == {"data": 1}
    assert [a.worker for a in job.attempts] == ["w1"] and job.attempts[0].ended_at
    with pytest.raises(LeaseLost):
        store.finish(mine, JobState.FAILED)


def test_every_change_has_its_number(store: JobStore, request_: JobRequest) -> None:
    id, _ = store.submit(request_)
    seen = [store.seq(id)]
    mine = claim(store)
    for step in (
        lambda: store.renew(mine, progress={"value": 0.1}),
        lambda: store.cancel(id),
        lambda: store.finish(mine, JobState.CANCELED),
    ):
        seen.append(store.seq(id))
        step()
    assert seen == sorted(set(seen))


def test_one_key_makes_one_job_from_fifty_threads(store: JobStore, request_: JobRequest) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(lambda _: store.submit(request_, key="k", body_hash="h"), range(50))
        )
    assert len({id for id, _ in answers}) == 1
    assert Counter(created for _, created in answers) == {True: 1, False: 49}
    with pytest.raises(KeyReused):
        store.submit(request_, key="k", body_hash="another")
    other, created = store.submit(request_, key="k", body_hash="another", asker=Asker("b"))
    assert created and other != answers[0][0]


def test_a_step_that_is_sent_twice_is_done_once(store: JobStore, request_: JobRequest) -> None:
    store.submit(request_)
    mine = claim(store)
    assert store.fail(mine, ERROR, 0) is store.fail(mine, ERROR, 0) is JobState.QUEUED
    assert len(claim(store).errors) == 1


def test_cancel_ends_a_queued_job_and_asks_a_running_one(
    store: JobStore, request_: JobRequest
) -> None:
    queued, _ = store.submit(request_)
    assert store.cancel(queued) and state(store, queued) is JobState.CANCELED
    assert store.cancel(queued), "again is no error"
    running, _ = store.submit(request_)
    mine = claim(store)
    assert mine.id == running, "the canceled one is not handed out"
    assert store.cancel(running) and store.renew(mine) is True
    job = store.get(running)
    assert job is not None and job.status == "canceling"
    assert store.fail(mine, ERROR, 0) is JobState.CANCELED, "no retry of what nobody wants"
    assert not store.cancel("job_unknown") and not store.cancel(running, tenant="other")


def test_a_failed_attempt_waits_its_delay_and_keeps_its_error(
    store: JobStore, request_: JobRequest
) -> None:
    id, _ = store.submit(request_)
    assert store.fail(claim(store), ERROR, 1.5) is JobState.QUEUED
    assert store.claim("gpu", "w2", 2) is None, "not yet"
    time.sleep(1.6)
    again = claim(store, "w2")
    assert again.id == id and again.attempt == 2 and again.errors == [ERROR]
    assert store.fail(again, ERROR, 0, counted=False) is JobState.QUEUED
    assert len(claim(store, "w3").errors) == 1, "an interruption does not count"
    job = store.get(id)
    assert job is not None and [a.error for a in job.attempts] == [ERROR, ERROR, None]


def test_a_deadline_ends_what_waits(store: JobStore, catalog: Catalog) -> None:
    id, _ = store.submit(ask(catalog, deadline_s=0.2))
    kept, _ = store.submit(ask(catalog, deadline_s=100))
    time.sleep(0.25)
    store.upkeep.reap()
    assert state(store, id) is JobState.EXPIRED
    late, _ = store.submit(ask(catalog, deadline_s=0.2))
    time.sleep(0.25)
    mine = claim(store)
    assert mine.id == kept and mine.deadline_s is not None and 90 < mine.deadline_s < 100
    assert store.claim("gpu", "w", 2) is None and state(store, late) is JobState.EXPIRED
    assert store.fail(mine, ERROR, 200) is JobState.FAILED, "no time for another attempt"
    job = store.get(kept)
    assert job is not None and job.error is not None and job.attempts[0].error == ERROR
    assert job.error["code"] == "deadline_exceeded"


def short(valkey: Server) -> JobStore:
    return JobStore(valkey.url, f"test-{secrets.token_hex(4)}", lease_s=0.3)


def lose(store: JobStore) -> None:
    """Lets every lease run out while a reaper is at work."""
    until(lambda: store.upkeep.reap() and store.queues.about("gpu").running == 0)


def test_a_zombie_that_wakes_after_another_took_over_is_fenced(
    valkey: Server, request_: JobRequest
) -> None:
    store = short(valkey)
    id, _ = store.submit(request_)
    zombie = claim(store, "zombie")
    lose(store)
    assert state(store, id) is JobState.QUEUED
    mine = claim(store, "w2")
    for step in (
        lambda: store.renew(zombie),
        lambda: store.finish(zombie, JobState.SUCCEEDED),
        lambda: store.fail(zombie, ERROR, 0),
    ):
        with pytest.raises(LeaseLost):
            step()
    store.finish(mine, JobState.SUCCEEDED)
    job = store.get(id)
    assert job is not None and job.attempts[0].error is not None
    assert job.attempts[0].error["code"] == "worker_lost"


def test_a_zombie_that_wakes_first_keeps_its_job(valkey: Server, request_: JobRequest) -> None:
    store = short(valkey)
    id, _ = store.submit(request_)
    mine = claim(store)
    lose(store)
    assert store.renew(mine) is False and state(store, id) is JobState.RUNNING
    assert store.claim("gpu", "w2", 2) is None, "nobody else gets it"
    store.finish(mine, JobState.SUCCEEDED)
    job = store.get(id)
    assert job is not None and job.attempts[0].error is None


def test_a_zombie_whose_first_word_is_its_last_was_not_lost(
    valkey: Server, request_: JobRequest
) -> None:
    store = short(valkey)
    id, _ = store.submit(request_)
    mine = claim(store)
    lose(store)
    store.finish(mine, JobState.SUCCEEDED)
    job = store.get(id)
    assert job is not None and job.state is JobState.SUCCEEDED and job.attempts[0].error is None
    store.finish(mine, JobState.SUCCEEDED)  # once more: the answer got lost
    with pytest.raises(LeaseLost):
        store.finish(mine, JobState.FAILED)
    assert state(store, id) is JobState.SUCCEEDED


def test_the_third_lost_worker_makes_a_job_poisoned(valkey: Server, request_: JobRequest) -> None:
    store = short(valkey)
    id, _ = store.submit(request_)
    for attempt in (1, 2, 3):
        assert claim(store).attempt == attempt
        lose(store)
    job = store.get(id)
    assert job is not None and job.state is JobState.FAILED
    assert job.error is not None and job.error["code"] == "poisoned"


def test_an_outage_of_all_reapers_costs_no_lease(valkey: Server, request_: JobRequest) -> None:
    store = short(valkey)
    id, _ = store.submit(request_)
    store.upkeep.reap()
    claim(store)
    time.sleep(0.5)
    store.upkeep.reap()
    assert state(store, id) is JobState.RUNNING, "nobody could renew: everybody gets a new lease"
    lose(store)
    assert state(store, id) is JobState.QUEUED


def test_a_hint_is_due_until_sent_and_again_when_lost(
    store: JobStore, request_: JobRequest
) -> None:
    silent, _ = store.submit(request_)
    hinted, _ = store.submit(request_)
    store.hinted(hinted)
    assert store.upkeep.reap()[0] == [silent], "the API died before it sent this one"
    assert store.upkeep.reap()[0] == []
    claim(store), claim(store)
    assert store.upkeep.reap()[0] == []


def test_a_deleted_job_is_gone_at_once_and_its_record_after_its_files(
    store: JobStore, request_: JobRequest
) -> None:
    done, _ = store.submit(request_)
    store.finish(claim(store), JobState.SUCCEEDED)
    running, _ = store.submit(request_)
    mine = claim(store)
    assert store.delete(done) and store.delete(running) and not store.delete(done)
    assert store.get(done) is None and store.get(running) is None
    assert store.lists.page()[0] == []
    assert store.upkeep.reap()[1] == [done], "the running one is asked to stop first"
    store.upkeep.purged(done)
    assert store.renew(mine) is True
    store.finish(mine, JobState.CANCELED)
    assert store.upkeep.reap()[1] == [running]
    store.upkeep.purged(running)
    assert store.upkeep.reap()[1] == [] and store.seq(running) == 0


def test_what_an_attempt_may_still_upload_is_removed_later(
    store: JobStore, request_: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.upkeep.PURGE_AGAIN_S", 1.5)
    begun, _ = store.submit(request_)
    store.finish(claim(store), JobState.CANCELED)
    waited, _ = store.submit(request_)
    assert store.delete(begun) and store.delete(waited)
    assert set(store.upkeep.reap()[1]) == {begun, waited}
    for _ in range(2):  # by two reapers
        store.upkeep.purged(begun), store.upkeep.purged(waited)
    assert store.upkeep.reap()[1] == []
    time.sleep(1.6)
    assert store.upkeep.reap()[1] == [begun]
    store.upkeep.purged(begun)
    assert store.upkeep.reap()[1] == []


def test_workers_are_there_for_as_long_as_they_say_so(store: JobStore) -> None:
    store.workers.announce("w1", {"size": 2}, ttl_s=3)
    store.workers.announce("w2", {"size": 4})
    time.sleep(0.3)
    alive = store.workers.alive()
    assert {name: about["size"] for name, about in alive.items()} == {"w1": 2, "w2": 4}
    assert all(0.3 <= about["heartbeat_age_s"] < 3 for about in alive.values())
    store.workers.leave("w2")
    assert "w2" not in store.workers.alive()
    until(lambda: store.workers.alive() == {}, timeout_s=10)  # before what is usual, 15 s


def test_a_redis_that_is_away_is_said_within_three_seconds(request_: JobRequest) -> None:
    nobody = JobStore("redis://127.0.0.1:1/0", "test")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        nobody.submit(request_)
    assert time.monotonic() - began < 8


def test_final_states_lead_nowhere() -> None:
    assert {s for s in JobState if s.final} == {
        JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED,
    }  # fmt: skip
    assert set(TRANSITIONS) == set(JobState)


def test_a_redis_that_has_forgotten_the_scripts_is_told_them_again(
    store: JobStore, catalog: Catalog
) -> None:
    store._redis.script_flush()
    id, created = store.submit(ask(catalog), key="k", body_hash="b")
    assert created and store.submit(ask(catalog), key="k", body_hash="b") == (id, False)
    assert store.get(id)
