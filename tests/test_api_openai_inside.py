"""OpenAI's own client, by WSGI with an API that has no worker: what is recorded, and what it is
told of it."""

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from openai import OpenAI

import api
from cli.main import fleet
from jobs.catalog import Catalog
from jobs.images import data_url
from jobs.store import JobStore, new_id
from tests.conftest import Server, frozen
from tests.fixtures.jobs import ask
from tests.fixtures.pictures import file

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
VIDEO: Any = {"model": "tiny-video", "prompt": "a lighthouse"}


@pytest.fixture
def theirs(client: FlaskClient) -> Iterator[OpenAI]:
    transport = httpx2.WSGITransport(client.application)
    with OpenAI(
        base_url="http://localhost/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    ) as opened:
        yield opened


def many(store: JobStore, catalog: Catalog, model: str, count: int) -> list[str]:
    wanted = ask(catalog, model=model)
    jobs: list[Any] = [(new_id(), wanted, []) for _ in range(count)]
    store.batches.submit(new_id("batch"), jobs)
    return sorted(id for id, _, _ in jobs)


def test_videos_are_listed_while_they_are_deleted(
    theirs: OpenAI, store: JobStore, catalog: Catalog
) -> None:
    """The cursor of the second page is a video that is gone by then."""
    ids = many(store, catalog, "tiny-video", 7)
    seen = []
    for video in theirs.videos.list(limit=3):
        seen.append(video.id)
        theirs.videos.delete(video.id)
        store.upkeep.purged(video.id)
    assert seen == ids[::-1] and not theirs.videos.list().data
    with pytest.raises(openai.UnprocessableEntityError):
        theirs.videos.list(after="video_1")


def test_a_video_is_listed_behind_any_number_of_other_jobs(
    theirs: OpenAI, store: JobStore, catalog: Catalog
) -> None:
    videos = many(store, catalog, "tiny-video", 3)
    pictures = many(store, catalog, "tiny-image", 1000) + many(store, catalog, "tiny-image", 1000)
    assert [video.id for video in theirs.videos.list(limit=2)] == videos[::-1]
    assert [video.id for video in theirs.videos.list(order="asc")] == videos
    assert not theirs.videos.list(after=videos[0]).data
    assert [v.id for v in theirs.videos.list(after=pictures[0])] == videos[::-1], (
        "any id is a place"
    )
    page = theirs.videos.list(limit=3)
    assert page.has_more is False and page.last_id == videos[0]


def test_a_form_has_values_within_values(theirs: OpenAI, store: JobStore) -> None:
    """Calls for videos are forms throughout."""
    extra = {
        "metadata": {"user": "u1", "number": 2},
        "parallel": {"data": 1, "ulysses": 2, "shard": True},
    }
    made = theirs.videos.create(**VIDEO, extra_body=extra)
    job = store.get(made.id)
    assert job and job.request["metadata"] == {"user": "u1", "number": "2"}
    plan = job.request["parallel"]
    assert (plan["data"], plan["ulysses"], plan["shard"]) == (1, 2, True)
    several: Any = {**VIDEO, "prompt": ["a mill", "a boat"]}
    both = store.get(theirs.videos.create(**several).id)
    assert both and both.request["input"]["prompt"] == ["a mill", "a boat"]
    with pytest.raises(openai.UnprocessableEntityError) as error:
        theirs.videos.create(**VIDEO, extra_body={"loras": [{"name": "a"}, {"name": "b"}]})
    assert error.value.param == "loras"


def test_what_is_wrong_is_said_in_their_words(theirs: OpenAI) -> None:
    for asked, said in (
        ({"seconds": "90"}, "seconds: 721 frames; at most"),
        ({"seconds": "x"}, "seconds: A number above 0."),
        ({"size": "60x64"}, "size: A width of 60"),
        ({"prompt": ""}, "prompt: String should have at least 1 character."),
        ({"extra_body": {"seconds": "1", "num_frames": 9}}, "num_frames: Send it or seconds"),
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=said) as error:
            theirs.videos.create(**{**VIDEO, **asked})
        assert "/input" not in str(error.value) and "valid list" not in str(error.value)


def test_a_remix_of_a_video_with_all_the_metadata_that_may_be(
    theirs: OpenAI, client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    for count, noted in ((49, True), (50, False)):
        body = {"model": "tiny-video", "input": {"prompt": "x"}}
        id = store.submit(ask(catalog, **body, metadata={str(n): n for n in range(count)}))[0]
        again = theirs.videos.remix(id, prompt="y")
        assert again.remixed_from_video_id == (id if noted else None)


def test_the_answer_comes_before_the_client_gives_up(theirs: OpenAI, store: JobStore) -> None:
    """Its read timeout of 2 s is for all the jobs of a request."""
    ask_again = theirs.with_options(max_retries=2, timeout=2)
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as error:
        ask_again.images.edit(model="tiny-image", prompt="x", image=[file()] * 3)
    assert error.value.status_code == 504 and error.value.code == "wait_timeout"
    assert time.monotonic() - began > 0.9
    assert len(store.lists.page()[0]) == 3, "and it does not ask again"


@pytest.mark.parametrize(
    "said,most_s,waited_s", [("0.4", 20, 0.2), ("soon", 1, 1), ("1e9", 1, 1), ("9" * 10, 1, 1)]
)
def test_so_long_an_answer_is_waited_for(
    store: JobStore, client: FlaskClient, said: str, most_s: int, waited_s: float
) -> None:
    parts = client.application.extensions["fleet"]
    settings = replace(parts.settings, openai_wait_s=most_s)
    client.application.extensions["fleet"] = replace(parts, settings=settings)
    body = {"model": "tiny-image", "prompt": "x"}
    began = time.monotonic()
    headers = {"X-Stainless-Read-Timeout": said}
    answer = client.post("/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 504
    assert waited_s <= time.monotonic() - began < waited_s + 10


def again(client: FlaskClient, count: int, key: str = "") -> str:
    """The id of the job of a request that is sent for the count-th time again."""
    headers = {"X-Stainless-Retry-Count": str(count), "Authorization": f"Bearer {key}"}
    answer: Any = client.post("/v1/videos", data=VIDEO, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json["id"])


def test_a_request_that_dies_halfway_is_one_job(client: FlaskClient, store: JobStore) -> None:
    """Of a process that dies as it records the job, the id alone is left, and perhaps the job."""
    first = again(client, 0)
    redis = store._redis
    (note,) = redis.keys(f"{store._prefix}:fold:*")
    redis.set(note, first)
    assert again(client, 1) == first and len(store.lists.page()[0]) == 1, "the job was recorded"
    redis.set(note, "job_" + "0" * 28)
    assert again(client, 1) == again(client, 2) == "job_" + "0" * 28, "it was not"
    assert len(store.lists.page()[0]) == 2


def test_a_queue_that_freezes_gets_one_job(theirs: OpenAI, store: JobStore, valkey: Server) -> None:
    """What it had received it does when it wakes up; the client has asked again by then."""
    answers: list[Any] = []

    def ask() -> None:
        answers.append(theirs.with_options(max_retries=3).videos.create(**VIDEO))

    asking = threading.Thread(target=ask)
    with frozen(psutil.Process(valkey.process.pid)):
        asking.start()
        time.sleep(3)
    asking.join(60)
    assert [job.id for job in store.lists.page()[0]] == [answers[0].id]


def test_what_another_key_asks_for_is_another_job(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["keys", "--file", str(tmp_path / "keys"), "create", "--tenant", "a"]
    keys = [CliRunner().invoke(fleet, words).output.strip() for _ in range(2)]
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(tmp_path / "keys"))
    client: FlaskClient = request.getfixturevalue("client")
    first = again(client, 0, keys[0])
    assert again(client, 1, keys[0]) == first != again(client, 1, keys[1])


def test_a_stream_is_never_silent_for_long(theirs: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are comments, which the client reads over, until a picture comes or no time is left."""
    monkeypatch.setenv("FLEET_OPENAI_WAIT_S", "8")
    body = {"model": "tiny-image", "prompt": "x", "stream": True}
    asking = api.create_app().test_client()
    began, at = time.monotonic(), []
    answer = asking.post("/v1/images/generations", json=body, buffered=False)
    for chunk in answer.iter_encoded():
        at.append(time.monotonic() - began)
        if chunk.startswith(b"event"):
            break
        assert chunk.startswith(b": ") and chunk.endswith(b"\n\n")
    assert b"wait_timeout" in chunk and len(at) == 3 and at[0] < at[1] < 8 <= at[2] < 12
    with pytest.raises(openai.APIError, match="goes on"):
        list(theirs.images.generate(**{**body, "partial_images": 1}))  # type: ignore[call-overload]


def test_a_word_that_is_not_theirs_is_a_slip(theirs: OpenAI) -> None:
    for wrong in ({"quality": "foo"}, {"background": "transparent"}, {"style": "blue"}):
        with pytest.raises(openai.UnprocessableEntityError) as error:
            theirs.images.generate(model="tiny-image", prompt="x", extra_body=wrong)
        assert error.value.param == next(iter(wrong))


@pytest.mark.parametrize(
    "asked",
    [
        {"background": "opaque", "complexity": "high", "moderation": "low", "quality": "high"},
        {"style": "vivid", "user": "u", "safety_identifier": "s", "output_compression": 50},
    ],
)
def test_what_their_models_alone_know_is_read_over(theirs: OpenAI, asked: dict[str, Any]) -> None:
    few: Any = {"model": "tiny-image", "prompt": "x", "timeout": 0.2}
    with pytest.raises(openai.InternalServerError, match="goes on"):
        theirs.images.generate(**few, **asked)
    with pytest.raises(openai.InternalServerError, match="goes on"):
        del asked[next(name for name in ("moderation", "style") if name in asked)]
        theirs.images.edit(**few, **asked, input_fidelity="high", image=file())


def test_what_asks_for_another_result_is_refused(theirs: OpenAI) -> None:
    """An animation, a drawing, an edit by a sketch: no picture without them is what was meant."""
    few: Any = {"model": "tiny-image", "prompt": "x"}
    for name, value in (("frame_count", 4), ("frame_duration_ms", 50), ("svg", {"model": "m"})):
        for ask_for, more in (
            (theirs.images.generate, {}),
            (theirs.images.edit, {"image": file()}),
        ):
            with pytest.raises(openai.UnprocessableEntityError) as error:
                ask_for(**few, **more, **{name: value})
            assert error.value.param == name
    with pytest.raises(openai.UnprocessableEntityError) as error:
        theirs.images.edit(**few, image=file(), markup=file())
    assert error.value.param == "markup"


def test_a_video_begins_with_a_picture_that_is_elsewhere(
    theirs: OpenAI, client: FlaskClient, store: JobStore
) -> None:
    moving: Any = {"model": "tiny-moving-image", "prompt": "x", "size": "64x64"}
    url = data_url(file())
    upload: Any = client.post("/v1/uploads", data={"file": (io.BytesIO(file()), "x.png")}).json
    references: list[Any] = [{"image_url": url}, {"file_id": upload["id"]}]
    for reference in references:
        video = theirs.videos.create(**moving, extra_body={"input_reference": reference})
        job = store.get(video.id)
        assert job and job.task == "image-to-video"
        assert store.request(job)["input"]["image"] == url
        assert video.expires_at is None
    for wrong in (
        {"image_url": "x"},
        {"file_id": "file-1"},
        {"job": "x"},
        {**references[0], "a": "b"},
    ):
        with pytest.raises((openai.UnprocessableEntityError, openai.NotFoundError)) as error:
            theirs.videos.create(**moving, extra_body={"input_reference": wrong})
        assert error.value.param == "input_reference"
