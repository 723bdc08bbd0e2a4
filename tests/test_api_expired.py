"""What is gone from the storage is said so by the API, not by the storage behind a link."""

from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog
from jobs.record import Artifact, JobState
from jobs.request import JobRequest
from jobs.store import JobStore
from tests.fixtures.jobs import ask, claim
from tests.fixtures.pictures import file

KEYS = {"": "results/x/0.png", "thumbnail": "results/x/0-thumbnail.webp"}


@pytest.fixture(params=["client", "s3_client"])
def asked(request: pytest.FixtureRequest) -> FlaskClient:
    client: FlaskClient = request.getfixturevalue(request.param)
    return client


@pytest.fixture
def storage(asked: FlaskClient) -> ArtifactStorage:
    found: ArtifactStorage = asked.application.extensions["fleet"].storage
    return found


def done(store: JobStore, request: JobRequest, kind: str = "image/png") -> str:
    id, _ = store.submit(request)
    made = Artifact(0, KEYS[""], kind, 64, 64, 1, None, 9, "ab", 3, KEYS["thumbnail"])
    store.finish(claim(store), JobState.SUCCEEDED, [made])
    return id


@pytest.mark.parametrize("variant", KEYS)
def test_an_output_that_is_gone_is_410(
    asked: FlaskClient, storage: ArtifactStorage, store: JobStore, catalog: Catalog, variant: str
) -> None:
    id = done(store, ask(catalog))
    url = f"/v1/jobs/{id}/outputs/0" + (f"?variant={variant}" if variant else "")
    storage.put(KEYS[variant], data := file())
    answer: Any = asked.get(url, buffered=True)
    if answer.status_code == 302:
        assert httpx.get(answer.headers["Location"]).content == data
    else:
        assert answer.status_code == 200 and answer.data == data
    storage.delete(KEYS[variant])
    for method in ("GET", "HEAD"):
        gone: Any = asked.open(url, method=method)
        assert gone.status_code == 410 and "Location" not in gone.headers
    assert asked.get(url).json["code"] == "output_expired"  # type: ignore[index]


def test_so_is_a_picture_that_was_waited_for(asked: FlaskClient, store: JobStore) -> None:
    body, headers = {"model": "tiny-image", "input": {"prompt": "x"}}, {"Idempotency-Key": "k"}
    asked.post("/v1/jobs", json=body, headers=headers)
    made = Artifact(0, KEYS[""], "image/png", 64, 64, 1, None, 9, "ab", 3)
    store.finish(claim(store), JobState.SUCCEEDED, [made])
    wishes = {**headers, "Prefer": "wait=5", "Accept": "image/*"}
    answer: Any = asked.post("/v1/jobs", json=body, headers=wishes)
    assert answer.status_code == 410 and answer.json["code"] == "output_expired"


def test_and_a_video(asked: FlaskClient, store: JobStore, catalog: Catalog) -> None:
    id = done(store, ask(catalog, model="tiny-video"), "video/mp4")
    for query in ("", "?variant=thumbnail"):
        answer: Any = asked.get(f"/v1/videos/{id}/content{query}")
        assert answer.status_code == 410 and answer.json["error"]["code"] == "output_expired"
