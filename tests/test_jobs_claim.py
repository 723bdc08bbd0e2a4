"""Which job a claim gets, on a real Valkey."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.errors import OutputExpired
from jobs.parse import parse_request
from jobs.record import JobState
from jobs.request import stored_request
from jobs.store import JobStore
from tests.conftest import Server, until
from tests.fixtures.jobs import ask, claim
from tests.fixtures.pictures import data_url, painted


def test_pictures_are_read_by_who_draws_alone(
    store: JobStore, catalog: Catalog, valkey: Server
) -> None:
    url = data_url(painted(mask=False))
    body = {"model": "tiny-image", "task": "image-to-image", "input": {"prompt": "x", "image": url}}
    asked = parse_request(body, catalog)[0]
    id, _ = store.submit(asked)
    _, others = store.batches.submit("batch_1", [("job_b", asked, [])]), store.get("job_b")
    job = store.get(id)
    assert job and others and len(url) > 1000
    for each in (job, others, *store.lists.page()[0]):
        assert len(json.dumps(each.request)) < 1000
        assert stored_request(json.dumps(store.request(each))) == asked
    assert stored_request(claim(store).request) == asked
    with redis.Redis.from_url(valkey.url) as direct:
        key = f"{store._prefix}:pictures:{id}"
        assert direct.exists(key)
        direct.delete(f"{store._prefix}:pictures:job_b")
        with pytest.raises(OutputExpired):
            store.request(others)
        store.delete(id)
        store.upkeep.purged(id)
        assert not direct.exists(key)


def test_priority_first_then_age(store: JobStore, catalog: Catalog) -> None:
    ids = {
        name: store.submit(ask(catalog, priority=priority))[0]
        for name, priority in [("a", "low"), ("b", "normal"), ("c", "normal"), ("d", "high")]
    }
    assert [claim(store).id for _ in ids] == [ids[name] for name in "dbca"]


def test_a_tenant_with_a_thousand_jobs_does_not_keep_another_waiting(
    store: JobStore, catalog: Catalog
) -> None:
    for _ in range(1000):
        store.submit(ask(catalog), asker=Asker("many"))
    assert {claim(store).id for _ in range(3)}
    single, _ = store.submit(ask(catalog), asker=Asker("one"))
    assert claim(store).id == single
    theirs = [store.submit(ask(catalog), asker=Asker(tenant))[0] for tenant in ("one", "two") * 3]
    order = [claim(store).id for _ in range(9)]
    assert [order.index(id) for id in theirs] == [2, 0, 5, 3, 8, 6], "each in its turn"


def test_many_that_a_worker_can_not_run_do_not_hide_one_that_it_can(
    store: JobStore, catalog: Catalog
) -> None:
    wide = ask(catalog, parallel={"data": 2})
    for number in range(2):
        jobs = [(f"job_{number}_{i}", wide, []) for i in range(1000)]
        store.batches.submit(f"batch_{number}", jobs, Asker("many"))
    same, _ = store.submit(ask(catalog), asker=Asker("many"))
    other, _ = store.submit(ask(catalog), asker=Asker("one"))
    assert store.waiting("gpu", 1) == 1, "counted up to the ranks"
    assert {claim(store, ranks=1).id for _ in range(2)} == {same, other}
    assert store.claim("gpu", "w", 1) is None


def test_a_job_whose_record_is_gone_is_no_other_ones_fault(
    store: JobStore, catalog: Catalog, valkey: Server
) -> None:
    gone = [store.submit(ask(catalog))[0] for _ in range(3)]
    id, _ = store.submit(ask(catalog))
    assert claim(store).id == gone[0]
    with redis.Redis.from_url(valkey.url) as direct:
        for each in gone:
            direct.delete(f"{store._prefix}:job:{each}")
        direct.hset(f"{store._prefix}:job:{gone[2]}", "crashes", 1)  # as what came late leaves it
        direct.zadd(f"{store._prefix}:running", {gone[0]: 1})
        for line in ("send", "deadlines"):
            direct.zadd(f"{store._prefix}:{line}", {gone[1]: 1})
    assert store.upkeep.reap()[0] == [id]
    assert [job.id for job in store.lists.page()[0]] == [id]
    assert store.get(gone[2]) is None
    assert claim(store).id == id and store.claim("gpu", "w", 2) is None
    assert store.queues.about("gpu").waiting == 0


def test_what_had_to_wait_regains_its_place(store: JobStore, catalog: Catalog) -> None:
    ids = [store.submit(ask(catalog))[0] for _ in range(3)]
    first = claim(store)
    store.fail(first, {"code": "spool_failed"}, delay_s=0.5)
    time.sleep(0.6)
    late, _ = store.submit(ask(catalog))
    store.upkeep.reap()
    assert [claim(store).id for _ in range(4)] == [*ids, late]


def test_whoever_comes_back_at_once_does_not_go_first_again(
    store: JobStore, catalog: Catalog
) -> None:
    for tenant in ("a", "b") * 4:
        store.submit(ask(catalog), asker=Asker(tenant))
    eager, served = set(), []
    for _ in range(9):
        eager.add(store.submit(ask(catalog), asker=Asker("eager"))[0])
        served.append(claim(store).id)
    assert len(eager & set(served)) == 3


def test_waiting_adds_to_a_priority(store: JobStore, catalog: Catalog, valkey: Server) -> None:
    low, _ = store.submit(ask(catalog, priority="low"), asker=Asker("patient"))
    urgent, _ = store.submit(ask(catalog, priority="high"), asker=Asker("hasty"))
    mine = claim(store)
    assert mine.id == urgent
    again, _ = store.submit(ask(catalog, priority="high"), asker=Asker("hasty"))
    with redis.Redis.from_url(valkey.url) as direct:  # it came ten minutes ago
        for line in ("queued:gpu", "queued:gpu:patient"):
            direct.zincrby(f"{store._prefix}:{line}", -601, low)
    assert [claim(store).id for _ in range(2)] == [low, again]


def test_a_backlog_that_is_old_does_not_keep_another_waiting(
    store: JobStore, catalog: Catalog, valkey: Server
) -> None:
    old = [store.submit(ask(catalog), asker=Asker("many"))[0] for _ in range(8)]
    with redis.Redis.from_url(valkey.url) as direct:  # it came six minutes ago
        for id in old:
            for line in ("queued:gpu", "queued:gpu:many"):
                direct.zincrby(f"{store._prefix}:{line}", -360, id)
    assert claim(store).id == old[0]
    fresh, _ = store.submit(ask(catalog), asker=Asker("one"))
    assert claim(store).id == fresh
    low, _ = store.submit(ask(catalog, priority="low"), asker=Asker("many"))
    assert claim(store).id == old[1], "its own are in their order"
    assert low


def test_what_fits_nowhere_hides_nobody(store: JobStore, catalog: Catalog) -> None:
    for tenant in ("a", "b"):
        for _ in range(120):
            store.submit(ask(catalog, parallel={"data": 4}), asker=Asker(tenant))
    behind, _ = store.submit(ask(catalog), asker=Asker("a"))
    assert store.waiting("gpu", 2) == 1 and claim(store).id == behind


def test_a_paused_queue_gives_nothing(store: JobStore, catalog: Catalog) -> None:
    store.submit(ask(catalog))
    store.queues.pause("gpu")
    assert store.claim("gpu", "w", 2) is None and store.waiting("gpu", 2) == 0
    assert store.queues.about("gpu").paused
    store.queues.resume("gpu")
    assert store.waiting("gpu", 2) == 1 and claim(store)


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


def test_who_hears_no_answer_asks_again_and_has_the_same_job(
    store: JobStore, catalog: Catalog
) -> None:
    first, second = (store.submit(ask(catalog))[0] for _ in range(2))
    mine = store.claim("gpu", "w", 2, nonce="n1")
    assert mine is not None and mine == store.claim("gpu", "w", 2, nonce="n1") and mine.id == first
    store.queues.pause("gpu")
    assert store.claim("gpu", "w", 2, nonce="n1") == mine, "it was claimed before"
    store.queues.resume("gpu")
    store.finish(mine, JobState.SUCCEEDED)
    other = store.claim("gpu", "w", 2, nonce="n1")
    assert other is not None and other.id == second, "it is over"
