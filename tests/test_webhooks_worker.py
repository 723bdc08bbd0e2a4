"""`celery -A worker worker -Q webhooks`: told, told again after a death, told once."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from flask.testing import FlaskClient

import api
from jobs.catalog import Catalog
from jobs.record import Artifact, JobState
from jobs.store import JobStore
from tests.conftest import RunningFleet, Server, until
from tests.fixtures.jobs import ask, claim
from tests.fixtures.peer import Peer, says
from tests.fixtures.receiver import ERROR, KEY, SECRET, SIGNED, THANKS, canceled, heard, told
from tests.fixtures.worker import LoneWorker

Start = Callable[..., LoneWorker]


@pytest.fixture
def start(valkey: Server, store: JobStore, tmp_path: Path) -> Iterator[Start]:
    """Starts `celery -A worker worker -Q webhooks`, which is ready when this returns."""
    started: list[LoneWorker] = []

    def start(**environment: str) -> LoneWorker:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        own = {"FLEET_REDIS_URL": valkey.url, "FLEET_KEY_PREFIX": store._prefix}
        options = ("-Q", "webhooks", "-n", f"webhooks{len(started)}-{store._prefix}@here")
        settings = {"FLEET_REAP_S": "0.5", **own, **SIGNED, **environment}
        started.append(LoneWorker(folder, tmp_path, *options, **settings))
        until(lambda: " ready." in started[-1].log.read_text())
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def test_a_result_is_told_signed_and_once_more_after_an_error(
    start: Start, store: JobStore, catalog: Catalog
) -> None:
    answers = iter([ERROR, THANKS])
    worker = start()
    with Peer(lambda _: [next(answers)]) as peer:
        webhook = {"url": f"http://127.0.0.2:{peer.port}/hook?token=1"}
        id, _ = store.submit(ask(catalog, webhook=webhook, metadata={"user": "u1"}))
        made = Artifact(0, "secret/key", "image/png", 64, 64, 1, None, 9, "ab", 3, "small/key")
        store.finish(claim(store), JobState.SUCCEEDED, [made])
        waiting = until(lambda: (d := store.outbox.of(id)[0]).attempts == 1 and d.last_status and d)
        assert (waiting.state, waiting.last_status) == ("pending", 500)
        assert waiting.last_error == "The URL answers with status 500."
        assert 4.5 <= waiting.next_at - waiting.created_at <= 8
        delivery = told(store, id)
        assert (delivery.attempts, delivery.last_status, delivery.last_error) == (2, 200, None)
        assert delivery.delivered_at is not None and delivery.delivered_at >= waiting.next_at
        (first, one), (second, two) = heard(peer)
        raw = b"".join(peer.requests)
    assert first["webhook-id"] == second["webhook-id"] == delivery.id and one == two
    assert first["content-type"] == "application/json"
    assert first["user-agent"].startswith("diffusion-fleet/")
    assert peer.requests[0].startswith(b"POST /hook?token=1 ")
    job = store.get(id)
    assert job is not None and job.finished_at is not None and one["type"] == "job.succeeded"
    said_at = datetime.fromisoformat(one["timestamp"]).timestamp()
    assert said_at == pytest.approx(job.finished_at, abs=0.002)
    data = one["data"]
    assert (data["id"], data["status"], data["seq"]) == (id, "succeeded", job.seq)
    assert (data["model"], data["task"]) == ("tiny-image", "text-to-image")
    assert data["metadata"] == {"user": "u1"} and data["error"] is None
    (output,) = data["outputs"]
    assert (output["index"], output["content_type"], output["sha256"]) == (0, "image/png", "ab")
    assert (output["bytes"], output["seed"]) == (9, 3)
    assert b"secret/key" not in raw and b"small/key" not in raw
    text = worker.log.read_text()
    assert worker.family() == [], "no agent, no ranks"
    maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "python" in maps
    stats = worker._app.control.inspect(timeout=5).stats()
    assert [about["pool"]["max-concurrency"] for about in stats.values()] == [16]
    assert SECRET not in text and KEY.decode() not in text
    assert worker.stop() == 0


def test_a_hint_has_it_told_at_once(
    start: Start, client: FlaskClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SIGNED.items():
        monkeypatch.setenv(name, value)
    asked = api.create_app().test_client()
    start(FLEET_REAP_S="60", FLEET_LEASE_S="180")
    with Peer(says(THANKS)) as peer:
        hook = {"url": f"http://127.0.0.2:{peer.port}/"}
        body = {"model": "tiny-image", "input": {"prompt": "x"}, "webhook": hook}
        id = asked.post("/v1/jobs", json=body).get_json()["id"]
        asked.post(f"/v1/jobs/{id}/cancel")
        told(store, id, timeout_s=30)
        (delivery,) = asked.get(f"/v1/jobs/{id}/deliveries").get_json()["data"]
        asked.post(f"/v1/jobs/{id}/deliveries/{delivery['id']}/redeliver")
        until(lambda: len(peer.requests) == 2, 30)
    assert len({headers["webhook-id"] for headers, _ in heard(peer)}) == 1


def test_what_a_killed_worker_was_delivering_another_delivers(
    start: Start, store: JobStore, catalog: Catalog
) -> None:
    killed = threading.Event()

    def say(_: str) -> Iterable[bytes]:
        killed.wait(10)
        yield THANKS

    with Peer(say) as peer:
        first = start()
        id = canceled(store, catalog, peer)
        until(lambda: peer.requests)
        os.kill(first.process.pid, signal.SIGKILL)
        killed.set()
        start()
        delivery = told(store, id)
        assert delivery.attempts == 2 and len(peer.requests) == 2
        assert {headers["webhook-id"] for headers, _ in heard(peer)} == {delivery.id}


def test_two_workers_deliver_nothing_twice(start: Start, store: JobStore, catalog: Catalog) -> None:
    def say(_: str) -> Iterable[bytes]:
        time.sleep(0.2)
        yield THANKS

    with Peer(say) as peer:
        workers = [start(), start()]
        ids = [canceled(store, catalog, peer) for _ in range(60)]
        for id in ids:
            assert told(store, id).attempts == 1
        named = [message["data"]["id"] for _, message in heard(peer)]
    assert sorted(named) == sorted(ids)
    for worker in workers:
        assert ": delivered" in worker.log.read_text(), "both have worked"


def test_both_queues_are_not_for_one_worker(valkey: Server, tmp_path: Path) -> None:
    worker = LoneWorker(tmp_path, tmp_path, "-Q", "gpu,webhooks", FLEET_REDIS_URL=valkey.url)
    assert worker.process.wait(60) != 0
    text = worker.log.read_text()
    assert "runs jobs or delivers webhooks" in text and "Traceback" not in text


def test_fleet_up_tells_of_a_job_that_it_ran(models_dir: Path, tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "data", models_dir, "--no-flower", "--ranks", "1", **SIGNED)
    try:
        with Peer(says(THANKS)) as peer:
            hook = {"url": f"http://127.0.0.2:{peer.port}/", "events": ["succeeded"]}
            body = {"model": "tiny-image", "input": {"prompt": "x"}, "webhook": hook}
            id = fleet.client.submit(body)["id"]
            job = fleet.wait(id)
            until(lambda: peer.requests, 30)
            ((_, message),) = heard(peer)
        assert message["type"] == "job.succeeded" and job["status"] == "succeeded"
        shown = {k: job["outputs"][0][k] for k in message["data"]["outputs"][0]}
        assert message["data"]["outputs"] == [shown]
        assert message["data"]["seq"] == job["seq"] and message["data"]["id"] == id
        logs = "".join(path.read_text() for path in (fleet.data / "logs").iterdir())
        assert SECRET not in logs + json.dumps(fleet.lines)
        (courier,) = [p for p in fleet.pids("webhooks") if "celery" in " ".join(p.cmdline())]
        assert isinstance(courier, psutil.Process) and courier.children() == []
    finally:
        fleet.stop()
