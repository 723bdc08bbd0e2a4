"""What is refused before it is recorded, on a real Valkey."""

import secrets
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from jobs.artifacts import ArtifactStorage
from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.errors import QueueFull, StoreFull
from jobs.record import JobState
from jobs.settings import Settings
from jobs.store import JobStore
from tests.conftest import Server
from tests.fixtures.jobs import ask, claim
from worker.fleet import Fleet
from worker.group import Group
from worker.lanes import Lanes
from worker.lease import Drain


def test_so_many_jobs_may_wait_in_all_and_of_one_tenant(valkey: Server, catalog: Catalog) -> None:
    store = JobStore(valkey.url, secrets.token_hex(4), max_queued=3, max_queued_per_tenant=2)
    first, _ = store.submit(ask(catalog), key="k", body_hash="h")
    store.submit(ask(catalog))
    with pytest.raises(QueueFull, match="2 jobs are waiting"):
        store.submit(ask(catalog), key="another")
    assert store.submit(ask(catalog), key="k", body_hash="h") == (first, False), "it is there"
    store.submit(ask(catalog), asker=Asker("b"))
    with pytest.raises(QueueFull, match="3 jobs are waiting"):
        store.submit(ask(catalog), asker=Asker("c"))
    assert claim(store).id == first
    assert store.submit(ask(catalog), key="another", asker=Asker("c"))[1], "the key was not taken"


def test_new_jobs_are_refused_before_redis_refuses_what_running_ones_write(
    store: JobStore, valkey: Server, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    mine = claim(store)
    with redis.Redis.from_url(valkey.url) as direct:
        direct.config_set("maxmemory", int(direct.info("memory")["used_memory"] * 1.05))
        try:
            with pytest.raises(StoreFull, match="hardly any memory"):
                store.submit(ask(catalog))
            assert store.renew(mine, progress={"value": 0.5}) is False
            direct.config_set("maxmemory", 1000)  # and now it takes nothing more
            with pytest.raises(redis.ResponseError, match="maxmemory"):
                direct.set("x", 1)
            store.finish(mine, JobState.SUCCEEDED)
            assert store.delete(id), "which is what makes room"
            store.upkeep.reap()
        finally:
            direct.config_set("maxmemory", 0)
    assert mine.id == id and store.submit(ask(catalog))[1]


def test_a_worker_whose_disk_is_full_takes_no_jobs_and_says_so(
    store: JobStore, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, spool_free_bytes=0)
    settings.spool.mkdir()
    group = Group(1, settings)
    group.start()
    try:
        parts = (catalog, store, ArtifactStorage(settings), group, Drain(), Lanes(1))
        fleet = Fleet("w", settings, *parts)
        assert fleet.refusing is None and fleet.idle
        fleet.rest("its spool failed")
        assert fleet.refusing == "its spool failed" and not fleet.idle
        fleet.rests_until = 0
        assert fleet.idle
        monkeypatch.setattr("worker.fleet.LONG_S", 60.0)
        assert fleet.claim("gpu", set()) is None and not fleet._looks_at
        monkeypatch.setattr("worker.fleet.LONG_S", 0.0)  # as if many waited that it can't run
        began = time.monotonic()
        assert fleet.claim("gpu", set()) is None and began < (again := fleet._looks_at)
        assert fleet.claim("gpu", set()) is None and time.monotonic() > again
        fleet.settings = replace(settings, spool_free_bytes=2**60)
        assert not fleet.idle
        assert str(fleet.announcement()["draining"]).startswith("its spool has")
    finally:
        group.stop()
