"""Whatever a caller sends, no answer is a fault of ours, and each is one that the document names:
its status, its media type, its schema. The requests are schemathesis's, the same each time."""

import io
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.openapi import from_wsgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.routes import ROUTES
from jobs.store import JobStore
from tests.fixtures.jobs import finish
from tests.fixtures.pictures import file

CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 20
GROUP: dict[str, Any] = {"ready": True, "restarts": 0, "ranks": [], "lanes": []}
ABOUT = {"start": "1", "size": 2, "models": [], "group": GROUP}


@pytest.fixture
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """No request of it waits for long."""
    monkeypatch.setenv("FLEET_MAX_WAIT_S", "0")
    client: FlaskClient = request.getfixturevalue("client")
    return client


@pytest.fixture
def known(impatient: FlaskClient, store: JobStore, tmp_path: Path) -> dict[str, Any]:
    """Something that is really there, by the beginning of its path."""
    video = impatient.post("/v1/videos", json={"prompt": "x"}).json["id"]
    finish(store, tmp_path / "storage", "video/mp4")
    job = {"model": "tiny-image", "input": {"prompt": "x"}}
    drawn = impatient.post("/v1/jobs", json=job).json["id"]
    finish(store, tmp_path / "storage")
    waiting = impatient.post("/v1/jobs", json=job).json["id"]
    batch = impatient.post("/v1/batches", json={"jobs": [job]}).json["id"]
    upload = impatient.post("/v1/uploads", data={"file": (io.BytesIO(file()), "x.png")}).json["id"]
    store.workers.announce("w1", {**ABOUT}, ttl_s=600)
    store.previews.put(waiting, file())
    return {
        "/v1/jobs/{id}/events": [drawn],  # one that goes on has no end
        "/v1/jobs": [drawn, waiting],
        "/v1/videos": [video],
        "/v1/batches": [batch, f"{batch}:jobs"],
        "/v1/uploads": [upload],
        "/v1/models": ["tiny-image"],
        "/v1/queue": ["gpu"],
        "/v1/workers": ["w1"],
    }


def place(known: dict[str, Any], case: Case, pick: int) -> None:
    """Of two requests one is for what is there."""
    ids = next((ids for path, ids in known.items() if case.path.startswith(path)), None)
    if ids and case.path_parameters and pick % 2:
        name = "name" if "name" in case.path_parameters else "id"
        case.path_parameters[name] = ids[pick // 2 % len(ids)]


@pytest.mark.parametrize("endpoint", ROUTES)
def test_no_request_is_answered_otherwise_than_the_document_says(
    endpoint: str, impatient: FlaskClient, known: dict[str, Any]
) -> None:
    schema = from_wsgi("/openapi.json", impatient.application)
    operation = schema.find_operation_by_id(endpoint.replace(".", "_"))
    modes = [operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, *GenerationMode)]

    @given(case=st.one_of(modes), pick=st.integers(0, 99))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case, pick: int) -> None:
        place(known, case, pick)
        answer = impatient.open(**case.as_transport_kwargs(), buffered=True)
        # With nobody to draw them, pictures that are waited for never come.
        slow = endpoint.startswith("openai_images") and answer.status_code == 504
        unready = endpoint == "health.readyz" and answer.status_code == 503
        assert answer.status_code < 500 or slow or unready, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()
