"""What webhooks are to be told is recorded with a job's end, and claimed by one at a time."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

import api
from api.keys import Caller
from jobs.catalog import Catalog
from jobs.outbox import Delivery, Errand
from jobs.record import JobState
from jobs.store import JobStore
from tests.fixtures.jobs import ask, claim

URL = "https://example.com/hook"
ENDS = ("succeeded", "failed", "canceled", "expired")
SECRET = "whsec_" + "c2VjcmV0" * 4


def submit(store: JobStore, catalog: Catalog, *events: str, **fields: Any) -> str:
    webhook: dict[str, Any] = {"url": URL, "events": list(events) or None}
    return store.submit(ask(catalog, webhook=webhook, **fields))[0]


def end(store: JobStore, id: str, state: str) -> None:
    if state == "canceled":
        assert store.cancel(id)
    elif state == "expired":
        time.sleep(0.02)
        store.upkeep.reap()
    else:
        store.finish(claim(store), JobState(state))


def only(store: JobStore, id: str) -> Delivery:
    (delivery,) = store.outbox.of(id)
    return delivery


def take(store: JobStore, lease_s: float = 30) -> Errand:
    errand = store.outbox.claim(lease_s)
    assert errand is not None
    return errand


@pytest.mark.parametrize("state", ENDS)
def test_each_end_is_told_to_whom_asked_for_it(
    store: JobStore, catalog: Catalog, state: str
) -> None:
    late = {"deadline_s": 0.01} if state == "expired" else {}
    for events, told in (((), True), ((state,), True), (set(ENDS) - {state}, False)):
        id = submit(store, catalog, *events, **late)
        assert store.outbox.of(id) == []
        end(store, id, state)
        job = store.get(id)
        assert job is not None and job.state == state
        assert [d.event for d in store.outbox.of(id)] == [state] * told
        if told:
            errand, delivery = take(store), only(store, id)
            assert (errand.job, errand.event, errand.url) == (id, state, URL)
            assert errand.id == delivery.id == f"whd_{id}_1" and errand.tenant == "default"
            assert delivery.created_at == delivery.next_at == job.finished_at
    assert store.outbox.claim(30) is None, "nobody asked for more"


def test_a_job_that_is_put_back_tells_nothing(store: JobStore, catalog: Catalog) -> None:
    id = submit(store, catalog)
    store.fail(claim(store), {"code": "x", "message": "x", "stage": None, "retryable": True}, 0)
    assert store.outbox.of(id) == [] and store.outbox.due() == 0


def test_one_at_a_time_claims_a_delivery(store: JobStore, catalog: Catalog) -> None:
    for _ in range(40):
        store.cancel(submit(store, catalog))
    assert store.outbox.due() == 40
    with ThreadPoolExecutor(8) as pool:
        claimed = [e.id for e in pool.map(lambda _: store.outbox.claim(30), range(60)) if e]
    assert len(claimed) == len(set(claimed)) == 40 and store.outbox.due() == 0


def test_a_claim_that_is_not_settled_is_made_again_and_then_has_no_say(
    store: JobStore, catalog: Catalog
) -> None:
    id = submit(store, catalog)
    store.cancel(id)
    first = take(store, 1.5)
    assert store.outbox.claim(30) is None
    time.sleep(1.6)
    second = take(store)
    assert second.id == first.id and (first.attempt, second.attempt) == (1, 2)
    store.outbox.settle(first, "failed", 410, "gone")
    assert only(store, id).state == "pending"
    for _ in range(2):  # the answer to the first may have been lost
        store.outbox.settle(second, "delivered", 200)
    assert only(store, id).state == "delivered" and only(store, id).next_at is None
    ttl = store._redis.ttl(store._key(f"delivery:{first.id}"))
    assert 29 * 86400 < ttl <= 30 * 86400


def test_a_failed_attempt_waits_and_says_why(store: JobStore, catalog: Catalog) -> None:
    id = submit(store, catalog)
    store.cancel(id)
    store.outbox.settle(take(store), "pending", 500, "It answers 500.", 1.5)
    waiting = only(store, id)
    assert (waiting.state, waiting.attempts, waiting.last_status) == ("pending", 1, 500)
    assert waiting.last_error == "It answers 500." and waiting.next_at is not None
    assert waiting.next_at == pytest.approx(waiting.created_at + 1.5, abs=1)
    assert store.outbox.claim(30) is None
    time.sleep(1.6)
    assert take(store).attempt == 2


def test_who_deletes_a_job_is_told_nothing_more(store: JobStore, catalog: Catalog) -> None:
    ended, running = submit(store, catalog), submit(store, catalog)
    store.cancel(ended)
    errand = take(store)
    store.delete(ended)
    store.outbox.settle(errand, "pending", 500, "x", 0)
    mine = claim(store)
    store.delete(running)
    store.finish(mine, JobState.CANCELED)
    for id in (ended, running):
        assert store.outbox.of(id) == []
        store.upkeep.purged(id)
    assert store.outbox.claim(30) is None
    assert not store._redis.keys(store._key("deliver*"))


@pytest.fixture
def signing(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setenv("FLEET_WEBHOOK_SECRET", SECRET)
    return api.create_app().test_client()


def body(url: str = URL, **fields: Any) -> dict[str, Any]:
    hook = {"url": url, **fields}
    return {"model": "tiny-image", "input": {"prompt": "x"}, "webhook": hook}


def test_a_fleet_without_a_secret_refuses_webhooks(client: FlaskClient) -> None:
    answer = client.post("/v1/jobs", json=body())
    assert answer.status_code == 422
    (problem,) = answer.get_json()["errors"]
    assert problem["pointer"] == "/webhook"
    assert "signs no webhooks: FLEET_WEBHOOK_SECRET is not set" in problem["detail"]
    assert client.post("/v1/jobs", json={**body(), "webhook": None}).status_code == 202


@pytest.mark.parametrize("url", ["http://example.com/", "https://10.0.0.1/", "https://127.1/", "x"])
def test_a_url_that_nothing_is_sent_to_is_refused(
    signing: FlaskClient, store: JobStore, url: str
) -> None:
    answer = signing.post("/v1/jobs", json=body(url))
    assert answer.status_code == 422
    assert [p["pointer"] for p in answer.get_json()["errors"]] == ["/webhook/url"]
    answer = signing.post("/v1/batches", json={"jobs": [body(), body(url)]})
    assert answer.status_code == 422
    assert [p["pointer"] for p in answer.get_json()["errors"]] == ["/jobs/1/webhook/url"]
    assert store.lists.page()[0] == []


def test_deliveries_are_listed_and_made_again(signing: FlaskClient, store: JobStore) -> None:
    batch = signing.post("/v1/batches", json={"jobs": [body(), body(events=["failed"])]})
    id, silent = batch.get_json()["jobs"]
    for job in (id, silent):
        assert signing.post(f"/v1/jobs/{job}/cancel").get_json()["status"] == "canceled"
    assert signing.get(f"/v1/jobs/{silent}/deliveries").get_json()["data"] == []
    store.outbox.settle(take(store), "failed", 410, "It answers 410.")
    (listed,) = signing.get(f"/v1/jobs/{id}/deliveries").get_json()["data"]
    assert (listed["event"], listed["state"], listed["attempts"]) == ("canceled", "failed", 1)
    assert (listed["last_status"], listed["last_error"]) == (410, "It answers 410.")
    assert listed["next_at"] is None and listed["delivered_at"] is None and listed["created_at"]
    again = signing.post(f"/v1/jobs/{id}/deliveries/{listed['id']}/redeliver")
    assert again.status_code == 202
    assert (again.get_json()["state"], again.get_json()["attempts"]) == ("pending", 0)
    for kept in (f"delivery:{listed['id']}", f"deliveries:{id}"):
        assert store._redis.ttl(store._key(kept)) == -1, "not while it may be tried for days"
    errand = take(store)
    assert (errand.id, errand.attempt) == (listed["id"], 1), "its attempts start anew"
    store.outbox.settle(errand, "delivered", 204)
    (listed,) = signing.get(f"/v1/jobs/{id}/deliveries").get_json()["data"]
    assert listed["state"] == "delivered" and listed["delivered_at"]
    for wrong in (f"{id}/deliveries/whd_x_1", f"{silent}/deliveries/{errand.id}"):
        assert signing.post(f"/v1/jobs/{wrong}/redeliver").status_code == 404


def test_a_retry_tells_too(signing: FlaskClient, store: JobStore) -> None:
    id = signing.post("/v1/jobs", json=body()).get_json()["id"]
    store.cancel(id)
    again = signing.post(f"/v1/jobs/{id}/retry").get_json()["id"]
    store.cancel(again)
    assert only(store, again).url == URL


def test_deliveries_are_their_tenants(
    signing: FlaskClient, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(
        "".join(
            Caller(
                id=tenant,
                tenant=tenant,
                scopes=frozenset({"read", "write"}),
                sha256=hashlib.sha256(tenant.encode()).hexdigest(),
            ).model_dump_json()
            + "\n"
            for tenant in ("a", "b")
        )
    )
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(file))
    asked = api.create_app().test_client()
    mine, other = ({"Authorization": f"Bearer {key}"} for key in "ab")
    id = asked.post("/v1/jobs", json=body(), headers=mine).get_json()["id"]
    asked.post(f"/v1/jobs/{id}/cancel", headers=mine)
    path = f"/v1/jobs/{id}/deliveries"
    (listed,) = asked.get(path, headers=mine).get_json()["data"]
    assert asked.get(path, headers=other).status_code == 404
    assert asked.post(f"{path}/{listed['id']}/redeliver", headers=other).status_code == 404
    assert asked.post(f"{path}/{listed['id']}/redeliver", headers=mine).status_code == 202
