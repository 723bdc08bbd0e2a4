"""What may be asked, and what is said of what may not."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base

from jobs.catalog import load_catalog
from jobs.errors import InvalidRequest, ModelNotFound, RequestError, UnsupportedTask
from jobs.images import picture as seen
from jobs.parse import parse_request
from jobs.request import Item, items, stored_request
from tests.fixtures.pictures import data_url, painted

CATALOG = load_catalog(Path(__file__).parent / "fixtures" / "models.toml")


def video(**input: Any) -> dict[str, Any]:
    return {"model": "tiny-video", "input": {"prompt": "x", **input}}


def image(**input: Any) -> dict[str, Any]:
    return {"model": "tiny-image", "input": {"prompt": "x", **input}}


def sdxl(**input: Any) -> dict[str, Any]:
    return {"model": "tiny-sdxl", "input": {"prompt": "x", **input}}


PNG = data_url(painted(mask=False))


def scans(number: int) -> str:
    """A progressive JPEG whose last scan comes so often: small to send, long to decode."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + last * number + data[-2:]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def test_a_phones_picture_is_the_way_up_that_it_was_taken() -> None:
    lying = Image.new("RGB", (80, 64), "red")
    exif = lying.getexif()
    exif[Base.Orientation] = 6  # a quarter turn
    written = io.BytesIO()
    lying.save(written, "JPEG", exif=exif)
    data = written.getvalue()
    assert seen(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}").size == (64, 80)
    broken = data.replace(b"Exif\0\0II", b"Exif\0\0XX").replace(b"Exif\0\0MM", b"Exif\0\0XX")
    assert broken != data
    assert seen(f"data:image/jpeg;base64,{base64.b64encode(broken).decode()}").size == (80, 64)


def test_an_ordinary_jpeg_is_a_picture() -> None:
    parse_request(picture(image=scans(0)), CATALOG)


def picture(**input: Any) -> dict[str, Any]:
    return {**image(**input), "task": "image-to-image"}


REFUSED: list[tuple[Any, type[RequestError], str]] = [
    ([], InvalidRequest, ""),
    ("x", InvalidRequest, ""),
    (None, InvalidRequest, ""),
    ({}, InvalidRequest, "/model"),
    ({"model": ["a"]}, InvalidRequest, "/model"),
    ({"model": "tiny-vide"}, ModelNotFound, "/model"),
    ({"model": "../../etc/passwd"}, ModelNotFound, "/model"),
    ({**video(), "task": "text-to-image"}, UnsupportedTask, "/task"),
    ({**video(), "task": 7}, UnsupportedTask, "/task"),
    ({"model": "tiny-video"}, InvalidRequest, "/input"),
    ({"model": "tiny-video", "input": "x"}, InvalidRequest, "/input"),
    ({"model": "tiny-video", "input": {}}, InvalidRequest, "/input/prompt"),
    (video(prompt=""), InvalidRequest, "/input/prompt"),
    (video(prompt=[]), InvalidRequest, "/input/prompt"),
    (video(prompt=["a", ""]), InvalidRequest, "/input/prompt/1"),
    (video(prompt="x" * 20_000), InvalidRequest, "/input/prompt"),
    (video(negative_prompt="x" * 20_000), InvalidRequest, "/input/negative_prompt"),
    (video(n=0), InvalidRequest, "/input/n"),
    (video(n=65), InvalidRequest, "/input/n"),
    (video(n=True), InvalidRequest, "/input/n"),
    (video(n="2"), InvalidRequest, "/input/n"),
    (video(prompt=["a"] * 33, n=2), InvalidRequest, "/input/n"),
    (video(seed=-1), InvalidRequest, "/input/seed"),
    (video(seed=2**60), InvalidRequest, "/input/seed"),
    (video(width=65), InvalidRequest, "/input/width"),
    (video(width=0), InvalidRequest, "/input/width"),
    (video(height=272), InvalidRequest, "/input/height"),
    (image(width=256, height=1000), InvalidRequest, "/input/height"),
    (video(num_frames=8), InvalidRequest, "/input/num_frames"),
    (video(num_frames=53), InvalidRequest, "/input/num_frames"),
    (image(num_frames=9), InvalidRequest, "/input/num_frames"),
    ({**video(), "parallel": {"spread_encoder": True}}, InvalidRequest, "/parallel/spread_encoder"),
    (
        {**video(), "parallel": {"ulysses": 2, "shard": True, "spread_encoder": True}},
        InvalidRequest,
        "/parallel/spread_encoder",
    ),
    (video(num_inference_steps=0), InvalidRequest, "/input/num_inference_steps"),
    (video(num_inference_steps=501), InvalidRequest, "/input/num_inference_steps"),
    (video(guidance_scale=float("nan")), InvalidRequest, "/input/guidance_scale"),
    (video(promt="x"), InvalidRequest, "/input/promt"),
    (video(image="https://example.com/x.png"), InvalidRequest, "/input/image"),
    (video(loras=[{"name": "x"}]), InvalidRequest, "/input/loras/0/name"),
    (video(loras=[{"name": "../sharp"}]), InvalidRequest, "/input/loras/0/name"),
    (video(loras=["sharp"]), InvalidRequest, "/input/loras/0"),
    (video(loras=[{"name": "sharp"}] * 2), InvalidRequest, "/input/loras/1/name"),
    (video(loras=[{"name": "sharp"}] * 9), InvalidRequest, "/input/loras"),
    (video(loras=[{"name": "sharp", "scale": 11}]), InvalidRequest, "/input/loras/0/scale"),
    (video(loras=[{"name": "sharp", "path": "/"}]), InvalidRequest, "/input/loras/0/path"),
    (
        {**video(loras=[{"name": "sharp"}]), "parallel": {"data": 2, "spread_encoder": True}},
        InvalidRequest,
        "/parallel/spread_encoder",
    ),
    (video(extra={"a": 1}), InvalidRequest, "/input/extra/a"),
    (video(extra=[1]), InvalidRequest, "/input/extra"),
    (sdxl(extra={"guidance_rescale": 2}), InvalidRequest, "/input/extra/guidance_rescale"),
    (sdxl(extra={"guidance_rescale": "1"}), InvalidRequest, "/input/extra/guidance_rescale"),
    (sdxl(extra={"guidance_rescale": [1]}), InvalidRequest, "/input/extra/guidance_rescale"),
    ({**video(), "output": {"format": "png"}}, InvalidRequest, "/output/format"),
    ({**video(), "priority": "urgent"}, InvalidRequest, "/priority"),
    ({**video(), "deadline_s": 0}, InvalidRequest, "/deadline_s"),
    ({**video(), "metadata": {"a/b~c": [1]}}, InvalidRequest, "/metadata/a~1b~0c"),
    ({**video(), "webhook": "https://x"}, InvalidRequest, "/webhook"),
    ({**video(), "webhook": {"events": ["failed"]}}, InvalidRequest, "/webhook/url"),
    ({**video(), "webhook": {"url": "https://x", "event": 1}}, InvalidRequest, "/webhook/event"),
    ({**video(), "webhook": {"url": "https://x", "events": []}}, InvalidRequest, "/webhook/events"),
    (
        {**video(), "webhook": {"url": "https://x", "events": ["running"]}},
        InvalidRequest,
        "/webhook/events/0",
    ),
    ({**video(), "parallel": "best"}, InvalidRequest, "/parallel"),
    ({**video(), "parallel": {"ulises": 2}}, InvalidRequest, "/parallel/ulises"),
    ({**video(), "parallel": {"data": 0}}, InvalidRequest, "/parallel/data"),
    ({**video(), "parallel": {"ulysses": 3}}, InvalidRequest, "/parallel/ulysses"),
    ({**video(width=16, height=16, num_frames=1), "parallel": {"ulysses": 2}},
     InvalidRequest, "/parallel/ulysses"),
    (picture(image="https://example.org/a.png"), InvalidRequest, "/input/image"),
    (picture(image="data:image/png;base64,!"), InvalidRequest, "/input/image"),
    (picture(image="data:image/png;base64,aGVsbG8="), InvalidRequest, "/input/image"),
    (picture(image=PNG[:-40]), InvalidRequest, "/input/image"),
    (picture(image=PNG.replace("png", "jpeg")), InvalidRequest, "/input/image"),
    (picture(image=data_url(Image.new("1", (9000, 9000)))), InvalidRequest, "/input/image"),
    (picture(), InvalidRequest, "/input/image"),
    (picture(image=PNG, mask=PNG), InvalidRequest, "/input/mask"),
    (picture(image=scans(65)), InvalidRequest, "/input/image"),
    (picture(image=PNG, strength=0.1, num_inference_steps=4), InvalidRequest, "/input/strength"),
    (picture(image=PNG, strength=1.5), InvalidRequest, "/input/strength"),
    ({**video(), "parallel": {"ring": 7}}, InvalidRequest, "/parallel/ring"),
    ({**video(guidance_scale=1.0), "parallel": {"cfg": 2}}, InvalidRequest, "/parallel/cfg"),
    ({**image(), "parallel": {"cfg": 2}}, InvalidRequest, "/parallel/cfg"),
]  # fmt: skip


@pytest.mark.parametrize("body,kind,pointer", REFUSED)
def test_refused_with_a_pointer(body: Any, kind: type[RequestError], pointer: str) -> None:
    with pytest.raises(kind) as refused:
        parse_request(body, CATALOG)
    assert pointer in [problem.pointer for problem in refused.value.problems]
    assert all(problem.detail for problem in refused.value.problems)


@pytest.mark.parametrize(
    "body,pointer",
    [
        ({**video(), **{f"f{n}": 1 for n in range(101)}}, ""),
        (video(**{f"f{n}": 1 for n in range(101)}), "/input"),
        ({**video(), "metadata": {f"f{n}": {} for n in range(101)}}, "/metadata"),
        (video(loras=[{f"f{n}": 1 for n in range(101)}]), "/input/loras"),
        (video(prompt=[""] * 1001), "/input/prompt"),
    ],
)
def test_of_too_many_none_is_looked_at(body: Any, pointer: str) -> None:
    """Each would be an error of its own: a small body would take minutes."""
    with pytest.raises(InvalidRequest) as refused:
        parse_request(body, CATALOG)
    assert {problem.pointer for problem in refused.value.problems} == {pointer}
    assert len(refused.value.problems) <= 2


def test_a_misspelt_word_gets_the_right_one() -> None:
    for body in (video(promt="x"), {"model": "tiny-vidoe"}, {**video(), "priorty": "low"}):
        with pytest.raises(RequestError, match="Did you mean"):
            parse_request(body, CATALOG)


def test_a_models_own_fields_and_loras_are_filled_in() -> None:
    request, _ = parse_request(sdxl(extra={"guidance_rescale": None}), CATALOG)
    assert request.input.extra == {"guidance_rescale": 0.0} and request.input.loras == []
    asked = {"extra": {"guidance_rescale": 1}, "loras": [{"name": "style"}]}
    request, _ = parse_request(sdxl(**asked), CATALOG)
    assert request.input.extra == {"guidance_rescale": 1}
    assert request.input.loras[0].model_dump() == {"name": "style", "scale": 1.0}
    assert stored_request(request.model_dump_json()) == request
    for body in (sdxl(extra={"guidance_rescal": 1}), sdxl(loras=[{"name": "stile"}])):
        with pytest.raises(RequestError, match="Did you mean"):
            parse_request(body, CATALOG)


def test_silence_and_null_take_the_models_defaults() -> None:
    request, warnings = parse_request(video(width=None, negative_prompt=None, loras=[]), CATALOG)
    assert request.task == "text-to-video" and warnings == []
    assert (request.input.width, request.input.num_inference_steps) == (64, 4)
    assert 0 <= request.input.seed < 2**32


def test_each_task_takes_its_own_of_a_models_defaults() -> None:
    both = CATALOG["tiny-video"].model_copy(update={"tasks": ("text-to-video", "text-to-image")})
    body = {"model": both.id, "task": "text-to-image", "input": {"prompt": "x"}}
    request, _ = parse_request(body, {both.id: both})
    assert request.input.frames == 1
    wrong = both.model_copy(update={"defaults": {**both.defaults, "widht": 64}})
    with pytest.raises(InvalidRequest, match="Did you mean 'width'"):
        parse_request(body, {wrong.id: wrong})


def test_the_contracts_own_example_is_accepted() -> None:
    body = {
        "model": "tiny-video", "task": "text-to-video",
        "input": {"prompt": "a red circle moving left", "negative_prompt": None, "n": 1, "seed": 42,
                  "width": 128, "height": 128, "num_frames": 25, "fps": 12,
                  "num_inference_steps": 20, "guidance_scale": 5.0,
                  "image": None, "mask": None, "strength": None, "loras": [], "extra": {}},
        "output": {"format": "mp4", "thumbnail": True}, "parallel": "auto",
        "preview": {"every_n_steps": 5}, "priority": "normal", "deadline_s": 900,
        "metadata": {"user": "u1"}, "webhook": None,
    }  # fmt: skip
    request, warnings = parse_request(body, CATALOG)
    assert request.input.seed == 42
    assert request.preview is not None and request.preview.every_n_steps == 5 and not warnings


@pytest.mark.parametrize("body", [image(), video()])
def test_a_thumbnail_is_made_unless_it_is_not_wanted(body: dict[str, Any]) -> None:
    for output, made in (({}, True), ({"thumbnail": None}, True), ({"thumbnail": False}, False)):
        request, warnings = parse_request({**body, "output": output}, CATALOG)
        assert request.output.thumbnail is made and warnings == []
    with pytest.raises(InvalidRequest, match="/output/thumbnail"):
        parse_request({**body, "output": {"thumbnail": "small"}}, CATALOG)


def test_a_question_of_before_there_were_thumbnails_is_still_read() -> None:
    stored = json.loads(parse_request(image(), CATALOG)[0].model_dump_json())
    del stored["output"]["thumbnail"]
    assert stored_request(json.dumps(stored)).output.thumbnail is True


def test_what_is_stored_is_read_back_as_the_same_question() -> None:
    for body in (video(n=2), {**image(prompt=["a", "b"]), "parallel": {"data": 2}}):
        request, _ = parse_request(body, CATALOG)
        assert stored_request(request.model_dump_json()) == request


def test_every_prompt_gets_n_items_each_with_its_seed() -> None:
    request, _ = parse_request(image(prompt=["a", "b"], n=2, seed=7), CATALOG)
    assert items(request) == [Item(0, "a", 7), Item(1, "a", 8), Item(2, "b", 9), Item(3, "b", 10)]
