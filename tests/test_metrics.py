"""/metrics: what Prometheus is told, and who else."""

from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

import api
from jobs.catalog import Catalog
from jobs.errors import SettingsError
from jobs.settings import load_settings
from jobs.store import JobStore
from tests.conftest import RunningFleet
from tests.fixtures.jobs import ask, claim

COUNT = "fleet_http_request_duration_seconds_count"
TOKEN = "a-token-of-prometheus"
MEMORY = {"memory_bytes": 8_000_000, "memory": {"allocated": 5_000_000, "peak": 6}}
ABOUT = {
    "start": "1",
    "size": 2,
    "group": {
        "ready": True,
        "restarts": 3,
        "ranks": [
            {"rank": 0, **MEMORY, "utilization_percent": 87, "temperature_c": 61},
            {"rank": 1, **MEMORY, "memory": {}, "utilization_percent": None, "temperature_c": None},
        ],
    },
    "models": ["tiny-image"],
    "loaded": ["tiny-image"],
    "draining": None,
}


def scraped(client: FlaskClient, **asked: Any) -> dict[tuple[str, ...], float]:
    """By name and the values of its labels, which the parser sorts by theirs."""
    answer = client.get("/metrics", **asked)
    assert answer.status_code == 200 and answer.mimetype == "text/plain", answer.text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_it_tells_the_queue_and_the_workers(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    for _ in range(3):
        store.submit(ask(catalog))
    claim(store)
    store.queues.pause("gpu")
    store.workers.announce("w1", ABOUT)
    told = scraped(client)
    assert told["fleet_redis_up",] == 1
    assert told["fleet_queue_waiting", "gpu"] == 2 and told["fleet_queue_running", "gpu"] == 1
    assert told["fleet_queue_paused", "gpu"] == 1
    assert 0 <= told["fleet_queue_oldest_seconds", "gpu"] < 60
    assert told["fleet_worker_ready", "w1"] == 1 and told["fleet_worker_ranks", "w1"] == 2
    assert told["fleet_worker_restarts", "w1"] == 3
    assert told["fleet_rank_memory_bytes", "1", "w1"] == 8_000_000
    assert told["fleet_rank_memory_used_bytes", "0", "w1"] == 5_000_000
    assert told["fleet_gpu_utilization_percent", "0", "w1"] == 87
    assert told["fleet_gpu_temperature_celsius", "0", "w1"] == 61
    assert ("fleet_gpu_temperature_celsius", "1", "w1") not in told
    store.workers.announce("w1", {**ABOUT, "draining": "asked for"})
    assert scraped(client)["fleet_worker_ready", "w1"] == 0


def test_it_counts_requests_by_route_and_answer(client: FlaskClient) -> None:
    client.get("/v1/jobs/job_1")
    client.get("/v1/jobs/job_2")
    client.get("/nowhere/job_3")
    client.post("/v1/jobs", data="{", content_type="application/json")
    told = scraped(client)
    assert told[COUNT, "GET", "/v1/jobs/<id>", "404"] == 2
    assert told[COUNT, "POST", "/v1/jobs", "400"] == 1
    assert told[COUNT, "none", "none", "404"] == 1
    assert not any("job_" in word for labels in told for word in labels)


def test_any_process_tells_the_requests_of_all(file_fleet: RunningFleet) -> None:
    def counted() -> float:
        text = httpx.get(f"{file_fleet.url}/metrics", timeout=30).text
        families = list(text_string_to_metric_families(text))
        assert [f.name for f in families].count("fleet_redis_up") == 1
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == COUNT and sample.labels["route"] == "/version"
        )

    before = counted()
    for _ in range(20):  # each on a connection of its own: to any of the processes
        httpx.get(f"{file_fleet.url}/version", timeout=30)
    assert {counted() for _ in range(10)} == {before + 20}


def test_without_redis_its_own_numbers_still_come(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    away = api.create_app().test_client()
    away.get("/livez")
    told = scraped(away)
    assert told["fleet_redis_up",] == 0 and ("fleet_queue_waiting", "gpu") not in told
    assert told[COUNT, "GET", "/livez", "200"] == 1


@pytest.mark.parametrize("address", ["10.0.0.7", "", "::ffff:10.0.0.7"])
def test_without_a_token_only_this_machine_is_answered(client: FlaskClient, address: str) -> None:
    for here in ("127.0.0.1", "::1"):
        assert scraped(client, environ_overrides={"REMOTE_ADDR": here})
    there = client.get("/metrics", environ_overrides={"REMOTE_ADDR": address})
    assert there.status_code == 403 and there.json["code"] == "forbidden"


def test_a_proxy_on_this_machine_is_not_this_machine(client: FlaskClient) -> None:
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert client.get("/metrics", headers={name: "203.0.113.9"}).status_code == 403


def test_with_a_token_whoever_has_it_is_answered(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_METRICS_TOKEN", TOKEN)
    client: FlaskClient = request.getfixturevalue("client")
    far = {"environ_overrides": {"REMOTE_ADDR": "10.0.0.7"}}
    assert scraped(client, headers={"Authorization": f"Bearer {TOKEN}"}, **far)
    for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}):
        assert client.get("/metrics", headers=wrong).status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer \xe9"}).status_code == 401


@pytest.mark.parametrize("token", ["short", "a token with some blanks in it", "é" * 20])
def test_a_bad_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(SettingsError, match="FLEET_METRICS_TOKEN must have") as refused:
        load_settings({"FLEET_METRICS_TOKEN": token})
    assert token not in str(refused.value)
    assert TOKEN not in repr(load_settings({"FLEET_METRICS_TOKEN": TOKEN}))
