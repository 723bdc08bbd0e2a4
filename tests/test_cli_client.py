"""The Python client with a real API: what it watches, fetches, sends, and what it lives through."""

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.serving import make_server

from cli.client import ApiError, Client
from jobs.catalog import Catalog
from jobs.record import JobState
from jobs.store import JobStore
from tests.conftest import RunningFleet, until
from tests.fixtures.jobs import ask, claim
from tests.test_cli import run


@pytest.fixture
def here(file_fleet: RunningFleet) -> Iterator[Client]:
    client = Client(file_fleet.url)
    yield client
    client.close()


def test_a_script_of_two_lines(here: Client, tmp_path: Path) -> None:
    job = here.run("tiny-image", ["a red circle", "b"], seed=3, width=96)
    assert job["status"] == "succeeded" and job["input"]["seed"] == 3
    paths = here.download(job, tmp_path / "made")
    assert sorted((tmp_path / "made").iterdir()) == paths and len(paths) == 2
    for path, output in zip(paths, job["outputs"], strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == output["sha256"]
    assert "tiny-image" in [model["id"] for model in here.models()]


def test_one_key_is_one_job(here: Client) -> None:
    body = {"model": "tiny-image", "input": {"prompt": "x"}}
    first = here.submit(body, "a key of test_cli_client")
    assert here.submit(body, "a key of test_cli_client")["id"] == first["id"]
    assert here.submit(body)["id"] != first["id"]
    done = here.wait(first["id"])
    again = here.retry(first["id"], changes={"metadata": {"why": "again"}})
    assert again["retry_of"] == first["id"] and again["input"] == done["input"]
    assert again["metadata"] == {"why": "again"}
    assert here.cancel(again["id"])["status"] in ("canceling", "canceled", "succeeded")
    here.wait(again["id"])
    here.delete(first["id"])
    with pytest.raises(ApiError, match="There is no job"):
        here.job(first["id"])


def test_every_change_once_until_the_job_ends(here: Client) -> None:
    body = {"model": "sleeps", "input": {"prompt": "x", "num_inference_steps": 60}}
    seen = list(here.watch(here.submit(body)["id"]))
    numbers = [job["seq"] for job in seen]
    assert numbers == sorted(set(numbers)) and len(numbers) > 4
    assert all(job["input"] == seen[0]["input"] for job in seen), "each is the whole job"
    assert seen[-1] == here.job(seen[0]["id"]) and seen[-1]["status"] == "succeeded"
    assert list(here.watch(seen[0]["id"])) == seen[-1:], "of a job that is over"


@pytest.fixture
def served(client: FlaskClient) -> Iterator[Client]:
    """The test's own API, without a worker, on loopback."""
    server = make_server("127.0.0.1", 0, client.application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    over_http = Client(f"http://127.0.0.1:{server.server_port}")
    yield over_http
    over_http.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_where_no_stream_is_to_be_had_it_asks_again_and_again(
    served: Client, client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    follower = client.application.extensions["fleet"].follower
    taken = [follower.watch(id) for _ in range(2)]
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(j["status"] for j in served.watch(id)))
    listener.start()
    until(lambda: heard == ["queued"])
    time.sleep(1.2)  # two rounds without news
    mine = claim(store)
    until(lambda: heard == ["queued", "running"])
    store.finish(mine, JobState.SUCCEEDED)
    listener.join(10)
    assert heard == ["queued", "running", "succeeded"]
    for changed in taken:
        follower.give_back(id, changed)


def test_a_watched_job_that_is_deleted_is_not_found(
    served: Client, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    claim(store)
    watched = served.watch(id)
    assert next(watched)["status"] == "running"
    store.delete(id)
    with pytest.raises(ApiError, match="has been deleted") as caught:
        for _ in watched:
            pass
    assert caught.value.status == 404


@pytest.fixture
def own_fleet(models_dir: Path, tmp_path: Path) -> Iterator[RunningFleet]:
    fleet = RunningFleet(tmp_path, models_dir, "--no-flower")
    yield fleet
    fleet.stop()


def test_an_api_killed_in_mid_job_is_lived_through(own_fleet: RunningFleet, tmp_path: Path) -> None:
    here = Client(own_fleet.url)
    body = {"model": "sleeps", "input": {"prompt": "x", "num_inference_steps": 400}}  # 20 s
    watched = here.watch(here.submit(body)["id"])
    heard = list(itertools.islice(watched, 4))
    for process in own_fleet.pids("gunicorn"):
        process.kill()
    second = here.submit(body, "sent to nobody at first")
    heard += watched
    numbers = [job["seq"] for job in heard]
    assert numbers == sorted(set(numbers)) and heard[-1]["status"] == "succeeded"
    assert len(heard) > 8, "4 before, and more than a first look and the end after it"
    assert heard[-1]["attempt"] == 1
    assert len(here.call("GET", "/v1/jobs")["data"]) == 2, "each submit is one job"
    for process in own_fleet.pids("gunicorn"):
        process.kill()
    assert here.download(heard[-1], tmp_path / "made")[0].stat().st_size > 0
    here.cancel(second["id"])
    here.close()


def test_a_picture_from_the_shell(file_fleet: RunningFleet, tmp_path: Path) -> None:
    image, mask, out = (tmp_path / f"{name}.png" for name in ("image", "mask", "out"))
    Image.new("RGB", (64, 64), "red").save(image)
    Image.new("L", (64, 64), 255).save(mask)
    words = ["submit", "x", "--image", str(image)]
    done = run(file_fleet, *words, "-o", str(out), "--seed", "1")
    assert done.returncode == 0, done.stderr
    job = file_fleet.client.job(done.stdout.split()[0])
    assert (job["model"], job["task"]) == ("tiny-image", "image-to-image")
    filled = run(file_fleet, *words, "--mask", str(mask), "--no-wait")
    job = file_fleet.client.job(filled.stdout.strip())
    assert (job["model"], job["task"]) == ("tiny-fill", "inpaint")
    assert job["input"]["image"] and job["input"]["mask"]
    file_fleet.client.cancel(job["id"])
    refused = run(file_fleet, *words, "--model", "sleeps")
    assert refused.returncode == 2 and "sleeps takes no image" in refused.stderr
    nothing = run(file_fleet, "submit", "x", "--image", str(tmp_path / "none.png"))
    assert nothing.returncode == 2 and "does not exist" in nothing.stderr
    (tmp_path / "text.png").write_text("no picture")
    text = run(file_fleet, "submit", "x", "--image", str(tmp_path / "text.png"))
    assert text.returncode == 2 and "invalid_request" in text.stderr
