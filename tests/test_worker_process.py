"""The worker's process by itself: what its clock does to it, and how it leaves."""

import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libfaketime
import pytest
import redis

from cli.marks import read
from jobs.record import JobState
from tests.conftest import Server, alive, until
from tests.fixtures.worker import LoneWorker

DAY_S = 86400
Start = Callable[..., LoneWorker]


@pytest.fixture
def start(valkey: Server, models_dir: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker with what else it is to see."""
    started = []

    def start(**environment: str) -> LoneWorker:
        prefix = f"lone-{secrets.token_hex(4)}"
        own = {"FLEET_REDIS_URL": valkey.url, "FLEET_KEY_PREFIX": prefix}
        short = {"FLEET_LEASE_S": "4", "FLEET_REAP_S": "0.5"}
        started.append(LoneWorker(tmp_path, models_dir, **own, **short, **environment))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def test_a_clock_that_jumps_costs_nothing(start: Start, tmp_path: Path) -> None:
    clock = tmp_path / "offset"
    clock.write_text("+0")
    vendored = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src"
    worker = start(
        LD_PRELOAD=str(vendored / "libfaketime.so.1"),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        DONT_FAKE_MONOTONIC="1",  # as in life: nobody sets that one
    )
    for offset_s in (DAY_S, -2 * DAY_S):
        id = worker.submit("sleeps", num_inference_steps=100)
        worker.wait_running(id)
        clock.write_text(f"{offset_s:+d}")
        job = worker.wait(id)
        assert job.state is JobState.SUCCEEDED and len(job.attempts) == 1
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - 2 * DAY_S))
    assert day in worker.log.read_text(), "it did jump"


def test_a_redis_that_takes_no_writes_ends_no_worker(start: Start, valkey: Server) -> None:
    """Its hints are heard, and can't be noted as heard. What is deleted goes all the same."""
    worker = start()
    worker.wait(done := worker.submit("counts"))
    first = worker.submit("sleeps", num_inference_steps=100)
    worker.wait_running(first)
    others = [worker.submit("counts") for _ in range(7)]  # whose hints wait
    with redis.Redis.from_url(valkey.url) as direct:
        direct.config_set("maxmemory", 1000)
        try:
            time.sleep(6)
            assert worker.store.delete(done)
            record = f"{worker.store._prefix}:job:{done}"
            until(lambda: not direct.exists(record))  # which makes room
        finally:
            direct.config_set("maxmemory", 0)
    for id in (first, *others):
        job = worker.wait(id)
        assert job.state is JobState.SUCCEEDED and len(job.attempts) == 1
    assert worker.process.poll() is None
    assert "takes no writes" in worker.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_worker_that_still_starts_leaves_at_once(start: Start, number: signal.Signals) -> None:
    worker = start()
    until(lambda: "worker.agent" in " ".join(part for p in worker.family() for part in p.cmdline()))
    family = worker.family()
    assert worker.stop(number) == 0
    until(lambda: not alive(family), 60)
    assert "ready." not in worker.log.read_text(), "it had not started"


@pytest.mark.parametrize(
    "signals", [[signal.SIGQUIT], [signal.SIGINT] * 2], ids=["SIGQUIT", "Ctrl-C twice"]
)
def test_whoever_has_no_patience_gets_the_job_put_back_and_nothing_left(
    start: Start, signals: list[signal.Signals]
) -> None:
    worker = start()
    id = worker.submit("sleeps", num_inference_steps=500)
    worker.wait_running(id)
    family = worker.family()
    for number in signals:
        worker.process.send_signal(number)
        time.sleep(0.5)
    assert worker.process.wait(30) == 0
    until(lambda: not alive(family), 60)
    job = worker.store.get(id)
    assert job is not None and job.state is JobState.QUEUED
    (attempt,) = job.attempts
    assert attempt.error is not None and attempt.error["code"] == "interrupted"
    assert worker.store.workers.alive() == {}


def test_a_worker_whose_key_the_storage_refuses_takes_one_job_and_says_so(
    start: Start, seaweed: Server
) -> None:
    wrong = {**seaweed.part.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}
    where = {"FLEET_STORAGE_URL": "s3://fleet/refused", "FLEET_S3_ENDPOINT": seaweed.url}
    worker = start(**wrong, **where)
    store = worker.store
    first = worker.submit("counts", num_inference_steps=1)
    said = "the object storage refuses its key"
    until(lambda: said in [card["draining"] for card in store.workers.alive().values()])
    second = worker.submit("counts", num_inference_steps=1)
    time.sleep(3)
    jobs = [store.get(id) for id in (first, second)]
    assert [job and job.state for job in jobs] == [JobState.RUNNING, JobState.QUEUED]
    store.cancel(first)
    assert worker.wait(first).state is JobState.CANCELED


def test_a_worker_that_is_to_say_nothing_of_its_files_does_not(
    start: Start, tmp_path: Path
) -> None:
    worker = start(FLEET_EMBED_PARAMETERS="0", FLEET_EMBED_PROVENANCE="0")
    for model in ("tiny-image", "tiny-video"):
        job = worker.wait(worker.submit(model, prompt="a secret"))
        assert job.state is JobState.SUCCEEDED, job.error
        file = tmp_path / "storage" / job.artifacts[0].key
        assert read(file) == (None, None) and b"secret" not in file.read_bytes()
