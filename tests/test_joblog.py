"""What a job's caller may read of its attempts, and an operator of its worker."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from cli import show
from cli.main import fleet
from cli.servers import free_port
from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.logs import KEPT, Line
from jobs.record import JobState
from jobs.store import JobStore
from tests.conftest import PYTHON, ROOT, RunningFleet, until
from tests.fixtures.jobs import ask, claim
from worker.joblog import JobLog


def ended(fleet: RunningFleet, id: str, word: str) -> list[dict[str, Any]]:
    """The log, once it has its last line: that comes a moment after the job's end."""
    return until(lambda: (log := fleet.client.logs(id)) and log[-1]["message"] == word and log)


def test_a_log_tells_what_became_of_a_job(file_fleet: RunningFleet) -> None:
    id = file_fleet.wait(file_fleet.submit("tiny-image", "a fleet " * 60))["id"]
    lines = ended(file_fleet, id, "the job succeeded")
    said = [line["message"] for line in lines]
    assert said[0].startswith("attempt 1 on ") and said[1].startswith("ranks 0")
    assert {"item 0: load_model", "item 0: denoise", "upload"} <= set(said)
    warned = {line["rank"]: line["message"] for line in lines if line["level"] == "warning"}
    assert "truncated" in warned[0], "diffusers has cut the prompt, and said so"
    assert {line["attempt"] for line in lines} == {1}
    assert file_fleet.client.logs(id, 2) == lines[-2:]


def test_a_log_tells_why_a_job_failed(file_fleet: RunningFleet) -> None:
    id = file_fleet.wait(file_fleet.submit("broken"))["id"]
    error = file_fleet.client.job(id)["error"]
    lines = ended(file_fleet, id, "the job failed")
    errors = [line["message"] for line in lines if line["level"] == "error"]
    assert f"{error['code']}: {error['message']}" in errors


def test_a_log_is_read_while_its_job_runs(file_fleet: RunningFleet) -> None:
    id = file_fleet.submit("sleeps", num_inference_steps=100)
    said = until(lambda: [line["message"] for line in file_fleet.client.logs(id)])
    assert said[0].startswith("attempt 1 on ")
    assert file_fleet.client.job(id)["status"] == "running"
    file_fleet.client.cancel(id)
    file_fleet.wait(id)


def test_a_librarys_malformed_call_ends_no_job() -> None:
    code = """
import logging
from worker.rank.logs import SCENE, ToCaller
said = []
ToCaller(3, said.append)
SCENE.job, SCENE.stage = "job_1", "denoise"
logging.getLogger("diffusers.x").warning("deprecated", FutureWarning)
logging.getLogger("diffusers.x").warning("long " * 1000)
assert len(said) == 1 and said[0].rank == 3 and len(said[0].message) == 2000
"""
    subprocess.run([PYTHON, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_last_lines_are_kept_and_go_with_their_job(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    url = f"/v1/jobs/{id}/logs"
    assert client.get(url).json["data"] == []  # type: ignore[index]
    for first in range(0, 600, 200):
        some = [Line(at=n, attempt=1, rank=None, level="info", message=str(n)) for n in range(200)]
        store.logs.add(id, [{**line, "message": str(first + n)} for n, line in enumerate(some)])
    kept: Any = client.get(f"{url}?tail={KEPT}").json
    assert [line["message"] for line in kept["data"]] == [str(n) for n in range(100, 600)]
    assert kept["data"][0]["at"] == "1970-01-01T00:01:40.000+00:00"
    usual: Any = client.get(url).json
    assert len(usual["data"]) == 100 and usual["has_more"] and not kept["has_more"]
    for wrong in ("0", "501", "-1", "x", "1000"):
        assert client.get(f"{url}?tail={wrong}").status_code == 422
    assert client.get("/v1/jobs/nobody/logs").status_code == 404
    store.delete(id)
    store.upkeep.purged(id)
    assert store.logs.tail(id, KEPT) == []


def test_a_line_waits_for_redis(store: JobStore, catalog: Catalog) -> None:
    store.submit(ask(catalog))
    log = JobLog(JobStore(f"redis://127.0.0.1:{free_port()}", "away"), claim(store))
    for number in range(KEPT + 1):
        log.say(str(number))
    log.flush()
    log._store = store  # Redis is back
    log.flush()
    log.flush()
    said = [line["message"] for line in store.logs.tail(log._claim.id, KEPT)]
    assert said == [str(number) for number in range(1, KEPT + 1)]


def test_who_waits_is_told_for_how_long(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    ids = [store.submit(ask(catalog))[0] for _ in range(4)]

    def eta(id: str) -> Any:
        return client.get(f"/v1/jobs/{id}").json["queue"]["eta_s"]  # type: ignore[index]

    assert eta(ids[1]) is None, "nothing is known yet"
    first = claim(store)
    time.sleep(0.5)
    store.finish(first, JobState.SUCCEEDED)
    assert eta(ids[1]) is None, "nobody runs anything"
    claim(store)
    assert 0.4 < eta(ids[2]) < eta(ids[3]) < 10
    assert client.get(f"/v1/jobs/{ids[0]}").json["queue"] is None  # type: ignore[index]
    before = eta(ids[3])
    gone, _ = store.submit(ask(catalog), asker=Asker(tenant="gone"))
    store.cancel(gone, "gone")
    assert eta(ids[3]) == before, "a tenant who waits for nothing takes no turn"
    for _ in range(9):
        store.submit(ask(catalog), asker=Asker(tenant="other"))
    asked = {"model": "tiny-image", "input": {"prompt": "x"}}
    dry: Any = client.post("/v1/jobs?dry_run=true", json=asked).json
    assert dry["position"] == 2 and before < dry["estimated_wait_s"] < 10, "its own two, in turns"
    (card,) = client.get("/v1/queue").json["data"]  # type: ignore[index]
    assert card["waiting"] == 11
    store.queues.pause("gpu")
    waits: Any = client.get(f"/v1/jobs/{ids[2]}").json
    assert waits["queue"]["eta_s"] is None and waits["queue"]["reason"] == "the queue is paused"


def test_who_waits_for_nobody_is_told(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))

    def told() -> tuple[str, list[str]]:
        job: Any = client.get(f"/v1/jobs/{id}").json
        return job["queue"]["reason"], client.get("/readyz").json["workers"]  # type: ignore[index]

    nobody = "no worker that has its model takes jobs now"
    assert told() == (nobody, [])
    group = {"ready": True, "ranks": [], "restarts": 0}
    about = {"size": 2, "models": ["tiny-video"], "group": group, "idle": True}
    for more, reason, workers in (
        ({}, nobody, ["w"]),
        ({"models": ["tiny-image"]}, "waiting for a worker", ["w"]),
        ({"models": ["tiny-image"], "draining": "it is told to"}, nobody, []),
    ):
        store.workers.announce("w", {**about, **more})
        assert told() == (reason, workers)


def test_what_has_priority_is_before_everybody_else(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    store.submit(ask(catalog))
    first = claim(store)
    time.sleep(0.3)
    store.finish(first, JobState.SUCCEEDED)
    store.submit(ask(catalog))
    claim(store)
    id, _ = store.submit(ask(catalog))
    low, _ = store.submit(ask(catalog, priority="low"))

    def eta(id: str) -> float:
        return float(client.get(f"/v1/jobs/{id}").json["queue"]["eta_s"])  # type: ignore[index]

    alone, behind = eta(id), eta(low)
    for _ in range(9):
        store.submit(ask(catalog, priority="high"), asker=Asker(tenant="other"))
    assert eta(id) == pytest.approx(10 * alone, rel=0.3), "all nine of them"
    assert eta(low) > behind + 2
    asked = {"model": "tiny-image", "input": {"prompt": "x"}, "priority": "high"}
    dry: Any = client.post("/v1/jobs?dry_run=true", json=asked).json
    assert dry["position"] == 0, "before its own others"


def test_a_worker_of_the_version_before_is_understood(client: FlaskClient, store: JobStore) -> None:
    rank = {"rank": 0, "memory_bytes": 8, "memory": {}, "models": []}
    about = {"size": 1, "models": ["tiny-image"], "group": {"ready": True, "restarts": 0}}
    about["group"]["ranks"] = [rank]  # type: ignore[index]
    store._redis.set(store._key("worker:w@node"), json.dumps(about), ex=15)
    store._redis.sadd(store._key("workers"), "w@node")
    (card,) = client.get("/v1/workers").json["data"]  # type: ignore[index]
    assert card["ready"] and card["lanes"] == []
    for path in ("/readyz", "/v1/models", "/v1/queue", "/metrics"):
        assert client.get(path).status_code == 200, path


def test_a_worker_says_what_runs_where(file_fleet: RunningFleet) -> None:
    id = file_fleet.submit("sleeps", num_inference_steps=500, parallel={"data": 2})
    (card,) = until(
        lambda: (w := file_fleet.client.call("GET", "/v1/workers")["data"])[0]["lanes"] and w
    )
    assert card["lanes"] == [{"ranks": [0], "job": id}] or card["lanes"] == [
        {"ranks": [0, 1], "job": id}
    ]
    assert card["node"] and 0 <= card["heartbeat_age_s"] < 15
    for rank in card["ranks"]:
        assert rank["uuid"] is None and rank["temperature_c"] is None, "there is no GPU here"
    file_fleet.client.cancel(id)
    file_fleet.wait(id)


DRIVER = """
#include <string.h>
#include <unistd.h>
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
static int calls = 0;
int nvmlInitWithFlags(unsigned flags) { if (++calls > 1) sleep(600); return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    *gpu = (void *)uuid;
    return strcmp(uuid, "GPU-lost") ? 0 : 15; /* NVML_ERROR_GPU_IS_LOST */
}
int nvmlDeviceGetUtilizationRates(void *gpu, utilization *out) { out->gpu = 87; return 0; }
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *out) { *out = 61; return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, memory *out) { out->used = 5000000000ull; return 0; }
"""
READ = """
import json, sys, time
from worker import gpus as module
from worker.gpus import Gpus
gpus, until = Gpus(), time.monotonic() + float(sys.argv[1])
while time.monotonic() < until and not gpus.latest(["GPU-a", "GPU-lost"]):
    time.sleep(0.05)
print(json.dumps(gpus.latest(["GPU-a", "GPU-lost"])), flush=True)
module.KEPT_S = 0.5
time.sleep(0.6)
assert gpus.latest(["GPU-a"]) == {}, "the driver hangs since then"
"""


def _read(wait_s: float, **environment: str) -> Any:
    command = [PYTHON, "-c", READ, str(wait_s)]
    own = {**os.environ, **environment}
    done = subprocess.run(command, env=own, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_gpus_are_read_from_the_driver(tmp_path: Path) -> None:
    """NVIDIA's own binding, over a library that answers as their driver's does."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = str(tmp_path / "libnvidia-ml.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    said = _read(10, LD_LIBRARY_PATH=str(tmp_path))
    good = {"utilization_percent": 87, "temperature_c": 61, "memory_used_bytes": 5_000_000_000}
    assert said == {"GPU-a": good, "GPU-lost": dict.fromkeys(good)}


def test_no_driver_is_no_fault() -> None:
    assert _read(0.5) == {}


def test_the_terminal_shows_a_log_and_the_gpus(
    file_fleet: RunningFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    id = file_fleet.wait(file_fleet.submit("counts"))["id"]
    command = ["--url", file_fleet.url, "logs", id, "--tail", "3"]
    done = CliRunner().invoke(fleet, command)
    assert done.exit_code == 0 and len(done.output.splitlines()) <= 3
    assert " worker  info: " in done.output
    gpu = {"device": "cuda:1", "memory_bytes": 150e9, "memory_used_bytes": 5e9}
    gpu |= {"utilization_percent": 87, "temperature_c": 61}
    card = {"id": "w@node", "size": 1, "ready": True, "loaded": [], "ranks": [gpu]}
    show.workers([card])
    assert "cuda:1  87 %, 61 °C, 5.0 of 150.0 GB" in capsys.readouterr().out
