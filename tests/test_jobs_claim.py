"""Which job a claim gets, on a real Valkey."""

import time
from concurrent.futures import ThreadPoolExecutor

import redis

from jobs.catalog import Catalog
from jobs.store import JobStore
from tests.conftest import Server, until
from tests.fixtures.jobs import ask, claim


def test_priority_first_then_age(store: JobStore, catalog: Catalog) -> None:
    ids = {
        name: store.submit(ask(catalog, priority=priority))[0]
        for name, priority in [("a", "low"), ("b", "normal"), ("c", "normal"), ("d", "high")]
    }
    assert [claim(store).id for _ in ids] == [ids[name] for name in "dbca"]


def test_jobs_of_a_model_in_memory_come_first_for_half_a_minute(
    store: JobStore, catalog: Catalog, valkey: Server
) -> None:
    other, mine, last = (
        store.submit(ask(catalog, model=model))[0]
        for model in ("tiny-image", "tiny-video", "tiny-video")
    )
    urgent, _ = store.submit(ask(catalog, model="tiny-image", priority="high"))
    loaded = {"tiny-video", "tiny-fill"}
    claims = [store.claim("gpu", "w", 2, loaded) for _ in range(2)]
    assert [c.id for c in claims if c] == [urgent, mine], "priority is before it"
    with redis.Redis.from_url(valkey.url) as direct:  # the first one waits for 31 seconds
        key = f"{store._prefix}:job:{other}"
        direct.hset(key, "ready_at", float(direct.hget(key, "ready_at")) - 31)
    claims = [store.claim("gpu", "w", 2, loaded) for _ in range(2)]
    assert [c.id for c in claims if c] == [other, last]


def test_a_job_that_is_put_back_is_not_overtaken_anew(
    store: JobStore, catalog: Catalog, valkey: Server
) -> None:
    put_back, younger = (
        store.submit(ask(catalog, model=model))[0] for model in ("tiny-image", "tiny-video")
    )
    mine = claim(store)
    assert mine.id == put_back
    with redis.Redis.from_url(valkey.url) as direct:  # it came 31 seconds ago
        key = f"{store._prefix}:job:{put_back}"
        direct.hset(key, "created_at", float(direct.hget(key, "created_at")) - 31)
    store.fail(mine, {"code": "rank_died"}, 0)
    claims = [store.claim("gpu", "w", 2, {"tiny-video"}) for _ in range(2)]
    assert [c.id for c in claims if c] == [put_back, younger]


def test_a_job_is_left_to_an_idle_worker_that_has_its_model_for_two_seconds(
    store: JobStore, catalog: Catalog
) -> None:
    theirs, _ = store.submit(ask(catalog, model="tiny-image"))
    ours, _ = store.submit(ask(catalog, model="tiny-video", priority="low"))
    assert [
        claim and claim.id
        for _ in range(2)
        for claim in [store.claim("gpu", "w", 2, (), {"tiny-image"})]
    ] == [ours, None]
    assert until(lambda: store.claim("gpu", "w", 2, (), {"tiny-image"})).id == theirs
    waited = time.time() - store.get(theirs).created_at  # type: ignore[union-attr]
    assert waited >= 2


def test_a_wide_plan_waits_for_a_wide_group(store: JobStore, catalog: Catalog) -> None:
    wide, _ = store.submit(ask(catalog, parallel={"data": 4}))
    narrow, _ = store.submit(ask(catalog))
    assert claim(store, ranks=2).id == narrow
    assert store.claim("gpu", "w", 2) is None
    assert claim(store, ranks=4).id == wide


def test_two_claimers_never_share_a_job(store: JobStore, catalog: Catalog) -> None:
    for _ in range(40):
        store.submit(ask(catalog))
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: store.claim("gpu", f"w{n}", 2), range(60)))
    ids = [c.id for c in claims if c]
    assert len(ids) == len(set(ids)) == 40


def test_a_job_of_a_model_that_a_worker_does_not_know_is_for_others(
    store: JobStore, catalog: Catalog
) -> None:
    """As while a fleet gets a new model, node after node."""
    strange, _ = store.submit(ask(catalog))
    known, _ = store.submit(ask(catalog, model="tiny-video"))
    assert store.waiting("gpu", 2, ["tiny-video"]) == 1 and store.waiting("gpu", 2) == 2
    mine = store.claim("gpu", "old", 2, known=["tiny-video"])
    assert mine is not None and mine.id == known
    assert store.claim("gpu", "old", 2, known=["tiny-video"]) is None
    assert store.waiting("gpu", 2, ["tiny-video"]) == 0
    theirs = store.claim("gpu", "new", 2, known=["tiny-video", "tiny-image"])
    assert theirs is not None and theirs.id == strange
