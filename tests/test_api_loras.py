"""LoRAs and fields of a model's own, as callers ask for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
from flask.testing import FlaskClient

from jobs.store import JobStore
from tests.conftest import RunningFleet

FLEET = str(Path(sys.executable).with_name("fleet"))


def test_a_model_says_which_it_has(client: FlaskClient) -> None:
    card = client.get("/v1/models/tiny-sdxl").json
    assert card and card["loras"] == {"style": ""}
    video = client.get("/v1/models/tiny-video").json
    assert video and video["loras"]["sharp"] == "One of two."
    schema = card["input_schema"]["text-to-image"]
    asked = {**card["defaults"]["text-to-image"], "prompt": "x", "seed": 1}
    worn: list[tuple[dict[str, Any], bool]] = [
        ({"loras": [{"name": "style", "scale": 0.5}], "extra": {"guidance_rescale": 0.5}}, True),
        ({"loras": [{"name": "other"}]}, False),
        ({"extra": {"guidance_rescale": 2}}, False),
        ({"extra": {"clip_skip": 2}}, False),
    ]
    for more, good in worn:
        body = {"model": "tiny-sdxl", "input": {**asked, **more}}
        assert (client.post("/v1/jobs", json=body).status_code == 202) is good
        assert jsonschema.Draft202012Validator(schema).is_valid(body["input"]) is good
    fill = client.get("/v1/models/tiny-fill").json
    assert fill
    none = fill["input_schema"]["inpaint"]["properties"]
    assert none["loras"]["maxItems"] == 0 and none["extra"]["additionalProperties"] is False


def test_forms_have_them_too(client: FlaskClient, store: JobStore) -> None:
    form = {
        **{"model": "tiny-video-2", "prompt": "x", "loras[][name]": "both"},
        **{"loras[][scale]": "0.5", "extra[guidance_scale_2]": "2.5"},
    }
    answer = client.post("/v1/videos", data=form, content_type="multipart/form-data")
    assert answer.json
    job = store.get(answer.json["id"])
    assert job and job.request["input"]["loras"] == [{"name": "both", "scale": 0.5}]
    assert job.request["input"]["extra"] == {"guidance_scale_2": 2.5}
    for wrong in ({"loras[][name]": "7"}, {"loras": "7"}, {"extra": "x"}, {"extra[a]": "1"}):
        answer = client.post("/v1/videos", data={**form, **wrong})
        assert answer.status_code == 422, wrong


def test_a_job_wears_them_and_its_file_says_so(file_fleet: RunningFleet, tmp_path: Path) -> None:
    out = tmp_path / "worn.mp4"
    words = ["submit", "x", "--model", "tiny-video", "--lora", "sharp=0.5", "--lora", "soft-1.0"]
    environment = {**file_fleet.environment, "FLEET_URL": file_fleet.url}
    subprocess.run([FLEET, *words, "-o", str(out)], env=environment, check=True, timeout=120)
    told = subprocess.run([FLEET, "inspect", str(out)], capture_output=True, check=True).stdout
    asked = json.loads(told)["input"]["loras"]
    assert asked == [{"name": "sharp", "scale": 0.5}, {"name": "soft-1.0", "scale": 1.0}]
    failed = file_fleet.wait(file_fleet.submit("tiny-video", loras=[{"name": "absent"}]))
    assert failed["error"]["code"] == "model_load_failed"
    assert "LoRA absent" in failed["error"]["message"]
