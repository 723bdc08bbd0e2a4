"""Requests that no honest client sends: refused with a sentence, at once, and never a 500."""

import io
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from jobs.store import JobStore
from tests.fixtures.pictures import file

JSON, FORM = "application/json", "multipart/form-data; boundary=x"
IDS = ["%00", "a%00b", "%ED%A0%80", "%FF", "*", "x" * 5000, "..", "%2e%2e", "%0D%0AX:y", "{x}"]
IDS += ["a:b", ":jobs"]
POSTS = ["/v1/jobs", "/v1/uploads", "/v1/images/generations", "/v1/images/edits", "/v1/videos"]
HUGE = 10**3000


def job(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny-image", "input": {"prompt": "x", **fields}}


@pytest.mark.parametrize("id", IDS)
def test_an_odd_id_is_unknown(client: FlaskClient, id: str) -> None:
    for rule in client.application.url_map.iter_rules():
        if "<" not in rule.rule or rule.endpoint == "static":
            continue
        path = rule.rule.replace("<int:index>", "0" if ":" in id else "9" * 30)
        for name in ("id", "name", "delivery"):
            path = path.replace(f"<{name}>", id)
        for method in (rule.methods or set()) & {"GET", "POST", "DELETE"}:
            assert client.open(path, method=method).status_code in (404, 405, 308), (method, path)


@pytest.mark.parametrize("kind", ["jobs", "batches", "uploads", "videos"])
def test_an_id_leads_to_no_other_key(client: FlaskClient, store: JobStore, kind: str) -> None:
    """Redis has something of another type at these, which it would refuse to read as a record."""
    made: Any = client.post("/v1/batches", json={"jobs": [job()]}).json
    upload = client.post("/v1/uploads", data={"file": (io.BytesIO(file()), "x.png")})
    keys = [key.split(":", 2)[-1] for key in store._redis.keys(f"{store._prefix}:*:*")]
    odd = [key for key in keys if ":" in key]
    assert upload.status_code == 201 and f"{made['id']}:jobs" in odd
    for id in (*odd, *(f"{made['id']}:{word}" for word in ("jobs", "", ":"))):
        for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
            answer = client.open(f"/v1/{kind}/{id}{path}", method=method)
            assert answer.status_code in (404, 405), (method, id)
    assert client.get(f"/v1/batches/{made['id']}").status_code == 200


@pytest.mark.parametrize("head", ["form-data", 'form-data; filename="a"'])
@pytest.mark.parametrize("path", POSTS)
def test_a_part_without_a_name_is_refused(client: FlaskClient, path: str, head: str) -> None:
    data = f"--x\r\nContent-Disposition: {head}\r\n\r\n{{}}\r\n--x--\r\n"
    answer = client.post(path, data=data, content_type=FORM)
    assert answer.status_code == 422 and "no name" in answer.json["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/videos"])
def test_a_limit_of_many_digits_is_refused(client: FlaskClient, path: str) -> None:
    assert client.get(f"{path}?limit={'9' * 5000}").status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        *({**job(), "parallel": {name: 10**9}} for name in ("ulysses", "ring")),
        {**job(), "parallel": {"ulysses": HUGE, "ring": HUGE}},
        *(job(**{name: HUGE}) for name in ("n", "seed", "width", "num_inference_steps")),
        {**job(image="data:image/png;base64,", num_inference_steps=HUGE), "task": "image-to-image"},
        {**job(), "deadline_s": HUGE},
    ],
    ids=str,
)
def test_a_huge_number_is_refused_at_once(client: FlaskClient, body: Any) -> None:
    began = time.monotonic()
    assert client.post("/v1/jobs", json=body).status_code == 422
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("body", [{"n": "[" * 100_000}, {"fps": HUGE, "seconds": "9999"}])
@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/videos"])
def test_so_is_one_that_is_none(client: FlaskClient, path: str, body: Any) -> None:
    assert client.post(path, json={"prompt": "x", **body}).status_code == 422


@pytest.mark.parametrize(
    "matrix,status",
    [
        ({f"input.{n}": [1] for n in range(5000)}, 422),
        ({".".join("abcdefghi"): [1, 2]}, 422),
        ({"input.seed": list(range(1000))}, 413),
    ],
    ids=["wide", "deep", "many"],
)
def test_a_matrix_makes_no_more_than_it_may(client: FlaskClient, matrix: Any, status: int) -> None:
    """Each of its jobs is a copy: a body of megabytes would become gigabytes."""
    large = {**job(), "metadata": {str(n): "x" for n in range(20_000)}}
    asked = large if status == 413 else job()
    began = time.monotonic()
    answer = client.post("/v1/batches", json={"job": asked, "matrix": matrix})
    assert answer.status_code == status, answer.text[:200]
    assert ("too large" if status == 413 else "matrix has at most") in answer.json["detail"]
    assert time.monotonic() - began < 10
