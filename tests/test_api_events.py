"""Server-sent events: a snapshot, then every change, and the way back after a break."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from jobs.catalog import Catalog
from jobs.store import JobStore
from tests.conftest import RunningFleet, frozen, until
from tests.fixtures.jobs import ask, claim

Event = tuple[str, int, dict[str, Any]]


def parsed(lines: Iterator[str]) -> Iterator[Event | None]:
    """Events, and None for a comment."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], int(fields["id"]), json.loads(fields["data"])
            fields = {}


def stream(fleet: RunningFleet, id: str, last: int | None = None) -> Iterator[Event | None]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    url = f"{fleet.url}/v1/jobs/{id}/events"
    with httpx.stream("GET", url, headers=headers, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield from parsed(response.iter_lines())


def test_a_snapshot_then_every_change_until_the_job_ends(file_fleet: RunningFleet) -> None:
    id = file_fleet.submit("sleeps", num_inference_steps=60)
    began = time.monotonic()
    events = [event for event in stream(file_fleet, id) if event]
    took = time.monotonic() - began
    kinds = [kind for kind, _, _ in events]
    assert kinds[0] == "snapshot" and events[0][2]["id"] == id
    assert kinds[-1] == "status" and events[-1][2]["status"] == "succeeded"
    assert events[-1][2] == file_fleet.client.job(id), "the whole job"
    numbers = [number for _, number, _ in events]
    assert numbers == sorted(set(numbers)), "each once, and never back"
    values = [data["progress"]["value"] for _, _, data in events]
    assert values == sorted(values) and len(set(values)) > 3
    assert kinds.count("progress") <= 4 * took + 1


def test_who_comes_back_hears_what_is_new_alone(file_fleet: RunningFleet) -> None:
    id = file_fleet.submit("sleeps", num_inference_steps=100)
    first = list(itertools.islice((e for e in stream(file_fleet, id) if e), 3))
    again = [event for event in stream(file_fleet, id, first[-1][1]) if event]
    assert again[0][1] > first[-1][1] and again[0][0] == "snapshot"
    assert again[-1][2]["status"] == "succeeded"
    url = f"{file_fleet.url}/v1/jobs/{id}/events"
    assert httpx.get(url, headers={"Last-Event-ID": str(again[-1][1])}).status_code == 204
    assert [e[0] for e in stream(file_fleet, id) if e] == ["snapshot"], "of a job that is over"
    assert httpx.get(f"{file_fleet.url}/v1/jobs/job_unknown/events").status_code == 404


def test_so_many_streams_and_no_more(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    follower = client.application.extensions["fleet"].follower
    first, _second = (follower.watch(id) for _ in range(2))
    refused = client.get(f"/v1/jobs/{id}/events")
    assert refused.status_code == 429 and refused.json["code"] == "too_many_streams"
    assert int(refused.headers["Retry-After"]) > 0
    follower.give_back(id, first)
    for _ in range(3):
        with client.get(f"/v1/jobs/{id}/events") as answer:
            assert answer.status_code == 200, "each is given back"


def test_silence_has_a_heartbeat_and_a_deletion_an_end(
    client: FlaskClient, store: JobStore, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.events.HEARTBEAT_S", 0.3)
    id, _ = store.submit(ask(catalog))
    lines = (line for part in client.get(f"/v1/jobs/{id}/events").response for line in _lines(part))
    events = parsed(lines)
    assert next(events)[0] == "snapshot"  # type: ignore[index]
    assert next(events) is None and next(events) is None
    mine = claim(store)
    kinds = (event[0] for event in events if event)
    assert next(kinds) == "status"
    store.renew(mine, progress={"value": 0.5})
    assert next(kinds) == "progress"
    store.delete(id)
    assert list(kinds) == ["deleted"]


def _lines(part: Any) -> list[str]:
    text: str = part if isinstance(part, str) else part.decode()
    return text.split("\n")[:-1]


def test_a_stream_outlives_an_outage_of_redis(s3_fleet: RunningFleet) -> None:
    id = s3_fleet.submit("sleeps", num_inference_steps=100)
    s3_fleet.wait_running(id)
    heard: list[Event | None] = []
    listener = threading.Thread(target=lambda: heard.extend(stream(s3_fleet, id)))
    listener.start()
    until(lambda: heard)
    with frozen(next(p for p in s3_fleet.pids("valkey") if p.ppid() == s3_fleet.process.pid)):
        until(lambda: None in heard or not listener.is_alive(), 20)
    listener.join(60)
    last = heard[-1]
    assert last is not None and last[2]["status"] == "succeeded"
    assert None in heard, "it said that the queue does not answer"


def test_who_lost_the_api_in_mid_stream_goes_on_where_he_was(s3_fleet: RunningFleet) -> None:
    id = s3_fleet.submit("sleeps", num_inference_steps=150)
    heard: list[Event] = []
    killed = False
    while not heard or heard[-1][2]["status"] != "succeeded":
        try:
            for event in stream(s3_fleet, id, heard[-1][1] if heard else None):
                heard += [event] if event else []
                if not killed and len(heard) > 3:
                    killed = True
                    for process in s3_fleet.pids("gunicorn"):
                        process.kill()
        except httpx.HTTPError:
            time.sleep(0.2)
    numbers = [number for _, number, _ in heard]
    assert numbers == sorted(set(numbers))
    assert [kind for kind, _, _ in heard].count("snapshot") == 2, "it came back once"
