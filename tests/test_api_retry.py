"""A retry with changes, a dry run, and turns between tenants, through the API."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.record import JobState
from jobs.store import JobStore
from tests.conftest import RunningFleet, until
from tests.fixtures.jobs import ask, claim

JOB = {"model": "tiny-image", "input": {"prompt": "x", "seed": 3}, "metadata": {"a": 1}}


def test_a_retry_changes_what_it_names_alone(client: FlaskClient, store: JobStore) -> None:
    first: Any = client.post("/v1/jobs", json=JOB).json
    store.finish(claim(store), JobState.SUCCEEDED)
    url = f"/v1/jobs/{first['id']}/retry"
    again: Any = client.post(url, json={"input": {"prompt": "y", "n": 2}, "priority": "high"}).json
    assert again["retry_of"] == first["id"] and again["metadata"] == {"a": 1}
    assert again["input"] == {**first["input"], "prompt": "y", "n": 2}
    assert again["priority"] == "high" and again["output"] == first["output"]
    headers = {"Idempotency-Key": "k"}
    asked = [client.post(url, json={"input": {"n": n}}, headers=headers) for n in (2, 2, 3)]
    assert [answer.status_code for answer in asked] == [202, 202, 422]
    wrong: Any = client.post(url, json={"input": {"widht": 64}})
    assert wrong.status_code == 422 and wrong.json["errors"][0]["pointer"] == "/input/widht"
    assert client.post(url, json=[]).status_code == 422


def test_a_retry_that_is_sent_twice_is_one_whatever_became_of_the_first_job(
    client: FlaskClient, store: JobStore
) -> None:
    first: Any = client.post("/v1/jobs", json=JOB).json
    store.finish(claim(store), JobState.SUCCEEDED)
    asked: Any = {"json": {"input": {"n": 2}}, "headers": {"Idempotency-Key": "k"}}
    made: Any = client.post(f"/v1/jobs/{first['id']}/retry", **asked)
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 204
    again: Any = client.post(f"/v1/jobs/{first['id']}/retry", **asked)
    assert again.status_code == 202 and again.json["id"] == made.json["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    asked["headers"] = {"Idempotency-Key": "another"}
    assert client.post(f"/v1/jobs/{first['id']}/retry", **asked).status_code == 404


def test_the_dead_are_listed_by_pages(client: FlaskClient, store: JobStore) -> None:
    ids = [client.post("/v1/jobs", json=JOB).json["id"] for _ in range(3)]  # type: ignore[index]
    for _ in ids:
        store.finish(claim(store), JobState.FAILED, error={"code": "poisoned"}, dead=True)
    seen, after = [], ""
    while after is not None:
        page: Any = client.get(f"/v1/jobs/dead?limit=2&after={after}").json
        seen += [job["id"] for job in page["data"]]
        after = page["next"]
        assert page["has_more"] == (after is not None)
    assert seen == ids[::-1]
    client.delete(f"/v1/jobs/{ids[1]}")
    client.post(f"/v1/jobs/{ids[2]}/retry")
    left: Any = client.get("/v1/jobs/dead").json
    assert [job["id"] for job in left["data"]] == ids[:1]
    assert client.get("/v1/jobs/dead?order=asc").status_code == 422


def test_a_retry_by_another_task_or_model(client: FlaskClient, store: JobStore) -> None:
    def again(id: str, **changes: Any) -> Any:
        return client.post(f"/v1/jobs/{id}/retry", json=changes)

    body = {"model": "tiny-two-loaders", "input": {"prompt": "x", "seed": 3}}
    first: Any = client.post("/v1/jobs", json=body).json
    store.finish(claim(store), JobState.SUCCEEDED)
    still = again(first["id"], task="text-to-image").json
    assert still["input"]["seed"] == 3 and "num_frames" not in still["input"]
    assert still["output"]["format"] == "png" and first["output"]["format"] == "mp4"
    other = again(first["id"], model="tiny-video-2").json
    assert other["input"]["extra"] == {"guidance_scale_2": 5.0}
    store.finish(claim(store), JobState.SUCCEEDED)
    store.finish(claim(store), JobState.SUCCEEDED)
    back = again(other["id"], model="tiny-video")
    assert back.status_code == 202 and back.json["input"]["extra"] == {}
    for task, status in (("sing", 400), ([], 400), ({}, 400), (None, 202)):
        assert again(first["id"], task=task).status_code == status, task
    for model in ([], "nothing", 7):
        assert 400 <= again(first["id"], model=model).status_code < 500, model
    picture: Any = client.post("/v1/jobs", json={**JOB, "output": {"format": "webp"}}).json
    store.cancel(picture["id"])
    drawn = again(picture["id"], model="tiny-sdxl", input={"n": 2}).json
    assert drawn["input"]["guidance_scale"] == 5.0 and drawn["input"]["n"] == 2, "the new one's own"
    assert drawn["output"]["format"] == "webp" and drawn["input"]["seed"] == 3


def test_a_dry_run_makes_no_job(client: FlaskClient, store: JobStore) -> None:
    answer: Any = client.post("/v1/jobs?dry_run=true", json=JOB)
    assert answer.status_code == 200
    said = answer.json
    assert said["object"] == "dry_run" and said["input"]["width"] == 64
    assert said["fits"] is False and said["workers_able"] == 0 and said["position"] == 0
    assert client.get("/v1/jobs").json["data"] == []  # type: ignore[index]
    group = {"ready": True, "ranks": [], "restarts": 0}
    about = {"size": 2, "models": ["tiny-image"], "group": group, "idle": True}
    store.workers.announce("w", about)
    ready: Any = client.post("/v1/jobs?dry_run=true", json=JOB).json
    assert ready["fits"] is None, "nobody has seen its weights"
    store.workers.announce("w", {**about, "loaded": ["tiny-image"]})
    ready = client.post("/v1/jobs?dry_run=true", json=JOB).json
    assert ready["fits"] and ready["workers_ready"] == 1 and ready["estimated_wait_s"] == 0
    wide = {**JOB, "parallel": {"data": 4}}
    assert client.post("/v1/jobs?dry_run=true", json=wide).status_code == 422
    assert client.post("/v1/jobs?dry_run=maybe", json=JOB).status_code == 422
    done: Any = client.post("/v1/jobs?dry_run=false", json=JOB)
    assert done.status_code == 202 and done.json["status"] == "queued"


def test_a_dry_run_is_one_also_where_its_key_has_made_a_job(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k"}
    first: Any = client.post("/v1/jobs", json=JOB, headers=key).json
    dry: Any = client.post("/v1/jobs?dry_run=true", json=JOB, headers=key)
    assert dry.json["object"] == "dry_run" and "Idempotent-Replayed" not in dry.headers
    again: Any = client.post("/v1/jobs?dry_run=false", json=JOB, headers=key)
    assert again.json["id"] == first["id"] and again.headers["Idempotent-Replayed"] == "true"


def test_a_query_with_a_slip_in_it_makes_no_job(client: FlaskClient, store: JobStore) -> None:
    """`dryrun=true` would else be a job that is paid for."""
    id = client.post("/v1/jobs", json=JOB).json["id"]  # type: ignore[index]
    store.cancel(id)
    batch = {"jobs": [JOB]}
    for path, body in (
        ("/v1/jobs?dryrun=true", JOB),
        ("/v1/jobs?dry_run=true&wait=5", JOB),
        (f"/v1/jobs/{id}/retry?dry_run=true", {}),
        ("/v1/batches?dry_run=true", batch),
    ):
        answer: Any = client.post(path, json=body)
        assert answer.status_code == 422 and "Query parameter" in answer.json["detail"], path
    listed: Any = client.get("/v1/jobs").json
    assert [job["id"] for job in listed["data"]] == [id]


def test_every_status_that_an_answer_has_may_be_listed(
    client: FlaskClient, store: JobStore
) -> None:
    made: Any = client.post("/v1/jobs", json=JOB).json
    claim(store)
    job: Any = client.post(f"/v1/jobs/{made['id']}/cancel").json
    assert job["status"] == "canceling"
    for status, ids in (("canceling", [job["id"]]), ("running", []), ("queued", [])):
        listed: Any = client.get(f"/v1/jobs?status={status}").json
        assert [job["id"] for job in listed["data"]] == ids
    assert client.get("/v1/jobs?status=happy").status_code == 422


def test_a_dry_run_knows_how_long_the_last_ones_took(file_fleet: RunningFleet) -> None:
    body = {"model": "counts", "input": {"prompt": "x"}}
    file_fleet.wait(file_fleet.client.submit(body)["id"])
    said = file_fleet.client.call("POST", "/v1/jobs?dry_run=true", json=body)
    assert said["fits"] and 0 < (run_s := said["estimated_run_s"]) < 60
    body["input"] |= {"n": 2, "num_inference_steps": 20, "prompt": ["x", "y"]}
    more = file_fleet.client.call("POST", "/v1/jobs?dry_run=true", json=body)
    assert more["estimated_run_s"] == pytest.approx(8 * run_s, rel=0.05), "of 10 steps"


def test_many_jobs_of_one_tenant_hold_up_another_by_one(
    file_fleet: RunningFleet, catalog: Catalog
) -> None:
    url = next(line.split()[1] for line in file_fleet.lines if line.startswith("valkey"))
    store = JobStore(url, "fleet")
    both = {"parallel": {"ulysses": 2}, "model": "sleeps"}
    question = {"prompt": "x", "num_inference_steps": 20}
    wanted = ask(catalog, **both, input=question)
    many = [store.submit(wanted, asker=Asker("many"))[0] for _ in range(12)]
    until(lambda: (job := store.get(many[0], "many")) and job.state.final)
    one, _ = store.submit(wanted, asker=Asker("one"))
    job = until(lambda: (job := store.get(one, "one")) and job.state.final and job)
    others = [store.get(id, "many") for id in many]
    before = [o for o in others if o and o.started_at and job.created_at < o.started_at]
    between = [o for o in before if o.started_at and o.started_at < job.started_at]
    assert len(between) <= 1
    for id in many:
        store.cancel(id, "many")
