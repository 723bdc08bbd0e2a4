"""Forms: the job as JSON in one part, its pictures as files in others; or by nested names."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict

from api.nested import unfolded
from jobs.images import MOST_BYTES
from jobs.store import JobStore
from tests.fixtures.asking import kept, refused
from tests.fixtures.asking import post_form as post
from tests.fixtures.pictures import file

PICTURE = file()
PART = {"file": "photo"}


def body(**fields: Any) -> str:
    given = {"prompt": "x", "image": PART, **fields}
    return json.dumps({"model": "tiny-image", "task": "image-to-image", "input": given})


@pytest.mark.parametrize("as_file", [False, True])
def test_a_job_and_its_picture(client: FlaskClient, store: JobStore, as_file: bool) -> None:
    said = (body().encode(), "application/json") if as_file else body()
    made = post(client, {"request": said, "photo": PICTURE})
    assert kept(store, made) == PICTURE


def test_a_form_without_files_is_a_job_too(client: FlaskClient) -> None:
    said = json.dumps({"model": "tiny-image", "input": {"prompt": "x"}})
    assert post(client, {"request": said}).status_code == 202


def test_image_and_mask_may_be_one_part_and_two(client: FlaskClient, store: JobStore) -> None:
    job = {"model": "tiny-fill", "input": {"prompt": "x", "image": PART, "mask": PART}}
    made = post(client, {"request": json.dumps(job), "photo": PICTURE})
    assert kept(store, made) == kept(store, made, "mask") == PICTURE
    job["input"] = {"prompt": "x", "image": PART, "mask": {"file": "mask"}}
    mask = file(mask=True)
    parts = {"request": json.dumps(job), "photo": PICTURE, "mask": mask}
    made = post(client, parts)
    assert kept(store, made) == PICTURE and kept(store, made, "mask") == mask


def test_a_large_text_part_is_read(client: FlaskClient) -> None:
    """Flask alone refuses more than 500 kB."""
    said = json.dumps({"model": "tiny-image", "input": {"prompt": "x" * 600_000}})
    refused(client, post(client, {"request": said}), 422, "invalid_request", "/input/prompt")


@pytest.mark.parametrize(
    "parts,pointer",
    [
        ({"photo": PICTURE}, "/request"),
        ({"request": body()}, "/input/image"),
        ({"request": body(), "other": PICTURE}, ""),
        ({"request": body(), "photo": PICTURE, "other": PICTURE}, ""),
        ({"request": body(), "photo": "text"}, "/photo"),
        ({"request": [body(), body()], "photo": PICTURE}, "/request"),
        ({"request": body(), "photo": [PICTURE, PICTURE]}, "/photo"),
        ({"request": body().encode(), "photo": PICTURE}, "/request"),
        ({"request": body(), "photo": b"<html>"}, "/input/image"),
        ({"request": body(image={"file": "request"}), "photo": PICTURE}, ""),
    ],
    ids=range(10),
)
def test_a_form_that_does_not_add_up(client: FlaskClient, parts: Any, pointer: str) -> None:
    refused(client, post(client, parts), 422, "invalid_request", pointer)


def test_a_request_part_that_is_no_json(client: FlaskClient) -> None:
    made = post(client, {"request": "{", "photo": PICTURE})
    assert made.status_code == 400 and made.json["code"] == "malformed_json"


def test_a_part_that_is_too_large(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_MAX_BODY_BYTES", str(2 * MOST_BYTES))
    client: FlaskClient = request.getfixturevalue("client")
    padded = PICTURE + bytes(MOST_BYTES - len(PICTURE))
    made = post(client, {"request": body(), "photo": padded + b"\0"})
    refused(client, made, 413, "payload_too_large", "/photo")
    assert post(client, {"request": body(), "photo": padded}).status_code == 202


def test_a_form_that_is_too_large(client: FlaskClient) -> None:
    for parts in ({"photo": bytes(20_000_000)}, {"request": "x" * 20_000_000}):
        made = post(client, {"request": body(), **parts})
        assert made.status_code == 413 and made.json["code"] == "payload_too_large"


def test_an_idempotency_key_stands_for_the_files_too(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = (post(client, {"request": body(), "photo": PICTURE}, key) for _ in range(2))
    assert first.json["id"] == again.json["id"] and again.headers["Idempotent-Replayed"] == "true"
    other = post(client, {"request": body(), "photo": file("WEBP")}, key)
    assert other.status_code == 422 and other.json["code"] == "idempotency_key_reused"


def test_a_batch_is_no_form(client: FlaskClient) -> None:
    made = post(client, {"request": body()}, url="/v1/batches")
    assert made.status_code == 415
    jobs = {"jobs": [json.loads(body())]}
    made = client.post("/v1/batches", json=jobs)
    refused(client, made, 422, "invalid_request", "/jobs/0/input/image")


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata[": "x"},
        {"metadata[a": "x"},
        {"metadata]a": "x"},
        {"metadata[a]b": "x"},
        {"metadata[[a]]": "x"},
        {"[a]": "x"},
        {"metadata[][]": "x"},
        {"metadata": "x", "metadata[a]": "x"},
        {"metadata[a]": "x", "metadata[a][b]": "x"},
        {"metadata[a]": ["x", "y"]},
        {"metadata[]": "x", "metadata[a]": "x"},
        {"metadata[][a]": ["x", "y"], "metadata[][b]": "x"},
        {"metadata" + "[a]" * 9: "x"},
        {"metadata" + "[a]" * 100_000: "x"},
        {f"metadata[{n}]": "x" for n in range(1001)},
        {"parallel[data]": "[" * 100_000},
        {"parallel[data]": "NaN"},
        {"parallel[data][a]": "1"},
        {"prompt[a]": "x"},
    ],
)
def test_a_name_of_a_form_that_makes_no_sense_is_refused(
    client: FlaskClient, fields: dict[str, Any]
) -> None:
    form = {"model": "tiny-video", "prompt": "x", **fields}
    if "prompt[a]" in fields:
        del form["prompt"]
    kind = "application/x-www-form-urlencoded"
    answer: Any = client.post("/v1/videos", data=form, content_type=kind)
    assert answer.status_code == 422, answer.text
    assert answer.json["error"]["param"].startswith(next(iter(fields))[:4])


def test_a_list_of_a_form_has_its_elements_in_their_order() -> None:
    form = MultiDict(
        [("l[][a]", "1"), ("l[][a]", "2"), ("l[][b][c]", "3"), ("l[][b][c]", "4"), ("m[n][]", "5")]
    )
    objects = [{"a": "1", "b": {"c": "3"}}, {"a": "2", "b": {"c": "4"}}]
    assert unfolded(form) == {"l": objects, "m": {"n": ["5"]}}
