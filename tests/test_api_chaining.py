"""A picture may be another job's output; and what is no picture at all."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.record import JobState
from jobs.store import JobStore
from tests.fixtures.asking import kept, post, refused
from tests.fixtures.jobs import ask, claim, finish


def test_a_picture_of_another_job(client: FlaskClient, store: JobStore, tmp_path: Path) -> None:
    first = client.post("/v1/jobs", json={"model": "tiny-image", "input": {"prompt": "x"}})
    id = first.json["id"]
    waits = post(client, {"job": id, "output": 0})
    assert waits.status_code == 409 and waits.json["code"] == "not_ready"
    assert waits.json["errors"][0]["pointer"] == "/input/image" and waits.json["retryable"]
    data = finish(store, tmp_path / "storage")
    for form in ({"job": id, "output": 0}, {"job": id}):
        assert kept(store, post(client, form)) == data
    assert post(client, {"job": id, "output": 1}).status_code == 404
    (tmp_path / "storage" / "results" / id / "0").unlink()
    assert post(client, {"job": id}).json["code"] == "output_expired"


def test_a_video_is_no_picture(client: FlaskClient, store: JobStore, tmp_path: Path) -> None:
    first = client.post("/v1/jobs", json={"model": "tiny-video", "input": {"prompt": "x"}})
    finish(store, tmp_path / "storage", "video/mp4")
    made = post(client, {"job": first.json["id"], "output": 0})
    detail = refused(client, made, 422, "invalid_request", "/input/image")
    assert "is video/mp4, no picture" in detail


def test_a_job_that_failed_or_is_not_ours(
    client: FlaskClient, store: JobStore, catalog: Catalog, tmp_path: Path
) -> None:
    theirs, _ = store.submit(ask(catalog), asker=Asker("other"))
    finish(store, tmp_path / "storage")
    failed, _ = store.submit(ask(catalog))
    store.finish(claim(store), JobState.FAILED, error={"code": "internal"})
    for id in (theirs, failed, "job_unknown", "x" * 5000, "../../etc/passwd", "\x00"):
        made = post(client, {"job": id, "output": 0})
        refused(client, made, 404, "not_found", "/input/image")


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"upload": 3},
        {"upload": "upl_1", "more": 1},
        {"job": "job_1", "output": -1},
        {"job": "job_1", "output": True},
        {"job": "job_1", "output": "0"},
        {"job": ["x"]},
        {"file": []},
        {"file": "part"},
        {"url": "https://example.com/"},
        ["https://example.com/"],
        "picture.png",
        3,
    ],
    ids=str,
)
def test_what_is_no_picture_at_all(client: FlaskClient, form: Any) -> None:
    refused(client, post(client, form), 422, "invalid_request", "/input/image")


def test_the_schema_of_a_model_says_what_may_be_sent(client: FlaskClient) -> None:
    schema = client.get("/v1/models/tiny-image").json["input_schema"]["image-to-image"]
    forms = schema["properties"]["image"]["anyOf"]
    assert [form.get("required") for form in forms] == [None, ["upload"], ["job"], ["file"]]
