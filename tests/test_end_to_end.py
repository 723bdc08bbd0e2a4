"""Real prompts in by REST, real files out of object storage: a folder and S3."""

import hashlib
import io
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
import pytest
from PIL import Image

from tests.conftest import PYTHON, ROOT, RunningFleet, until
from tests.fixtures.pictures import data_url, painted

Notes = Callable[[str], list[str]]


@pytest.fixture(params=["file_fleet", "s3_fleet"])
def fleet(request: pytest.FixtureRequest) -> RunningFleet:
    return request.getfixturevalue(request.param)


def fetch(output: dict[str, Any]) -> bytes:
    """As a plain HTTP client does."""
    response = httpx.get(output["download_url"])
    assert response.status_code == 200
    assert hashlib.sha256(response.content).hexdigest() == output["sha256"]
    assert len(response.content) == output["bytes"]
    return response.content


def test_text_to_video(fleet: RunningFleet, tmp_path: Path) -> None:
    job = fleet.wait(fleet.submit("tiny-video", "a red circle", num_frames=9, seed=1))
    assert job["status"] == "succeeded" and job["error"] is None
    (output,) = job["outputs"]
    assert output["content_type"] == "video/mp4" and output["seed"] == 1
    file = tmp_path / "video.mp4"
    file.write_bytes(fetch(output))
    frames, _seconds = imageio_ffmpeg.count_frames_and_secs(str(file))
    assert frames == output["frames"] == 9
    assert job["plan"]["width"] == 2 and job["plan"]["reason"]
    metrics = job["metrics"]
    for name in ("queue_s", "text_encode_s", "denoise_s", "vae_decode_s", "encode_s"):
        assert metrics[name] >= 0
    assert metrics["total_s"] > 0 and set(metrics["peak_memory_bytes"]) == {"0", "1"}
    assert job["progress"]["value"] == 1 and job["attempt"] == 1


def test_text_to_image_with_three_prompts_on_two_ranks(fleet: RunningFleet) -> None:
    prompts = ["a red circle", "a blue square", "a green star"]
    job = fleet.wait(fleet.submit("tiny-image", prompts, seed=7, width=96))
    assert [o["index"] for o in job["outputs"]] == [0, 1, 2]
    assert [o["seed"] for o in job["outputs"]] == [7, 8, 9]
    pictures = [Image.open(io.BytesIO(fetch(o))) for o in job["outputs"]]
    assert {p.size for p in pictures} == {(96, 64)}
    assert len({o["sha256"] for o in job["outputs"]}) == 3


def test_the_same_question_gives_the_same_bytes_in_every_plan(fleet: RunningFleet) -> None:
    hashes = []
    for parallel in ({"data": 1}, {"data": 2}, {"ulysses": 2}, "auto"):
        id = fleet.submit("tiny-video", ["a", "b", "c"], seed=3, parallel=parallel)
        job = fleet.wait(id)
        assert job["status"] == "succeeded", job["error"]
        if parallel != "auto":
            assert {k: v for k, v in job["plan"].items() if k in parallel} == parallel
        hashes.append([o["sha256"] for o in job["outputs"]])
    assert len(hashes[0]) == 3 and all(h == hashes[0] for h in hashes)


def test_waiting_jobs_run_side_by_side_each_on_its_lane(file_fleet: RunningFleet) -> None:
    """Two ranks: while jobs wait each gets one; the wide one is not starved by the narrow ones."""
    fleet = file_fleet
    asked = {"num_inference_steps": 10}
    first = fleet.submit("sleeps", parallel={"ulysses": 2}, **asked)  # the queue fills behind it
    narrow = [fleet.submit("sleeps", **asked) for _ in range(4)]
    wide = fleet.submit("sleeps", parallel={"ulysses": 2}, **asked)
    late = [fleet.submit("sleeps", **asked) for _ in range(4)]
    jobs = {id: fleet.wait(id) for id in [first, *narrow, wide, *late]}
    assert {job["status"] for job in jobs.values()} == {"succeeded"}
    lanes = [jobs[id]["plan"]["lane"] for id in narrow]
    assert sorted(lanes) == [[0], [0], [1], [1]], [jobs[id]["plan"] for id in narrow]
    assert jobs[wide]["plan"]["lane"] == [0, 1]
    one, two = (jobs[id] for id in narrow[:2])
    assert one["started_at"] < two["finished_at"] and two["started_at"] < one["finished_at"]
    assert all(jobs[wide]["finished_at"] < jobs[id]["finished_at"] for id in late)


def test_what_is_asked_of_a_picture(fleet: RunningFleet) -> None:
    picture, mask = data_url(painted(mask=False)), data_url(painted(mask=True))
    id = fleet.submit("tiny-fill", "a red circle", image=picture, mask=mask, n=3, seed=1)
    job = fleet.wait(id)
    assert job["status"] == "succeeded", job["error"]
    assert len({o["sha256"] for o in job["outputs"]}) == 3
    assert len(job["input"]["image"]) < 100, "an answer does not repeat the bytes"
    id = fleet.submit("tiny-moving-image", "a red circle", image=picture)
    (output,) = fleet.wait(id)["outputs"]
    assert output["content_type"] == "video/mp4" and output["frames"] == 9


def test_outputs_by_the_api_itself(fleet: RunningFleet) -> None:
    id = fleet.submit("tiny-image", "x")
    job = fleet.wait(id)
    path = f"/v1/jobs/{id}/outputs/0"
    answer = fleet.http.get(path)
    if fleet.http.get(path).status_code == 302:
        answer = httpx.get(answer.headers["Location"])
    else:
        part = fleet.http.get(path, headers={"Range": "bytes=0-7"})
        assert part.status_code == 206 and part.content == b"\x89PNG\r\n\x1a\n"
        beyond = fleet.http.get(path, headers={"Range": "bytes=99999999-"})
        length = job["outputs"][0]["bytes"]
        assert beyond.status_code == 416 and beyond.headers["Content-Range"] == f"bytes */{length}"
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png"
    assert hashlib.sha256(answer.content).hexdigest() == job["outputs"][0]["sha256"]
    assert fleet.http.get(f"/v1/jobs/{id}/outputs/1").status_code == 404


@pytest.mark.parametrize("model", ["tiny-image", "tiny-video"])
def test_each_output_has_a_thumbnail(fleet: RunningFleet, model: str) -> None:
    job = fleet.wait(fleet.submit(model, ["a", "b"], width=96))
    for output in job["outputs"]:
        assert output["thumbnail_url"] == f"{output['url']}?variant=thumbnail"
        answer = httpx.get(output["thumbnail_url"])
        if answer.status_code == 302:
            answer = httpx.get(answer.headers["Location"])
        else:
            same = {"If-None-Match": answer.headers["ETag"]}
            assert httpx.get(output["thumbnail_url"], headers=same).status_code == 304
            assert httpx.get(output["url"], headers=same).status_code == 200, "another file"
        assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/webp"
        picture = Image.open(io.BytesIO(answer.content))
        assert (picture.format, picture.size) == ("WEBP", (96, 64))


def test_a_thumbnail_that_nobody_wanted_is_not_there(fleet: RunningFleet) -> None:
    id = fleet.submit("tiny-image", "x", output={"thumbnail": False})
    (output,) = fleet.wait(id)["outputs"]
    assert output["thumbnail_url"] is None
    answer = fleet.http.get(f"/v1/jobs/{id}/outputs/0?variant=thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["detail"] == f"Output 0 of job {id} has no thumbnail."
    answer = fleet.http.get(f"/v1/jobs/{id}/outputs/0?variant=large")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_running_job_is_canceled_within_two_steps(fleet: RunningFleet) -> None:
    id = fleet.submit("sleeps", num_inference_steps=500)
    fleet.wait_running(id, 0.01)
    assert fleet.http.get(f"/v1/jobs/{id}/outputs/0").status_code == 409
    asked = time.monotonic()
    answer = fleet.http.post(f"/v1/jobs/{id}/cancel").json()
    assert answer["status"] in ("canceling", "canceled")
    job = fleet.wait(id)
    assert job["status"] == "canceled" and time.monotonic() - asked < 15
    assert fleet.http.post(f"/v1/jobs/{id}/cancel").json()["status"] == "canceled"
    assert fleet.http.get(f"/v1/jobs/{id}/outputs/0").status_code == 404
    assert fleet.wait(fleet.submit("tiny-image"))["status"] == "succeeded", "the ranks are free"


def test_a_deadline_ends_a_running_job(fleet: RunningFleet) -> None:
    job = fleet.wait(fleet.submit("sleeps", num_inference_steps=500, deadline_s=1), 20)
    assert job["status"] == "failed" and job["error"]["code"] == "deadline_exceeded"


def test_a_model_that_cannot_be_loaded_fails_its_job_alone(fleet: RunningFleet) -> None:
    job = fleet.wait(fleet.submit("absent"))
    assert job["status"] == "failed" and job["error"]["code"] == "model_load_failed"
    assert "absent" in job["error"]["message"] and job["attempt"] == 1
    assert fleet.wait(fleet.submit("tiny-image"))["status"] == "succeeded"


def test_a_dead_rank_costs_an_attempt(fleet: RunningFleet, notes: Notes) -> None:
    job = fleet.wait(fleet.submit("dies", parallel={"ulysses": 2}))
    assert job["status"] == "succeeded" and job["attempt"] == 2
    assert job["attempts"][0]["error"]["code"] == "rank_died"
    assert job["attempts"][0]["plan"]["ulysses"] == 2


def test_a_job_that_kills_its_rank_each_time_is_given_up(fleet: RunningFleet, notes: Notes) -> None:
    job = fleet.wait(fleet.submit("dies", "always", parallel={"ulysses": 2}))
    assert job["status"] == "failed" and job["error"]["code"] == "rank_died"
    assert job["attempt"] == 3
    assert fleet.wait(fleet.submit("tiny-image"))["status"] == "succeeded"


def test_a_dead_job_is_listed_until_it_is_replayed(file_fleet: RunningFleet, notes: Notes) -> None:
    fleet = file_fleet

    def cli(*words: str) -> str:
        command = [str(Path(PYTHON).with_name("fleet")), "--url", fleet.url, "dead", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    id = fleet.submit("dies", "always", seed=7, parallel={"ulysses": 2})
    fleet.wait(id)
    assert f"{id}  rank_died: " in cli("list")
    assert json.loads(cli("show", id))["attempt"] == 3
    again = cli("replay", id).strip()
    job = fleet.client.job(again)
    assert job["retry_of"] == id and job["input"] == fleet.client.job(id)["input"]
    assert id not in cli("list")
    assert fleet.http.post(f"/v1/jobs/{again}/retry").status_code == 409, "it runs"
    fleet.client.call("POST", f"/v1/jobs/{again}/cancel")
    assert fleet.wait(again)["status"] == "canceled" and again not in cli("list")
    assert fleet.client.job(id)["status"] == "failed", "it stays as it ended"


def test_delete_removes_record_and_files(fleet: RunningFleet) -> None:
    id = fleet.submit("tiny-image")
    (output,) = fleet.wait(id)["outputs"]
    assert httpx.get(output["download_url"]).status_code == 200
    assert fleet.http.delete(f"/v1/jobs/{id}").status_code == 204
    assert fleet.http.get(f"/v1/jobs/{id}").status_code == 404
    until(lambda: httpx.get(output["download_url"]).status_code == 404)
    until(lambda: not list((fleet.data / "storage").glob(f"results/{id}*")))


def test_flower_shows_worker_progress_and_end(file_fleet: RunningFleet) -> None:
    flower = f"http://127.0.0.1:{file_fleet.flower_port}/api"
    id = file_fleet.submit("sleeps", num_inference_steps=60)
    states = set()

    def seen() -> Any:
        task = httpx.get(f"{flower}/tasks").json().get(id)
        states.update([task["state"]] if task else [])
        return task and task["state"] == "SUCCESS" and task

    task = until(seen)
    assert "PROGRESS" in states
    assert id in task["result"], "task id = job id in quiet times, and the result names the job"
    failed = file_fleet.submit("absent")
    until(lambda: httpx.get(f"{flower}/tasks").json().get(failed, {}).get("state") == "FAILURE")


def test_the_group_is_in_inspect_stats(file_fleet: RunningFleet) -> None:
    redis_url = next(line.split()[1] for line in file_fleet.lines if line.startswith("valkey"))
    answer = subprocess.run(
        [PYTHON, "-m", *("celery", "-A", "worker", "inspect", "stats", "--timeout", "5")],
        env={**file_fleet.environment, "FLEET_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert '"incarnation"' in answer.stdout and '"pid"' in answer.stdout, answer.stderr


def test_jobs_go_to_the_worker_that_has_their_model_in_memory(
    file_fleet: RunningFleet, tmp_path: Path
) -> None:
    fleet = file_fleet

    def loaded() -> dict[str, list[str]]:
        cards = fleet.client.call("GET", "/v1/workers")["data"]
        return {card["id"]: card["loaded"] for card in cards if card["ready"]}

    file_fleet.wait(file_fleet.submit("tiny-video"))
    (first,) = until(lambda: [name for name, models in loaded().items() if "tiny-video" in models])
    settings = {
        "FLEET_REDIS_URL": next(x.split()[1] for x in fleet.lines if x.startswith("valkey")),
        "FLEET_STORAGE_URL": (fleet.data / "storage").as_uri(),
        "FLEET_DATA_DIR": str(tmp_path),
        "FLEET_RANKS": "2",
    }
    second = subprocess.Popen(
        [PYTHON, "-m", *("celery", "-A", "worker", "worker", "-n", "second@%h")],
        env={**fleet.environment, **settings},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(loaded()) == 2)
        jobs = [fleet.wait(fleet.submit("tiny-video", num_inference_steps=2)) for _ in range(6)]
        assert {job["worker"] for job in jobs} == {first}, "chance alone: one in 64"
        assert fleet.client.call("GET", "/v1/models/tiny-video")["loaded"] == [first]
    finally:
        second.terminate()
        assert second.wait(60) == 0


def test_rank_logs_lie_in_the_data_folder(file_fleet: RunningFleet) -> None:
    id = file_fleet.submit("tiny-image", ["a", "b"])
    file_fleet.wait(id)
    for rank in (0, 1):
        assert f"job={id}" in (file_fleet.data / "logs" / f"rank-{rank}.log").read_text()
