"""`Accept: image/*` and `Prefer: wait=N`: the answer is the picture itself."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from jobs.record import JobState
from jobs.store import JobStore
from tests.fixtures.jobs import claim, finish

KEY = {"Idempotency-Key": "k"}


def post(client: FlaskClient, accept: str = "", wait: int = 0, model: str = "tiny-image") -> Any:
    headers = {**KEY, "Accept": accept} if accept else dict(KEY)
    if wait:
        headers["Prefer"] = f"wait={wait}"
    body = {"model": model, "input": {"prompt": "x"}}
    return client.post("/v1/jobs", json=body, headers=headers, buffered=True)


@pytest.mark.parametrize("accept", ["image/*", "image/png", "image/png, application/json;q=0.5"])
def test_the_bytes_of_the_first_output(
    client: FlaskClient, store: JobStore, tmp_path: Path, accept: str
) -> None:
    id = post(client).json["id"]
    data = finish(store, tmp_path / "storage")
    answer = post(client, accept, wait=5)
    assert answer.status_code == 200 and answer.data == data
    assert answer.headers["Content-Type"] == "image/png" and answer.headers["X-Job-Id"] == id
    assert answer.headers["Location"] == f"/v1/jobs/{id}"
    assert answer.headers["Preference-Applied"] == "wait=5"


def test_the_bytes_of_a_video(client: FlaskClient, store: JobStore, tmp_path: Path) -> None:
    post(client, model="tiny-video")
    data = finish(store, tmp_path / "storage", "video/mp4")
    answer = post(client, "video/*", wait=5, model="tiny-video")
    assert answer.data == data and answer.headers["Content-Type"] == "video/mp4"


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "video/*", "image/webp"])
def test_who_asks_for_nothing_else_gets_the_job(
    client: FlaskClient, store: JobStore, tmp_path: Path, accept: str
) -> None:
    id = post(client).json["id"]
    finish(store, tmp_path / "storage")
    answer = post(client, accept, wait=5)
    assert answer.status_code == 200 and answer.json["id"] == id


@pytest.mark.parametrize(
    ("accept", "asked", "made"),
    [
        ("image/webp", {}, "webp"),
        ("image/webp,image/*;q=0.8", {"output": {"format": None}}, "webp"),
        ("image/*", {}, "png"),
        ("image/webp, */*", {"output": {"format": "png"}}, "png"),
        ("image/webp;q=0.5, image/png", {}, "png"),
    ],
)
def test_a_picture_comes_in_the_format_that_is_accepted(
    client: FlaskClient, accept: str, asked: dict[str, Any], made: str
) -> None:
    body = {"model": "tiny-image", "input": {"prompt": "x"}, **asked}
    headers = {"Accept": accept, "Prefer": "wait=1"}
    id = client.post("/v1/jobs", json=body, headers=headers).headers["X-Job-Id"]
    job = client.get(f"/v1/jobs/{id}").json
    assert job and job["output"]["format"] == made


def test_without_a_wait_accept_says_nothing(
    client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    id = post(client).json["id"]
    finish(store, tmp_path / "storage")
    answer = post(client, "image/*")
    assert answer.status_code == 202 and answer.json["id"] == id


def test_what_is_not_done_in_time_goes_on(client: FlaskClient, store: JobStore) -> None:
    answer = post(client, "image/*", wait=1)
    assert answer.status_code == 504 and answer.json["code"] == "wait_timeout"
    assert answer.headers["x-should-retry"] == "false" and answer.json["retryable"] is False
    assert "Retry-After" not in answer.headers
    job: Any = client.get(answer.headers["Location"]).json
    assert job["status"] == "queued" and job["id"] == answer.headers["X-Job-Id"]


def test_a_job_that_failed_is_answered_as_such(client: FlaskClient, store: JobStore) -> None:
    post(client)
    store.finish(claim(store), JobState.FAILED, error={"code": "internal"})
    answer = post(client, "image/*", wait=5)
    assert answer.status_code == 200 and answer.json["status"] == "failed"


def test_the_bytes_come_from_a_storage_that_signs_too(
    s3_client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    id = post(s3_client).json["id"]
    data = finish(store, tmp_path)
    s3_client.application.extensions["fleet"].storage.put(f"results/{id}/0", data)
    answer = post(s3_client, "image/*", wait=5)
    assert answer.status_code == 200 and answer.data == data, "who has posted follows nowhere"
    assert answer.headers["Content-Type"] == "image/png" and answer.headers["X-Job-Id"] == id
    assert int(answer.headers["Content-Length"]) == len(data)
    led = s3_client.get(f"/v1/jobs/{id}/outputs/0")
    assert led.status_code == 302 and httpx.get(led.headers["Location"]).content == data
    asked = httpx.head(s3_client.head(f"/v1/jobs/{id}/outputs/0").headers["Location"])
    assert asked.status_code == 200 and int(asked.headers["Content-Length"]) == len(data)
