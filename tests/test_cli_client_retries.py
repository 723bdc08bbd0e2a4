"""What the Python client sends again, when, and what it never does; its peer is a real server."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.client import ApiError, Client
from tests.fixtures.answers import LOST, Answer, Peer, ok, problem, stream
from tests.fixtures.answers import peer as run_peer

AGAIN = problem(503, "broker_unavailable", True)
NEVER = problem(422, "invalid_request", False, X_Request_Id="req_1")
JOB: dict[str, Any] = {"id": "job_1", "seq": 0, "status": "queued", "progress": {"value": 0.0}}


@pytest.fixture
def peer() -> Iterator[Peer]:
    with run_peer() as peer:
        yield peer


@pytest.fixture
def client(peer: Peer) -> Iterator[Client]:
    client = Client(peer.url, "secret", patience_s=5)
    yield client
    client.close()


@pytest.mark.parametrize("first", [AGAIN, LOST, (502, {}, b""), (504, {}, b"<html>busy</html>")])
def test_what_may_be_asked_twice_is_asked_again(peer: Peer, client: Client, first: Answer) -> None:
    for ask in (
        lambda: client.job("job_1"),
        lambda: client.submit({"model": "x"}),
        lambda: client.cancel("job_1"),
        lambda: client.retry("job_1"),
        lambda: client.delete("job_1"),
    ):
        peer.answers, peer.asked = [first, ok(JOB)], []
        ask()
        assert len(peer.asked) == 2
        (method, path, headers, body), second = peer.asked
        assert second[0::3] == (method, body) and second[1] == path
        assert second[2].get("Idempotency-Key") == headers.get("Idempotency-Key")
        assert headers["Authorization"] == "Bearer secret"


def test_every_page_of_the_dead_is_read(peer: Peer, client: Client) -> None:
    pages = ({"data": [{"id": "a"}], "next": "7/a"}, {"data": [{"id": "b"}], "next": None})
    peer.answers = [ok(page) for page in pages]
    assert [job["id"] for job in client.dead()] == ["a", "b"]
    assert [path.rpartition("after=")[2] for _, path, _, _ in peer.asked] == ["", "7%2Fa"]


def test_an_upload_is_sent_again(peer: Peer, client: Client) -> None:
    """The picture of a first one that arrived, and was not answered, expires."""
    peer.answers = [LOST, AGAIN, ok({"id": "upl_1"})]
    assert client.upload(Path(__file__)) == "upl_1"
    assert len(peer.asked) == 3
    assert all(Path(__file__).read_bytes() in body for _, _, _, body in peer.asked)


@pytest.mark.parametrize(
    "answer",
    [
        NEVER,
        problem(503, "storage_unavailable", False),
        problem(504, "wait_timeout", True, x_should_retry="false"),
        (500, {}, b""),
        (503, {"x-should-retry": "false"}, b""),
        (404, {}, b"<html>"),
    ],
)
def test_what_would_fail_again_is_not_asked_again(
    peer: Peer, client: Client, answer: Answer
) -> None:
    peer.answers = [answer, ok(JOB)]
    with pytest.raises(ApiError):
        client.job("job_1")
    assert len(peer.asked) == 1


@pytest.mark.parametrize("first", [LOST, AGAIN, problem(429, "busy", True, Retry_After="0")])
def test_a_post_without_a_key_is_sent_once(peer: Peer, client: Client, first: Answer) -> None:
    peer.answers = [first, ok(JOB)]
    with pytest.raises(ApiError):
        client.call("POST", "/v1/batches", json={})
    assert len(peer.asked) == 1
    peer.answers = [first, ok(JOB)]
    client.call("POST", "/v1/batches", json={}, headers={"Idempotency-Key": "k"})
    assert len(peer.asked) == 3


def test_every_submit_has_a_key_of_its_own(peer: Peer, client: Client) -> None:
    peer.answers = [ok(JOB)]
    for key in (None, None, "mine"):
        client.submit({"model": "x"}, key)
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in peer.asked]
    assert len(set(keys)) == 3 and keys[2] == "mine" and len(keys[0]) >= 32


def test_it_waits_as_long_as_it_is_told_to(peer: Peer, client: Client) -> None:
    peer.answers = [problem(503, "broker_unavailable", True, Retry_After="1"), ok(JOB)]
    began = time.monotonic()
    assert client.job("job_1")["id"] == "job_1"
    assert 1 <= time.monotonic() - began < 10


def test_its_patience_ends(peer: Peer) -> None:
    client = Client(peer.url, patience_s=1)
    peer.answers = [AGAIN]
    began = time.monotonic()
    with pytest.raises(ApiError, match="It is broker_unavailable"):
        client.job("job_1")
    assert 0.2 < time.monotonic() - began < 10 and len(peer.asked) > 2
    peer.answers, peer.asked = [problem(429, "quota_exceeded", True, Retry_After="3000")], []
    with pytest.raises(ApiError, match="quota"):
        client.job("job_1")
    assert len(peer.asked) == 1, "what comes too late is not waited for"
    client.close()


def test_an_error_says_all_that_the_answer_said(peer: Peer, client: Client) -> None:
    peer.answers = [NEVER]
    with pytest.raises(ApiError) as caught:
        client.submit({})
    error = caught.value
    assert (error.status, error.code, error.detail) == (
        *(422, "invalid_request", "It is invalid_request."),
    )
    assert not error.retryable and error.request_id == "req_1"
    assert [fault["pointer"] for fault in error.problems] == ["/input/width"]


def test_whose_deletion_was_answered_into_the_void_has_deleted(peer: Peer, client: Client) -> None:
    gone = problem(404, "not_found", False)
    peer.answers = [LOST, gone]
    client.delete("job_1")
    with pytest.raises(ApiError, match="not_found"):
        client.delete("job_1")


def test_no_api_at_all_is_a_sentence(peer: Peer, client: Client) -> None:
    peer.answers = [(200, {}, b"<html>Log in</html>")]
    with pytest.raises(ApiError, match="is it the API of a fleet"):
        client.job("job_1")
    with pytest.raises(ApiError, match="does not answer") as caught:
        Client("nonsense").job("job_1")
    assert not caught.value.retryable


def test_a_broken_stream_is_taken_up_where_it_broke(peer: Peer, client: Client) -> None:
    running = {**JOB, "seq": 3, "status": "running"}
    step = {"id": "job_1", "seq": 5, "status": "running", "progress": {"value": 0.5}}
    half = b'event: progress\nid: 9\ndata: {"seq": 9'
    last = {**JOB, "seq": 8, "status": "succeeded"}
    cut: Answer = (200, {}, (stream(step) or (0, {}, b""))[2] + half)
    peer.answers = [stream(JOB, running), LOST, AGAIN, cut, stream(last)]
    heard = list(client.watch("job_1"))
    assert [job["seq"] for job in heard] == [0, 3, 5, 8]
    assert heard[2] == {**running, **step}, "a whole job each"
    known = [headers.get("Last-Event-ID") for _, _, headers, _ in peer.asked]
    assert known == [None, "3", "3", "3", "5"]


def test_a_stream_that_is_refused_for_good_ends_the_watch(peer: Peer, client: Client) -> None:
    peer.answers = [problem(404, "not_found", False)]
    with pytest.raises(ApiError, match="not_found"):
        client.wait("job_1")
    assert len(peer.asked) == 1


def test_other_bytes_than_the_records_leave_no_file(
    peer: Peer, client: Client, tmp_path: Path
) -> None:
    right = hashlib.sha256(b"picture").hexdigest()
    output = {"index": 0, "content_type": "image/png", "sha256": right}
    job: Any = {**JOB, "outputs": [output]}
    peer.answers = [(200, {}, b"pictune")]
    with pytest.raises(ApiError) as caught:
        client.download(job, tmp_path)
    assert caught.value.code == "checksum_mismatch" and not list(tmp_path.iterdir())
    short = {"Content-Length": "7"}  # the rest is lost, and fetched again
    peer.answers = [(200, short, b"pic"), AGAIN, (200, {}, b"picture")]
    (path,) = client.download(job, tmp_path / "new")
    assert path.read_bytes() == b"picture"
    assert [path] == list((tmp_path / "new").iterdir()) and path.name == "job_1-0.png"
    with pytest.raises(ApiError, match="File exists"):
        client.download(job, path)
