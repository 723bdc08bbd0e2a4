"""What the API says to good and to bad callers."""

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from api.sockets import give_up_on_the_stalled
from tests.conftest import RunningFleet, until


@pytest.fixture
def api(file_fleet: RunningFleet) -> httpx.Client:
    return file_fleet.http


def count(api: httpx.Client) -> int:
    """Jobs of the newest page, so that a test sees that none was made."""
    return len(api.get("/v1/jobs?limit=100").json()["data"])


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny-image", "input": {"prompt": "x"}, **fields}


def test_a_new_job_is_answered_with_its_place(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", json=body(metadata={"user": "u1"}))
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["X-Request-Id"].startswith("req_")
    assert job["status"] in ("queued", "running") and job["metadata"] == {"user": "u1"}
    assert job["input"]["width"] == 64 and isinstance(job["input"]["seed"], int)


def test_prefer_wait_answers_the_finished_job(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"})
    assert answer.status_code == 200 and answer.json()["status"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=30"
    slow = {"model": "sleeps", "input": {"prompt": "x", "num_inference_steps": 60}}
    answer = api.post("/v1/jobs", json=slow, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202 and answer.json()["status"] in ("queued", "running")
    url = f"/v1/jobs/{answer.json()['id']}"
    began = time.monotonic()
    done = api.get(url, headers={"Prefer": "wait=30"})
    while done.json()["status"] in ("queued", "running"):
        done = api.get(url, headers={"Prefer": "wait=30"})
    assert done.json()["status"] == "succeeded" and time.monotonic() - began < 20


def test_an_idempotency_key_makes_one_job(api: httpx.Client) -> None:
    headers = {"Idempotency-Key": f"key-{time.monotonic_ns()}"}
    first = api.post("/v1/jobs", json=body(), headers=headers)
    again = api.post("/v1/jobs", json=body(), headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    other = api.post("/v1/jobs", json=body(priority="low"), headers=headers)
    assert other.status_code == 422 and other.json()["code"] == "idempotency_key_reused"
    long = api.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k" * 256})
    assert long.status_code == 422


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status and problem["code"] == code
    assert problem["detail"] and problem["title"] and problem["request_id"]
    assert problem["error"]["code"] == code and problem["error"]["message"] == problem["detail"]
    assert "Traceback" not in answer.text and 'File "' not in answer.text
    return problem


@pytest.mark.parametrize(
    "request_,status,code,pointer",
    [
        ({"model": "no-such-model", "input": {"prompt": "x"}}, 404, "model_not_found", "/model"),
        (body(task="text-to-smell"), 400, "unsupported_task", "/task"),
        (body(input={"promt": "x"}), 422, "invalid_request", "/input/promt"),
        (body(input={"prompt": "x", "width": 63}), 422, "invalid_request", "/input/width"),
        (body(input={"prompt": "x" * 20_000}), 422, "invalid_request", "/input/prompt"),
        (body(input={"prompt": "x", "n": 0}), 422, "invalid_request", "/input/n"),
        (body(parallel={"data": 8}), 422, "invalid_request", "/parallel"),
        (body(parallel={"ulysses": 3}), 422, "invalid_request", "/parallel/ulysses"),
        ([1, 2], 422, "invalid_request", ""),
    ],
)
def test_a_bad_request_is_refused_and_nothing_is_enqueued(
    api: httpx.Client, request_: Any, status: int, code: str, pointer: str
) -> None:
    before = count(api)
    problem = check_problem(api.post("/v1/jobs", json=request_), status, code)
    assert problem["errors"][0]["pointer"] == pointer
    assert count(api) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"metadata": {"\\ud800": 1}}',
        b"{'a': 1}",
        b'{"a": NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": 1' + b"0" * 5000,
    ],
)
def test_malformed_json(api: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api.post("/v1/jobs", content=content, headers=headers)
    detail = check_problem(answer, 400, "malformed_json")["detail"]
    assert "sys." not in detail and "recursion" not in detail, "nothing of ours"


def test_another_media_type(api: httpx.Client) -> None:
    for headers in ({"Content-Type": "text/plain"}, {}):
        answer = api.post("/v1/jobs", content=json.dumps(body()).encode(), headers=headers)
        check_problem(answer, 415, "unsupported_media_type")


def test_a_body_of_100_mb(api: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api.post("/v1/jobs", content=b" " * 100_000_000, headers=headers)
    check_problem(answer, 413, "payload_too_large")
    chunks = (b" " * 1_000_000 for _ in range(25))  # no Content-Length
    check_problem(api.post("/v1/jobs", content=chunks, headers=headers), 413, "payload_too_large")


def test_an_unknown_job(api: httpx.Client) -> None:
    for call in (
        lambda: api.get("/v1/jobs/job_nothing"),
        lambda: api.post("/v1/jobs/job_nothing/cancel"),
        lambda: api.post("/v1/jobs/job_nothing/retry"),
        lambda: api.post("/v1/workers/nobody/drain"),
        lambda: api.delete("/v1/jobs/job_nothing"),
        lambda: api.get("/v1/jobs/job_nothing/outputs/0"),
        lambda: api.get("/v1/nothing"),
    ):
        check_problem(call(), 404, "not_found")
    check_problem(api.get("/v1/models/nothing"), 404, "model_not_found")
    wrong = api.put("/v1/jobs")
    check_problem(wrong, 405, "method_not_allowed")
    assert "POST" in wrong.headers["Allow"]


def test_a_list_is_of_a_task(api: httpx.Client) -> None:
    id = api.post("/v1/jobs", json={"model": "tiny-video", "input": {"prompt": "x"}}).json()["id"]
    listed = api.get("/v1/jobs", params={"task": "text-to-video"}).json()["data"]
    assert listed[0]["id"] == id and {job["task"] for job in listed} == {"text-to-video"}
    assert api.get("/v1/jobs", params={"task": "poetry"}).status_code == 422


def test_a_list_has_pages_and_refuses_what_it_does_not_know(api: httpx.Client) -> None:
    ids = [api.post("/v1/jobs", json=body()).json()["id"] for _ in range(3)]
    first = api.get("/v1/jobs?limit=2").json()
    assert first["object"] == "list" and first["has_more"] is True
    assert [job["id"] for job in first["data"]] == [ids[2], ids[1]]
    second = api.get("/v1/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert second["data"][0]["id"] == ids[0]
    wrong = ("limit=0", "limit=x", "status=happy", "order=up", "after=a'b", "colour=red")
    for query in (*wrong, "limit=2&limit=3"):
        check_problem(api.get(f"/v1/jobs?{query}"), 422, "invalid_request")


def test_models_say_what_may_be_asked(api: httpx.Client) -> None:
    def found() -> Any:
        return next(c for c in api.get("/v1/models").json()["data"] if c["id"] == "tiny-video")

    until(lambda: found()["workers_ready"] == 1)  # the ranks of a test before may start anew
    until(lambda: found() == api.get("/v1/models/tiny-video").json())  # and load what it had
    card = found()
    assert card["object"] == "model" and card["tasks"] == ["text-to-video"]
    assert card["defaults"]["text-to-video"]["num_frames"] == 9
    assert card["limits"]["max_frames"] == 49
    assert "num_frames" in card["input_schema"]["text-to-video"]["properties"]


def test_a_retry_asks_for_the_same(api: httpx.Client) -> None:
    id = api.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    keyed = [api.post(f"/v1/jobs/{id}/retry", headers={"Idempotency-Key": id}) for _ in range(2)]
    assert [answer.status_code for answer in keyed] == [202, 202]
    again = keyed[0].json()
    assert again["id"] == keyed[1].json()["id"] != id and again["retry_of"] == id
    assert again["input"] == api.get(f"/v1/jobs/{id}").json()["input"]


def test_an_unchanged_job_is_not_sent_again(api: httpx.Client) -> None:
    id = api.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    etag = api.get(f"/v1/jobs/{id}").headers["ETag"]
    assert api.get(f"/v1/jobs/{id}", headers={"If-None-Match": etag}).status_code == 304


def test_health(api: httpx.Client) -> None:
    assert api.get("/livez").json() == {"status": "ok"}
    ready = api.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"] == {"redis": "ok", "storage": "ok"}
    until(lambda: len(api.get("/readyz").json()["workers"]) == 1)
    assert api.get("/version").json()["version"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/uploads"])
def test_a_body_that_is_not_what_it_says_is_a_bad_request(
    file_fleet: RunningFleet, path: str
) -> None:
    kind = "application/json" if path == "/v1/jobs" else "multipart/form-data; boundary=x"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    for body in ("zz\r\n", "5\r\nabcdefgh\r\n"):
        with socket.create_connection(("127.0.0.1", file_fleet.port), 30) as connection:
            chunked = "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            connection.sendall((head + chunked + body).encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        assert answer.startswith("HTTP/1.1 400 ") and "The body is none" in answer


@pytest.mark.parametrize("length", [{"CONTENT_LENGTH": "9"}, {"wsgi.input_terminated": True}])
def test_a_body_that_stalls_is_given_up(client: FlaskClient, length: dict[str, Any]) -> None:
    class Stalled:
        def read(self, *_: int) -> bytes:
            raise BlockingIOError

    about = {"wsgi.input": Stalled(), **length}
    kind = "application/json"
    answer: Any = client.post("/v1/jobs", content_type=kind, environ_overrides=about)
    assert answer.status_code == 400 and answer.json["code"] == "bad_request"


def test_who_says_nothing_more_is_not_listened_to_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        give_up_on_the_stalled(0.2)
        try:
            with socket.create_connection(server.getsockname()) as there:
                accepted, _ = server.accept()
                with accepted:
                    there.sendall(b"GET /")
                    assert accepted.recv(9) == b"GET /"
                    with pytest.raises(BlockingIOError):
                        accepted.recv(9)
        finally:
            give_up_on_the_stalled(0)  # other tests' listeners


def test_a_client_that_sends_half_a_request_harms_nobody(file_fleet: RunningFleet) -> None:
    def half() -> None:
        with socket.create_connection(("127.0.0.1", file_fleet.port)) as connection:
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            time.sleep(1)

    threads = [threading.Thread(target=half) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert file_fleet.http.get("/livez").status_code == 200
    for thread in threads:
        thread.join()
