"""The OpenAPI document is valid, covers every route, and says what the API really answers."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator

from jobs.store import JobStore
from tests.conftest import RunningFleet
from tests.fixtures.jobs import finish
from tests.fixtures.pictures import file

Document = dict[str, Any]
DRY = {"model": "tiny-image", "input": {"prompt": "x"}}


@pytest.fixture
def document(client: FlaskClient) -> Document:
    found: Document = client.get("/openapi.json").json
    return found


def walk(node: Any) -> Iterator[Any]:
    yield node
    for inner in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from walk(inner)


def closed(document: Document) -> Document:
    """The same, with no room for fields that it does not name."""
    for node in walk(document):
        if isinstance(node, dict) and isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
    return document


def hold(document: Document, path: str, method: str, answer: Any) -> None:
    """The answer is one that the document names, field by field. Of Flask's client, or httpx's."""
    about = document["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    assert kind in about["content"], (path, answer.status_code, kind)
    body = answer.json if not callable(answer.json) else answer.json()
    place = f"#/paths/{path.replace('/', '~1').replace('{', '%7B').replace('}', '%7D')}"
    inner = f"/{method}/responses/{answer.status_code}/content/{kind.replace('/', '~1')}/schema"
    validator = Draft202012Validator(
        {**document, "$ref": place + inner}, format_checker=FormatChecker()
    )
    validator.validate(body)


def test_it_is_valid(document: Document) -> None:
    OpenAPIV31SpecValidator(document).validate()  # type: ignore[arg-type]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_it_covers_every_route(client: FlaskClient, document: Document) -> None:
    rules = client.application.url_map.iter_rules()
    served = {
        (rule.rule.replace("<int:", "<").replace("<", "{").replace(">", "}"), method.lower())
        for rule in rules
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and rule.endpoint != "static"
    }
    assert {(path, m) for path, methods in document["paths"].items() for m in methods} == served


def test_every_operation_has_a_summary_and_every_schema_is_used(document: Document) -> None:
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    assert all(o["summary"] for o in operations)
    named = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert {n["$ref"] for n in walk(document) if isinstance(n, dict) and "$ref" in n} == named


def test_what_the_model_fills_in_may_be_left_out(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["TextToVideo"]["required"] == ["model", "input"]
    assert schemas["VideoInput"]["required"] == ["prompt"]
    assert schemas["FromMaskedImage"]["required"] == ["prompt", "image", "mask"]
    forms = schemas["FromImage"]["properties"]["image"]["anyOf"]
    assert {"upload", "job", "file"} <= {n for f in forms for n in f.get("properties", ())}


def test_its_examples_are_accepted(client: FlaskClient, document: Document) -> None:
    ids = {"id": client.post("/v1/videos", json={"prompt": "x"}).json["id"]}
    client.post(f"/v1/jobs/{ids['id']}/cancel")  # or it could not be tried again
    found = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                answer = client.open(path.format(**ids), method=method, json=body["example"])
                assert answer.status_code in (200, 202), (path, answer.text)
                hold(closed(document), path, method, answer)
                found += 1
    assert found == 4


def test_answers_are_as_the_document_says(
    client: FlaskClient, store: JobStore, tmp_path: Path, document: Document
) -> None:
    closed(document)
    video = client.post("/v1/videos", json={"prompt": "x"})
    hold(document, "/v1/videos", "post", video)
    finish(store, tmp_path / "storage", "video/mp4")
    made = {"id": video.json["id"]}
    for path in ("/v1/videos", "/v1/videos/{id}", "/v1/jobs", "/v1/jobs/{id}", "/v1/models"):
        hold(document, path, "get", client.get(path.format(**made)))
    for path in ("/v1/queue", "/v1/usage", "/livez", "/readyz", "/version", "/openapi.json"):
        hold(document, path, "get", client.get(path))
    hold(document, "/v1/jobs/{id}/retry", "post", client.post(f"/v1/jobs/{made['id']}/retry"))
    hold(document, "/v1/jobs/{id}/cancel", "post", client.post(f"/v1/jobs/{made['id']}/cancel"))
    sent = client.post("/v1/uploads", data={"file": (io.BytesIO(file()), "x.png")})
    hold(document, "/v1/uploads", "post", sent)
    dry = client.post("/v1/jobs?dry_run=true", json=DRY)
    assert dry.status_code == 200
    hold(document, "/v1/jobs", "post", dry)
    hold(document, "/v1/images/generations", "post", client.post("/v1/images/generations"))
    gone = client.delete(f"/v1/videos/{made['id']}")
    hold(document, "/v1/videos/{id}", "delete", gone)


def test_a_fleets_answers_are_too(file_fleet: RunningFleet) -> None:
    http = file_fleet.http
    document = closed(http.get("/openapi.json").json())
    good = file_fleet.wait(file_fleet.submit("tiny-video"))["id"]
    bad = file_fleet.wait(file_fleet.submit("broken"))["id"]
    for id in (good, bad):
        hold(document, "/v1/jobs/{id}", "get", http.get(f"/v1/jobs/{id}"))
    running = file_fleet.submit("sleeps", num_inference_steps=500)
    file_fleet.wait_running(running)
    hold(document, "/v1/jobs/{id}", "get", http.get(f"/v1/jobs/{running}"))
    http.post(f"/v1/jobs/{running}/cancel")
    hold(document, "/v1/videos/{id}", "get", http.get(f"/v1/videos/{good}"))
    for path in ("/v1/workers", "/v1/models", "/v1/queue", "/v1/usage", "/v1/jobs/dead"):
        answer = http.get(path)
        assert answer.json()["data"] or path == "/v1/jobs/dead"
        hold(document, path, "get", answer)
    asked = {"prompt": "x", "model": "tiny-image"}
    drawn = http.post("/v1/images/generations", json=asked)
    hold(document, "/v1/images/generations", "post", drawn)
