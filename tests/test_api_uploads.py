"""Pictures that come ahead of a job: through the API, or straight into the storage."""

import base64
import hashlib
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import redis
from flask.testing import FlaskClient

from jobs.artifacts import ArtifactStorage
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.uploads import LIFE_S, Upload
from tests.conftest import RunningFleet, until
from tests.fixtures.asking import encoded, kept, post_form, refused
from tests.fixtures.asking import post as post_job
from tests.fixtures.pictures import file
from worker.reaper import Reaper

PICTURE = file()


def upload(client: FlaskClient, data: bytes = PICTURE) -> Any:
    return post_form(client, {"file": data}, url="/v1/uploads")


@pytest.mark.parametrize("where", ["client", "s3_client"])
def test_an_upload_and_a_job_that_begins_with_it(
    request: pytest.FixtureRequest, store: JobStore, where: str
) -> None:
    client = request.getfixturevalue(where)
    made = upload(client)
    assert made.status_code == 201, made.text
    about = made.json
    assert made.headers["Location"] == f"/v1/uploads/{about['id']}"
    assert about["id"].startswith("upl_") and about["object"] == "upload"
    assert about["bytes"] == len(PICTURE) and about["content_type"] == "image/png"
    assert about["sha256"] == hashlib.sha256(PICTURE).hexdigest()
    created, expires = (datetime.fromisoformat(about[k]) for k in ("created_at", "expires_at"))
    assert expires - created == timedelta(days=1) and abs(created.timestamp() - time.time()) < 60
    assert client.get(made.headers["Location"]).json == about
    form = {"upload": about["id"]}
    assert kept(store, post_job(client, form)) == PICTURE
    assert client.delete(made.headers["Location"]).status_code == 204
    for gone in (client.get(made.headers["Location"]), client.delete(made.headers["Location"])):
        assert gone.status_code == 404
    again = post_job(client, form)
    assert again.status_code == 404 and again.json["errors"][0]["pointer"] == "/input/image"
    storage = client.application.extensions["fleet"].storage
    assert storage.read(f"uploads/default/{about['id']}") is None


@pytest.mark.parametrize(
    "parts,pointer",
    [
        ({"file": b"<html>"}, "/file"),
        ({"file": b"GIF89a" + bytes(100)}, "/file"),
        ({"file": b""}, "/file"),
        ({"file": "text"}, "/file"),
        ({"other": PICTURE}, "/other"),
        ({"file": PICTURE, "other": PICTURE}, "/other"),
        ({"file": [PICTURE, PICTURE]}, "/file"),
        ({}, "/file"),
    ],
    ids=range(8),
)
def test_what_is_no_upload(client: FlaskClient, tmp_path: Path, parts: Any, pointer: str) -> None:
    made = post_form(client, parts, url="/v1/uploads")
    refused(client, made, 422, "invalid_request", pointer)
    assert not list((tmp_path / "storage").rglob("upl_*"))


def test_a_link_takes_a_put(s3_client: FlaskClient, store: JobStore) -> None:
    asked = {"content_type": "image/png", "bytes": len(PICTURE)}
    made = s3_client.post("/v1/uploads", json=asked)
    assert made.status_code == 201
    about: Any = made.json
    assert about["sha256"] is None and about["bytes"] == len(PICTURE)
    form = {"upload": about["id"]}
    waits = post_job(s3_client, form)
    assert waits.status_code == 409 and waits.json["code"] == "not_ready"
    put = httpx.put(about["put_url"], content=PICTURE, headers={"Content-Type": "image/png"})
    assert put.is_success, put.text
    assert kept(store, post_job(s3_client, form)) == PICTURE
    elsewhere = about["put_url"].replace(about["id"], "upl_of_mine")
    assert httpx.put(elsewhere, content=b"x").status_code == 403
    assert "put_url" not in s3_client.get(f"/v1/uploads/{about['id']}").json  # type: ignore[operator]
    for data in (b"<html>", bytes(20_000_001)):
        assert httpx.put(about["put_url"], content=data).is_success, "the storage takes anything"
        refused_job = post_job(s3_client, form)
        assert refused_job.status_code == 422, refused_job.text
        assert refused_job.json["errors"][0]["pointer"] == "/input/image"


def test_a_folder_gives_no_links(client: FlaskClient) -> None:
    made = client.post("/v1/uploads", json={"content_type": "image/png", "bytes": 10})
    assert made.status_code == 422 and "multipart" in made.json["detail"]  # type: ignore[index]


@pytest.mark.parametrize(
    "body,status,pointer",
    [
        ({}, 422, ""),
        ([], 422, ""),
        ({"content_type": "image/png", "bytes": 10, "name": "x"}, 422, ""),
        ({"content_type": "text/html", "bytes": 10}, 422, "/content_type"),
        ({"content_type": ["image/png"], "bytes": 10}, 422, "/content_type"),
        ({"content_type": "image/png", "bytes": 0}, 422, "/bytes"),
        ({"content_type": "image/png", "bytes": True}, 422, "/bytes"),
        ({"content_type": "image/png", "bytes": 20_000_001}, 413, "/bytes"),
    ],
    ids=range(8),
)
def test_what_is_no_announcement(client: FlaskClient, body: Any, status: int, pointer: str) -> None:
    made = client.post("/v1/uploads", json=body)
    code = "payload_too_large" if status == 413 else "invalid_request"
    refused(client, made, status, code, pointer)


def test_the_upload_of_another_tenant_is_none(client: FlaskClient, store: JobStore) -> None:
    at = store.uploads.begin("upl_1", "other")
    store.uploads.add(Upload("upl_1", "other", "image/png", 10, at))
    assert store.uploads.get("upl_1", "other") is not None
    assert client.get("/v1/uploads/upl_1").status_code == 404
    assert client.delete("/v1/uploads/upl_1").status_code == 404
    refused(client, post_job(client, {"upload": "upl_1"}), 404, "not_found", "/input/image")
    assert store.uploads.get("upl_1", "other") is not None


def test_a_storage_that_is_away(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, store: JobStore
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("FLEET_STORAGE_URL", "s3://fleet/x")
    monkeypatch.setenv("FLEET_S3_ENDPOINT", "http://127.0.0.1:1")
    client = request.getfixturevalue("client")
    store.uploads.add(Upload("upl_1", "default", "image/png", 10, time.time(), "0"))
    for answer in (upload(client), post_job(client, {"upload": "upl_1"})):
        assert answer.status_code == 503 and answer.json["code"] == "storage_unavailable"
    assert client.delete("/v1/uploads/upl_1").status_code == 503
    assert client.get("/v1/uploads/upl_1").status_code == 200, "it can be asked for again"


def test_a_large_upload(client: FlaskClient, store: JobStore) -> None:
    """Larger than what is kept in memory while a form is read."""
    large = PICTURE + bytes(2_000_000)
    made = upload(client, large)
    assert kept(store, post_job(client, {"upload": made.json["id"]})) == large


def expire(store: JobStore, key: str) -> None:
    store._redis.zadd(store._key("uploads"), {key: time.time() - 1})


def test_an_upload_lives_for_a_day(client: FlaskClient, store: JobStore) -> None:
    id = upload(client).json["id"]
    assert LIFE_S - 60 < store._redis.ttl(store._key(f"upload:{id}")) <= LIFE_S
    assert store.uploads.expired() == []
    expire(store, f"uploads/default/{id}")
    assert store.uploads.expired() == [f"uploads/default/{id}"]


def test_files_are_removed_once_the_storage_is_there(
    client: FlaskClient, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    id = upload(client).json["id"]
    key = f"uploads/default/{id}"
    expire(store, key)
    settings = Settings(storage_url="s3://x/y", s3_endpoint="http://127.0.0.1:1")
    away, there = ArtifactStorage(settings), client.application.extensions["fleet"].storage
    for storage, left in ((away, True), (there, False), (there, False)):
        fleet: Any = SimpleNamespace(store=store, storage=storage, settings=settings, at_work=set())
        Reaper(None, fleet, lambda: None)._remove([], [key], [])
        assert (tmp_path / "storage" / key).exists() is left
        assert bool(store.uploads.expired()) is left


def test_a_worker_removes_what_has_expired(file_fleet: RunningFleet) -> None:
    answer = file_fleet.http.post("/v1/uploads", files={"file": PICTURE})
    key = f"uploads/default/{answer.json()['id']}"
    path = file_fleet.data / "storage" / key
    assert path.read_bytes() == PICTURE
    url = next(line.split()[1] for line in file_fleet.lines if line.startswith("valkey"))
    server = redis.Redis.from_url(url)
    server.zadd("fleet:uploads", {key: time.time() - 1})
    until(lambda: not path.exists() and server.zscore("fleet:uploads", key) is None)


def test_a_form_of_no_declared_length_that_is_too_large(file_fleet: RunningFleet) -> None:
    data, kind = encoded({"file": PICTURE + bytes(20_000_000)})
    pieces = (data[at : at + 2**20] for at in range(0, len(data), 2**20))
    made = file_fleet.http.post("/v1/uploads", content=pieces, headers={"Content-Type": kind})
    assert made.status_code == 413 and made.json()["code"] == "payload_too_large", made.text


def test_the_same_picture_by_any_way_gives_the_same_file(file_fleet: RunningFleet) -> None:
    first = file_fleet.wait(file_fleet.submit("tiny-image", "a", seed=1))
    drawn = file_fleet.http.get(first["outputs"][0]["url"]).content
    uploaded = file_fleet.http.post("/v1/uploads", files={"file": drawn}).json()["id"]
    direct = f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
    ways = [direct, {"upload": uploaded}, {"job": first["id"], "output": 0}]
    made = [
        file_fleet.wait(
            file_fleet.submit("tiny-image", "b", task="image-to-image", seed=2, image=way)
        )
        for way in ways
    ]
    assert all(job["status"] == "succeeded" for job in made), made
    assert len({job["outputs"][0]["sha256"] for job in made}) == 1
    plain = file_fleet.wait(file_fleet.submit("tiny-image", "b", seed=2))
    assert plain["outputs"][0]["sha256"] != made[0]["outputs"][0]["sha256"]
