"""The OpenAI-compatible endpoints, by OpenAI's own client."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from flask.testing import FlaskClient
from openai import OpenAI
from PIL import Image

from jobs.catalog import Catalog
from tests.conftest import RunningFleet, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
PROMPT = "a lighthouse"


@pytest.fixture(scope="module")
def theirs(file_fleet: RunningFleet) -> Any:
    client = OpenAI(base_url=f"{file_fleet.url}/v1", api_key="none", max_retries=0)
    yield client
    client.close()


def picture(side: int = 64, mask: bool = False) -> tuple[str, bytes]:
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 4), np.uint8)
    pixels[..., 3] = 255
    if mask:
        pixels[: side // 2, :, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return "picture.png", file.getvalue()


def size(b64: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(b64))).size


def test_pictures_as_bytes_and_by_url(theirs: OpenAI) -> None:
    extra = {"seed": 7, "num_inference_steps": 2}
    asked: Any = {"model": "tiny-image", "prompt": PROMPT, "size": "64x96", "extra_body": extra}
    made = theirs.images.generate(**asked, n=2, quality="high", user="u")
    assert made.data and [size(each.b64_json or "") for each in made.data] == [(64, 96)] * 2
    linked = theirs.images.generate(**asked, n=1, response_format="url")
    assert linked.data and linked.data[0].url
    fetched = httpx.get(linked.data[0].url, follow_redirects=True).content
    assert fetched == base64.b64decode(made.data[0].b64_json or ""), "the same seed"


def test_who_names_no_model_gets_the_first_that_can(client: FlaskClient, catalog: Catalog) -> None:
    video: Any = client.post("/v1/videos", data={"prompt": PROMPT}).json
    assert video["model"] == next(s.id for s in catalog.values() if "text-to-video" in s.tasks)


def test_a_stream_of_pictures(theirs: OpenAI) -> None:
    asked: Any = {"model": "counts", "prompt": PROMPT, "n": 2}
    events = list(theirs.images.generate(**asked, stream=True))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert all(size(event.b64_json) == (32, 32) for event in events)
    asked["model"] = "broken"
    with pytest.raises(openai.APIError, match="broken"):
        list(theirs.images.generate(**asked, stream=True))


def test_edits_of_one_picture_of_several_and_of_what_a_mask_lays_bare(theirs: OpenAI) -> None:
    few: Any = {"prompt": PROMPT, "extra_body": {"num_inference_steps": 4, "seed": 1}}
    one = theirs.images.edit(model="tiny-image", image=picture(96), **few)
    assert one.data and [size(each.b64_json or "") for each in one.data] == [(96, 96)]
    several = theirs.images.edit(model="tiny-image", image=[picture(), picture(96)], **few)
    assert several.data
    assert [size(each.b64_json or "") for each in several.data] == [(64, 64), (96, 96)]
    masked = theirs.images.edit(
        model="tiny-fill", image=picture(), mask=picture(mask=True), size="64x64", **few
    )
    assert masked.data and len(masked.data) == 1


def test_what_a_mask_lays_bare_is_white_for_us(client: FlaskClient) -> None:
    form = {"model": "tiny-fill", "prompt": PROMPT, "stream": "true"}
    files = {"image": (io.BytesIO(picture()[1]), "i.png")}
    files["mask"] = (io.BytesIO(picture(mask=True)[1]), "m.png")
    asked = client.post("/v1/images/edits", data={**form, **files}, buffered=False)
    assert asked.status_code == 200
    (job,) = client.get("/v1/jobs").json["data"]  # type: ignore[index]
    store = client.application.extensions["fleet"].store
    _, _, text = store.request(store.get(job["id"]))["input"]["mask"].partition(",")
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"))
    assert (mask[:32] == 255).all() and (mask[32:] == 0).all()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    asked.close()


def test_a_video_from_its_making_to_its_end(theirs: OpenAI, tmp_path: Path) -> None:
    asked: Any = {"model": "tiny-video", "prompt": PROMPT, "size": "64x64", "seconds": "2"}
    video = theirs.videos.create_and_poll(**asked, extra_body={"seed": 3}, poll_interval_ms=100)
    assert video.status == "completed" and video.progress == 100 and video.error is None
    assert (video.size, video.seconds, video.prompt) == ("64x64", "2.125", PROMPT)  # 17 frames
    assert video.completed_at and video.completed_at >= video.created_at
    file = tmp_path / "video.mp4"
    theirs.videos.download_content(video.id).write_to_file(file)
    assert file.read_bytes()[4:8] == b"ftyp"
    small = theirs.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(small)).size == (64, 64)
    again = theirs.videos.remix(video.id, prompt="a mill")
    assert again.remixed_from_video_id == video.id and again.prompt == "a mill"
    listed = [each.id for each in theirs.videos.list(limit=1)][:2]
    assert listed == [again.id, video.id], "page after page, the latest first"
    until(lambda: theirs.videos.retrieve(again.id).status == "completed")
    gone = theirs.videos.delete(video.id)
    assert gone.deleted and gone.id == video.id
    with pytest.raises(openai.NotFoundError):
        theirs.videos.retrieve(video.id)


def test_a_video_that_begins_with_a_picture(theirs: OpenAI) -> None:
    video = theirs.videos.create_and_poll(
        **{"model": "tiny-moving-image", "prompt": PROMPT, "size": "64x64"},  # type: ignore[arg-type]
        input_reference=picture(),
        poll_interval_ms=100,
    )
    assert video.status == "completed"


def test_a_video_that_is_not_ready_and_one_that_never_will_be(theirs: OpenAI) -> None:
    slow: Any = {"num_inference_steps": 400}
    video = theirs.videos.create(model="tiny-video", prompt=PROMPT, extra_body=slow)
    assert video.status in ("queued", "in_progress")
    with pytest.raises(openai.NotFoundError) as error:
        theirs.videos.download_content(video.id)
    assert error.value.code == "video_not_ready"
    theirs.post(f"/jobs/{video.id}/cancel", cast_to=object)
    ended = theirs.videos.poll(video.id, poll_interval_ms=100)
    assert ended.status == "failed" and ended.error and ended.error.code == "canceled"


@pytest.mark.parametrize(
    "asked,kind,code,param",
    [
        ({"model": "no-such"}, openai.NotFoundError, "model_not_found", "model"),
        ({"size": "65x64"}, openai.UnprocessableEntityError, None, "size"),
        ({"size": "large"}, openai.UnprocessableEntityError, "invalid_request", "size"),
        ({"n": 0}, openai.UnprocessableEntityError, None, "n"),
        ({"n": 17}, openai.UnprocessableEntityError, None, "n"),
        ({"prompt": ""}, openai.UnprocessableEntityError, None, "prompt"),
        ({"output_format": "jpeg"}, openai.UnprocessableEntityError, None, "output_format"),
        ({"extra_body": {"sed": 1}}, openai.UnprocessableEntityError, None, "sed"),
        ({"model": "tiny-video"}, openai.BadRequestError, "unsupported_task", "model"),
        ({"model": "broken"}, openai.InternalServerError, "model_load_failed", None),
    ],
)
def test_errors_are_their_exceptions(
    theirs: OpenAI, asked: dict[str, Any], kind: Any, code: str | None, param: str | None
) -> None:
    question: Any = {"model": "tiny-image", "prompt": PROMPT, **asked}
    with pytest.raises(kind) as error:
        theirs.images.generate(**question)
    assert error.value.param == param
    assert error.value.code == (code or "invalid_request")


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"seconds": "0"}, "seconds"),
        ({"seconds": "600"}, "seconds"),
        ({"seed": "x"}, "seed"),
        ({"seed": "[" * 100_000}, "seed"),
        ({"seconds": "2", "fps": "1" + "0" * 400}, "fps"),
        ({"input_reference": (io.BytesIO(b"no picture"), "x.png")}, "input_reference"),
    ],
)
def test_errors_of_a_form(client: FlaskClient, fields: dict[str, Any], param: str) -> None:
    answer: Any = client.post("/v1/videos", data={"prompt": PROMPT, **fields})
    assert answer.status_code == 422 and answer.json["error"]["param"] == param


def test_a_request_that_the_client_sends_again_is_one_job(client: FlaskClient) -> None:
    def ask(count: int, **more: str) -> str:
        form = {"prompt": PROMPT, "model": "tiny-video", **more}
        headers = {"X-Stainless-Retry-Count": str(count)}
        answer: Any = client.post("/v1/videos", data=form, headers=headers)
        return str(answer.json["id"])

    first = ask(0)
    assert ask(1) == ask(2) == first
    second = ask(0)
    assert second != first and ask(1) == second, "asked anew, it is another one"
    client.delete(f"/v1/jobs/{second}")
    assert ask(1) not in (first, second), "what is gone is no answer"
    assert ask(1, seconds="1") not in (first, second)


def test_so_many_wait_at_once(client: FlaskClient) -> None:
    """Each holds a thread of the process; FLEET_MAX_STREAMS is 2 here."""
    body = {"model": "tiny-image", "prompt": PROMPT}
    open_ = [
        client.post("/v1/images/generations", json={**body, "stream": True}, buffered=False)
        for _ in range(2)
    ]
    refused = client.post("/v1/images/generations", json=body)
    assert refused.status_code == 429 and refused.json["code"] == "too_many_streams"  # type: ignore[index]
    for stream in reversed(open_):
        stream.close()
    late = client.post("/v1/images/generations", json=body)
    assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
