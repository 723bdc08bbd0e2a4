"""Many jobs at once: all are accepted or none."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from jobs.record import JobState
from jobs.store import JobStore
from tests.conftest import RunningFleet, until
from tests.fixtures.jobs import claim

JOB: dict[str, Any] = {"model": "tiny-image", "input": {"prompt": "x"}}


def listed(client: FlaskClient) -> int:
    return len(client.get("/v1/jobs?limit=100").json["data"])  # type: ignore[index]


def post(client: FlaskClient, body: Any, **headers: str) -> Any:
    data = json.dumps(body)  # in the caller's order, which Flask's own client would sort
    return client.post("/v1/batches", data=data, content_type="application/json", headers=headers)


def test_paths_of_a_matrix_do_not_lie_within_one_another(client: FlaskClient) -> None:
    matrix = {"input.seed": [1, 2], "input": [{"prompt": "q"}]}
    answer = post(client, {"job": JOB, "matrix": matrix})
    assert answer.status_code == 422 and "input.seed lies within" in answer.json["detail"]


def test_a_matrix_of_too_many_is_told_how_many(client: FlaskClient) -> None:
    matrix = {"input.seed": list(range(100)), "input.n": list(range(1, 101))}
    answer = post(client, {"job": JOB, "matrix": matrix})
    assert answer.status_code == 422 and "10000 jobs; a batch" in answer.json["detail"]


def test_a_matrix_is_every_combination(client: FlaskClient, store: JobStore) -> None:
    matrix = {"input.seed": [1, 2, 3], "input.prompt": ["a", "b"], "priority": ["low"]}
    answer = post(client, {"job": JOB, "matrix": matrix})
    assert answer.status_code == 202
    batch = answer.json
    assert batch["total"] == 6 and batch["counts"] == {"queued": 6} and batch["status"] == "running"
    assert answer.headers["Location"] == f"/v1/batches/{batch['id']}"
    jobs = [client.get(f"/v1/jobs/{id}").json for id in batch["jobs"]]
    asked = [(job["input"]["seed"], job["input"]["prompt"]) for job in jobs if job]
    assert asked == [(seed, text) for seed in (1, 2, 3) for text in ("a", "b")]
    assert all(job["batch_id"] == batch["id"] and job["priority"] == "low" for job in jobs if job)
    assert claim(store).id == batch["jobs"][0], "in their order"


def test_one_bad_job_and_none_is_accepted(client: FlaskClient) -> None:
    bad = {"model": "tiny-image", "input": {"prompt": "x", "width": -1, "sede": 3}}
    answer = post(client, {"jobs": [JOB, bad, {"model": "nothing"}]})
    assert answer.status_code == 422
    pointers = {problem["pointer"] for problem in answer.json["errors"]}
    assert pointers == {"/jobs/1/input/width", "/jobs/1/input/sede", "/jobs/2/model"}
    assert listed(client) == 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"jobs": []},
        {"jobs": "x"},
        {"jobs": [JOB] * 1001},
        {"jobs": [JOB], "job": JOB},
        {"job": JOB},
        {"job": JOB, "matrix": {}},
        {"job": JOB, "matrix": {"input.seed": []}},
        {"job": JOB, "matrix": {"input.seed": 3}},
        {"job": JOB, "matrix": {"model.x": [1]}},
        {"job": JOB, "matrix": {"input.seed": list(range(40)), "priority": ["low"] * 40}},
        {"job": 3, "matrix": {"input.seed": [1]}},
    ],
    ids=range(13),
)
def test_what_is_no_batch_is_refused(client: FlaskClient, body: Any) -> None:
    answer = post(client, body)
    assert answer.status_code == 422 and answer.json["code"] == "invalid_request"
    assert listed(client) == 0


def test_a_job_that_is_nested_deeply_is_refused(client: FlaskClient) -> None:
    deep: Any = {}
    for _ in range(900):
        deep = {"a": deep}
    answer = post(client, {"job": {"model": "tiny-image", "input": deep}, "matrix": {"n": [1]}})
    assert answer.status_code == 422, answer.json


@pytest.mark.parametrize(
    "matrix,pointer",
    [
        ({"model": ["tiny-image", "nope"]}, "/matrix/model/1"),
        ({"input.width": [64], "input.sed": [1]}, "/matrix/input.sed/0"),
        ({"input.width": [64, -1], "priority": ["low", "high"]}, "/matrix/input.width/1"),
        ({"metadata": [{"a": "x"}, {"a": []}]}, "/matrix/metadata/1/a"),
        ({"input.negative_prompt": [1]}, "/matrix/input.negative_prompt/0"),
        ({"a~/b": [1]}, "/matrix/a~0~1b/0"),
        ({"input.seed": [1]}, "/job/input/hight"),
    ],
)
def test_a_problem_is_where_the_caller_has_written_it(
    client: FlaskClient, matrix: Any, pointer: str
) -> None:
    wrong = {"hight": 1} if pointer.startswith("/job/") else {}
    asked = {**JOB, "input": {**JOB["input"], **wrong}}
    answer = post(client, {"job": asked, "matrix": matrix})
    assert answer.status_code in (404, 422)
    assert {problem["pointer"] for problem in answer.json["errors"]} == {pointer}


def test_problems_enough_and_no_further_job_is_looked_at(client: FlaskClient) -> None:
    answer = post(client, {"job": {}, "matrix": {"input.seed": list(range(1000))}})
    assert answer.status_code == 422
    assert {problem["pointer"] for problem in answer.json["errors"]} == {"/job/model"}
    answer = post(client, {"jobs": [{"model": "tiny-image", "input": {"n": 0}}] * 100})
    assert len(answer.json["errors"]) == 20


def test_a_job_that_is_deleted_is_not_in_its_batch(client: FlaskClient) -> None:
    batch = post(client, {"jobs": [JOB, JOB]}).json
    gone, stays = batch["jobs"]
    assert client.delete(f"/v1/jobs/{gone}").status_code == 204
    now: Any = client.get(f"/v1/batches/{batch['id']}").json
    assert now["jobs"] == [stays] and now["counts"] == {"queued": 1} and now["total"] == 2


def test_a_batch_that_is_sent_twice_is_one(client: FlaskClient) -> None:
    first = post(client, {"jobs": [JOB, JOB]}, **{"Idempotency-Key": "k"})
    again = post(client, {"jobs": [JOB, JOB]}, **{"Idempotency-Key": "k"})
    assert again.json["id"] == first.json["id"] and listed(client) == 2
    assert again.headers["Idempotent-Replayed"] == "true"
    other = post(client, {"jobs": [JOB]}, **{"Idempotency-Key": "k"})
    assert other.status_code == 422 and other.json["code"] == "idempotency_key_reused"


def test_no_room_for_all_is_no_room_for_any(client: FlaskClient) -> None:
    client.application.extensions["fleet"].store._limits = {"queued": 3, "queued_of_tenant": 3}
    assert post(client, {"jobs": [JOB] * 2}).status_code == 202
    answer = post(client, {"jobs": [JOB] * 2})
    assert answer.status_code == 429 and answer.json["code"] == "queue_full"
    assert listed(client) == 2
    assert post(client, {"jobs": [JOB]}).status_code == 202


def test_pages_of_a_batch_and_its_cancel_and_end(client: FlaskClient, store: JobStore) -> None:
    batch = post(client, {"jobs": [JOB] * 60}).json
    client.post("/v1/jobs", json=JOB)
    seen: list[str] = []
    url = f"/v1/jobs?batch_id={batch['id']}&order=asc&limit=25"
    page: Any = client.get(url).json
    seen += [job["id"] for job in page["data"]]
    while page["has_more"]:
        page = client.get(f"{url}&after={page['next']}").json
        seen += [job["id"] for job in page["data"]]
    assert seen == batch["jobs"], "each once, in their order"
    mine = claim(store)
    store.finish(mine, JobState.SUCCEEDED)
    answer: Any = client.post(f"/v1/batches/{batch['id']}/cancel").json
    assert answer["counts"] == {"succeeded": 1, "canceled": 59} and answer["status"] == "finished"
    (done,) = client.get(f"/v1/jobs?batch_id={batch['id']}&status=succeeded").json["data"]
    assert done["id"] == mine.id
    for id in batch["jobs"]:
        store.delete(id)
        store.upkeep.purged(id)
    assert client.get(f"/v1/batches/{batch['id']}").status_code == 404
    assert client.post("/v1/batches/nothing/cancel").status_code == 404


def test_a_batch_runs(file_fleet: RunningFleet) -> None:
    body = {"job": JOB, "matrix": {"input.seed": [1, 2, 3]}}
    id = file_fleet.client.call("POST", "/v1/batches", json=body)["id"]
    url = f"/v1/batches/{id}"
    done = until(lambda: (b := file_fleet.client.call("GET", url))["status"] == "finished" and b)
    assert done["counts"] == {"succeeded": 3}
