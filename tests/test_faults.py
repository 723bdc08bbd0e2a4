"""What happens when X dies: nothing is lost, nothing is published twice, nobody must help."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from jobs.catalog import Catalog
from jobs.parse import parse_request
from jobs.store import JobStore
from tests.conftest import PYTHON, ROOT, RunningFleet, alive, descendants, frozen, until

Notes = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def fleet(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """With S3, and leases short enough for a test to see them end."""
    data = tmp_path_factory.mktemp("faulty-fleet")
    options = ["--s3", "--no-flower"]
    short = {"FLEET_LEASE_S": "4", "FLEET_REAP_S": "0.5", "FLEET_DEAF_S": "6"}
    fleet = RunningFleet(data, models_dir, *options, **short)
    yield fleet
    fleet.stop()


def pid(fleet: RunningFleet, word: str) -> psutil.Process:
    return next(p for p in fleet.pids(word) if p.ppid() == fleet.process.pid)


def workers_ready(fleet: RunningFleet) -> None:
    until(lambda: fleet.client.call("GET", "/v1/models")["data"][0]["workers_ready"])


def broker(fleet: RunningFleet) -> str:
    return next(line.split()[1] for line in fleet.lines if line.startswith("valkey"))


def control(fleet: RunningFleet, what: str, queue: str = "gpu") -> None:
    """`celery control`, of a queue."""
    subprocess.run(
        [PYTHON, "-m", *("celery", "-A", "worker", "control", what, queue)],
        env={**fleet.environment, "FLEET_REDIS_URL": broker(fleet)},
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


def test_kill_nine_of_the_worker_in_mid_job(fleet: RunningFleet, notes: Notes) -> None:
    id = fleet.submit("counts", num_inference_steps=40)
    fleet.wait_running(id, 0.2)
    worker = pid(fleet, "celery")
    family = descendants(worker.pid)
    worker.kill()
    until(lambda: not alive(family), 60)
    job = fleet.wait(id)
    assert job["status"] == "succeeded" and job["attempt"] == 2
    assert job["attempts"][0]["error"]["code"] == "worker_lost"
    workers_ready(fleet)


def test_the_worker_ends_its_job_before_it_stops(fleet: RunningFleet) -> None:
    id = fleet.submit("sleeps", num_inference_steps=60)
    fleet.wait_running(id, 0.2)
    worker = pid(fleet, "celery")
    family = descendants(worker.pid)
    worker.send_signal(signal.SIGTERM)
    until(lambda: not alive([worker]))
    job = fleet.client.job(id)
    assert job["status"] == "succeeded" and job["attempt"] == 1
    assert not alive(family)
    workers_ready(fleet)


def test_a_drained_worker_ends_its_job_takes_no_more_and_says_so(fleet: RunningFleet) -> None:
    workers_ready(fleet)
    id = fleet.submit("sleeps", num_inference_steps=60)
    fleet.wait_running(id, 0.2)
    (card,) = fleet.client.call("GET", "/v1/workers")["data"]
    assert card["ready"] and len(card["ranks"]) == card["size"] == 2
    assert fleet.http.post(f"/v1/workers/{card['id']}/drain").status_code == 202
    assert fleet.http.post("/v1/workers/nobody/drain").status_code == 404
    until(lambda: fleet.client.call("GET", "/v1/workers")["data"][0]["draining"])
    waiting = fleet.submit("counts")
    job = fleet.wait(id)
    assert job["status"] == "succeeded" and job["attempt"] == 1
    time.sleep(2)
    assert fleet.client.job(waiting)["status"] == "queued"
    (card,) = fleet.client.call("GET", "/v1/workers")["data"]
    assert not card["ready"], "it is still there"
    pid(fleet, "celery").terminate()
    assert fleet.wait(waiting)["status"] == "succeeded", "once it is started anew"


def test_gpu_faults_under_two_jobs_drain_the_worker(fleet: RunningFleet, notes: Notes) -> None:
    workers_ready(fleet)
    both = {"parallel": {"ulysses": 2}}
    first, second = (fleet.submit("shorts", prompt, **both) for prompt in ("one", "two"))
    (card,) = until(
        lambda: (w := fleet.client.call("GET", "/v1/workers")["data"]) and w[0]["draining"] and w
    )
    assert card["draining"] == "GPU faults under 2 jobs within 10 minutes"
    jobs = [fleet.client.job(id) for id in (first, second)]
    errors = [a["error"]["code"] for job in jobs for a in job["attempts"] if a["error"]]
    assert errors == ["gpu_fault"] * 2, "and neither is lost"
    pid(fleet, "celery").terminate()
    assert {fleet.wait(id)["status"] for id in (first, second)} == {"succeeded"}


def test_a_worker_that_hears_no_hints_any_more_ends_and_is_started_anew(
    fleet: RunningFleet,
) -> None:
    workers_ready(fleet)
    worker = pid(fleet, "celery")
    control(fleet, "cancel_consumer")
    (name,) = fleet.client.call("GET", "/readyz")["workers"]
    control(fleet, "cancel_consumer", f"{name}.dq2")
    id = fleet.submit("counts")
    until(lambda: not alive([worker]))
    assert fleet.wait(id)["status"] == "succeeded"
    assert "while jobs wait: exit" in (fleet.data / "logs" / "worker.log").read_text()


def test_a_worker_whose_hints_others_hear_runs_its_jobs(fleet: RunningFleet) -> None:
    """As in a fleet where most workers can't run what waits."""
    workers_ready(fleet)
    worker = pid(fleet, "celery")
    control(fleet, "cancel_consumer")  # the others are always faster
    id = fleet.submit("counts")
    with redis.Redis.from_url(broker(fleet)) as others:
        assert others.blpop(["fleet:celery:gpu"], 10)
    assert fleet.wait(id)["status"] == "succeeded" and alive([worker])
    control(fleet, "add_consumer")


def test_a_lost_hint_costs_seconds(fleet: RunningFleet, catalog: Catalog) -> None:
    """The record is there and its message is not: the API died in between, and Redis lost more."""
    url = next(line.split()[1] for line in fleet.lines if line.startswith("valkey"))
    store = JobStore(url, "fleet")
    question = {"model": "tiny-image", "input": {"prompt": "x"}}
    id, _ = store.submit(parse_request(question, catalog)[0])
    store.hinted(id)  # as if it had been sent: the next one is due in a minute
    assert fleet.wait(id, 45)["status"] == "succeeded"


def test_kill_nine_of_every_api_process(fleet: RunningFleet) -> None:
    id = fleet.submit("sleeps", num_inference_steps=60)
    for process in fleet.pids("gunicorn"):
        process.kill()
    until(lambda: _status(fleet, "/livez") == 200)
    assert fleet.wait(id)["status"] == "succeeded"


def _status(fleet: RunningFleet, path: str) -> int:
    try:
        return httpx.get(f"{fleet.url}{path}", timeout=10).status_code
    except httpx.HTTPError:
        return 0


def test_redis_away_is_503_and_service_returns_by_itself(fleet: RunningFleet, notes: Notes) -> None:
    id = fleet.submit("counts", num_inference_steps=60)
    fleet.wait_running(id, 0.1)
    # Redis may have heard it nevertheless, and do it once it wakes.
    question = {"model": "counts", "input": {"prompt": "perhaps"}}
    with frozen(pid(fleet, "valkey-server")):
        for call in (
            lambda: fleet.http.post("/v1/jobs", json=question),
            lambda: fleet.http.get(f"/v1/jobs/{id}"),
        ):
            began = time.monotonic()
            answer = call()
            assert time.monotonic() - began < 8
            assert answer.status_code == 503 and answer.json()["code"] == "broker_unavailable"
            assert int(answer.headers["Retry-After"]) > 0
        assert fleet.http.get("/livez").status_code == 200
        ready = fleet.http.get("/readyz")
        assert ready.status_code == 503 and "127.0.0.1" not in ready.text, "no key is asked for"
        assert ready.json()["checks"]["redis"] == "The queue does not answer; try again."
    job = fleet.wait(id)
    assert job["status"] == "succeeded" and job["attempt"] == 1
    assert notes("counts").count("x 0") == 1, "an outage is no reason to render again"
    until(lambda: not any(_listed(fleet, status) for status in ("queued", "running")))


def _listed(fleet: RunningFleet, status: str) -> list[Any]:
    found: list[Any] = fleet.client.call("GET", f"/v1/jobs?status={status}")["data"]
    return found


def test_redis_killed_while_a_job_ends(fleet: RunningFleet, notes: Notes) -> None:
    id = fleet.submit("counts", num_inference_steps=40)
    queued = [fleet.submit("counts") for _ in range(3)]
    fleet.wait_running(id, 0.5)
    worker = pid(fleet, "celery")
    pid(fleet, "valkey-server").kill()
    attempts = 0
    for each in [id, *queued]:
        job = until(lambda each=each: _final(fleet, each))
        assert job["status"] == "succeeded", job["error"]
        attempts += job["attempt"]  # on a slow machine a lease of 4 s may run out
    assert len(notes("counts")) <= attempts
    fleet.wait(fleet.submit("sleeps", num_inference_steps=60))
    assert alive([worker]), "with its group and its models"


def _final(fleet: RunningFleet, id: str) -> dict[str, Any] | None:
    answer = fleet.http.get(f"/v1/jobs/{id}")
    job: dict[str, Any] = answer.json()
    return job if answer.status_code == 200 and job["finished_at"] else None


def test_storage_away_at_the_end_of_a_job(fleet: RunningFleet, notes: Notes) -> None:
    """The result waits on disk and is uploaded when the storage is back; it is not made again."""
    id = fleet.submit("counts", num_inference_steps=30)
    fleet.wait_running(id, 0.1)
    with frozen(pid(fleet, "weed")):
        until(lambda: fleet.client.job(id)["progress"]["stage"] == "upload")
        assert list((fleet.data / "spool" / id).glob("*/0.png"))
        time.sleep(6)  # longer than a lease
        assert fleet.client.job(id)["status"] == "running"
    job = fleet.wait(id)
    assert job["status"] == "succeeded" and job["attempt"] == 1
    assert httpx.get(job["outputs"][0]["download_url"]).status_code == 200
    assert len(notes("counts")) == 1
    assert not (fleet.data / "spool" / id).exists()


def test_a_worker_killed_while_the_storage_is_away_uploads_what_it_left(
    fleet: RunningFleet, notes: Notes
) -> None:
    id = fleet.submit("counts", num_inference_steps=30)
    fleet.wait_running(id, 0.1)
    with frozen(pid(fleet, "weed")):
        until(lambda: (fleet.data / "spool" / id / "rendered.json").exists())
        pid(fleet, "celery").kill()
        time.sleep(1)
    job = fleet.wait(id)
    assert job["status"] == "succeeded" and job["attempt"] == 2
    assert len(notes("counts")) == 1, "what was finished on this node is not rendered again"
    workers_ready(fleet)


def test_redis_and_storage_away_at_once_for_longer_than_a_lease(
    fleet: RunningFleet, notes: Notes
) -> None:
    id = fleet.submit("counts", num_inference_steps=30)
    fleet.wait_running(id, 0.1)
    with frozen(pid(fleet, "weed")), frozen(pid(fleet, "valkey-server")):
        time.sleep(8)
    job = until(lambda: _final(fleet, id))
    assert job["status"] == "succeeded" and job["attempt"] == 1
    assert len(notes("counts")) == 1 and len(job["outputs"]) == 1


def test_a_full_redis_is_503_with_its_own_words(fleet: RunningFleet) -> None:
    url = next(line.split()[1] for line in fleet.lines if line.startswith("valkey"))
    id = fleet.submit("sleeps", num_inference_steps=60)
    fleet.wait_running(id)
    with redis.Redis.from_url(url) as direct:
        direct.config_set("maxmemory", int(direct.info("memory")["used_memory"] * 1.05))
        try:
            question = {"model": "counts", "input": {"prompt": "x"}}
            answer = fleet.http.post("/v1/jobs", json=question)
        finally:
            direct.config_set("maxmemory", 0)
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    assert "no room for new jobs" in answer.json()["detail"]
    assert fleet.wait(id)["status"] == "succeeded", "what runs goes on"


def test_a_frozen_worker_that_wakes_after_its_lease_publishes_nothing(
    fleet: RunningFleet, notes: Notes
) -> None:
    id = fleet.submit("counts", num_inference_steps=40)
    fleet.wait_running(id, 0.2)
    with frozen(pid(fleet, "celery")):
        time.sleep(6)
    job = fleet.wait(id)
    assert job["status"] == "succeeded"
    assert len(job["outputs"]) == 1
    workers_ready(fleet)
