"""Every 429 says which limit refused, that nothing of it is left, and for how long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import api
from jobs.record import JobState
from jobs.store import JobStore
from tests.fixtures.jobs import claim
from tests.fixtures.keys import keys

JOB = {"model": "tiny-image", "input": {"prompt": "x"}}
Made = Callable[..., FlaskClient]


@pytest.fixture
def made(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """An API with these settings, and a client with a key of these options."""

    def made(*options: str, **settings: str) -> FlaskClient:
        file = tmp_path / "keys.jsonl"
        for name, value in {"FLEET_API_KEYS_FILE": str(file), **settings}.items():
            monkeypatch.setenv(name, value)
        key = keys(file, "create", "--tenant", "a", *options)
        asks = api.create_app().test_client()
        asks.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return asks

    return made


def told(answer: TestResponse, code: str, limit: int, most_s: int = 2) -> None:
    problem: Any = answer.json
    assert (answer.status_code, problem["code"]) == (429, code) and problem["retryable"]
    headers = answer.headers
    assert headers["RateLimit-Limit"] == str(limit) and headers["RateLimit-Remaining"] == "0"
    assert headers["RateLimit-Reset"] == headers["Retry-After"]
    assert 1 <= int(headers["Retry-After"]) <= most_s


def never(answer: TestResponse, jobs: int, most: int) -> None:
    """Who came again would be refused again."""
    problem: Any = answer.json
    assert (answer.status_code, problem["code"]) == (422, "invalid_request")
    assert f"{jobs} jobs are more than may be here at once, {most}" in problem["detail"]
    assert not problem["retryable"] and "Retry-After" not in answer.headers


@pytest.mark.parametrize("minute", [(), ("--per-minute", "1000")])
def test_of_jobs_that_wait(made: Made, minute: tuple[str, ...]) -> None:
    asks = made(*minute, FLEET_MAX_QUEUED_PER_TENANT="1", FLEET_MAX_QUEUED="7")
    first = asks.post("/v1/jobs", json=JOB)
    assert first.status_code == 202
    assert first.headers.get("RateLimit-Limit") == ("1000" if minute else None)
    told(asks.post("/v1/jobs", json=JOB), "queue_full", 1)
    told(asks.post("/v1/batches", json={"jobs": [JOB]}), "queue_full", 1)
    never(asks.post("/v1/batches", json={"jobs": [JOB] * 2}), 2, 1)


@pytest.mark.parametrize("minute", [(), ("--per-minute", "1000")])
def test_of_jobs_at_once(made: Made, minute: tuple[str, ...]) -> None:
    asks = made(*minute, "--active-jobs", "2")
    never(asks.post("/v1/batches", json={"jobs": [JOB] * 3}), 3, 2)


def test_of_the_days_gpu_seconds(made: Made, store: JobStore) -> None:
    asks = made("--per-minute", "1000", "--gpu-seconds-per-day", "2.5")
    asks.post("/v1/jobs", json=JOB)
    store.finish(claim(store), JobState.SUCCEEDED, [], {"gpu_seconds": 3.0})
    told(asks.post("/v1/jobs", json=JOB), "quota_exceeded", 3, 86400)


def test_of_requests_a_minute(made: Made) -> None:
    asks = made("--per-minute", "1")
    answers = [asks.get("/v1/models") for _ in range(3)]  # the minute may have turned
    told(next(answer for answer in answers if answer.status_code == 429), "rate_limited", 1, 60)


@pytest.mark.parametrize("minute", [(), ("--per-minute", "1000")])
def test_of_what_is_open_for_long(made: Made, minute: tuple[str, ...]) -> None:
    """FLEET_MAX_STREAMS is 2 here, so that a tenant has one."""
    asks = made(*minute)
    job: Any = asks.post("/v1/jobs", json=JOB).json
    places = asks.application.extensions["fleet"].places
    for holder, limit in ((["a"], 1), (["b", "c"], 2)):
        for tenant in holder:
            places.take(tenant)
        told(asks.get(f"/v1/jobs/{job['id']}/events"), "too_many_streams", limit)
        picture = asks.post("/v1/images/generations", json={"prompt": "x"})
        told(picture, "too_many_streams", limit)
        waits = asks.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=1"})
        assert waits.status_code == 200 and "Preference-Applied" not in waits.headers
        for tenant in holder:
            places.give_back(tenant)
