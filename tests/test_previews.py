"""Pictures of a job that still runs."""

import io
from typing import Any

import openai
import pytest
from PIL import Image

from tests.conftest import RunningFleet, until


@pytest.mark.parametrize("model", ["tiny-image", "tiny-video"])
def test_previews_are_shown_and_change_nothing(file_fleet: RunningFleet, model: str) -> None:
    question = {"prompt": "x", "seed": 5, "num_inference_steps": 6, "width": 64, "height": 64}
    shas = set()
    for parallel in ({"data": 1}, {"ulysses": 2}):
        for preview in (None, {"every_n_steps": 2}):
            body = {"model": model, "input": question, "parallel": parallel, "preview": preview}
            job = file_fleet.wait(file_fleet.client.submit(body)["id"])
            shas.add(job["outputs"][0]["sha256"])
            shown = file_fleet.http.get(f"/v1/jobs/{job['id']}/preview")
            assert shown.status_code == (200 if preview else 204)
            if preview:
                assert Image.open(io.BytesIO(shown.content)).size == (64, 64)
                known = {"If-None-Match": shown.headers["ETag"]}
                again = file_fleet.http.get(f"/v1/jobs/{job['id']}/preview", headers=known)
                assert again.status_code == 304
    assert len(shas) == 1


def test_a_preview_looks_like_what_comes_out(file_fleet: RunningFleet) -> None:
    """The shipped model, which draws what it is asked: far from noise well before the end."""
    body: dict[str, Any] = {"model": "shapes", "task": "text-to-image", "preview": {}}
    body["input"] = {"prompt": "a large red circle on a blue background", "seed": 1}
    body["preview"] = {"every_n_steps": 13}
    job = file_fleet.wait(file_fleet.client.submit(body)["id"])
    shown = file_fleet.http.get(f"/v1/jobs/{job['id']}/preview").content
    colours = Image.open(io.BytesIO(shown)).convert("RGB").resize((8, 8)).getcolors(64) or []
    blue = sum(n for n, (r, g, b) in colours if b > 130 and r < 110)
    assert blue > 16, colours


def test_a_stream_has_partial_images(file_fleet: RunningFleet) -> None:
    theirs = openai.OpenAI(base_url=f"{file_fleet.url}/v1", api_key="none", max_retries=0)
    slow: Any = {"num_inference_steps": 90}
    with theirs:
        asked: Any = {"model": "tiny-image", "prompt": "x", "size": "64x64", "extra_body": slow}
        stream = theirs.images.generate(**asked, stream=True, partial_images=2)
        kinds = [event.type.split(".")[1] for event in stream]
    assert kinds[-1] == "completed" and 1 <= kinds.count("partial_image") <= 2


def test_a_preview_that_fails_costs_the_job_nothing(file_fleet: RunningFleet) -> None:
    """A pipeline that shows no latents."""
    body = {"model": "counts", "input": {"prompt": "x"}, "preview": {"every_n_steps": 1}}
    job = file_fleet.wait(file_fleet.client.submit(body)["id"])
    assert job["status"] == "succeeded"
    until(lambda: file_fleet.http.get(f"/v1/jobs/{job['id']}/preview").status_code == 204)
