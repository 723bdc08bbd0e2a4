"""What a file says of itself, from the rank that writes it to `fleet inspect`."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from PIL import Image

from cli.marks import read
from jobs.catalog import Catalog
from jobs.parse import parse_request
from jobs.request import Item, JobRequest, alone, items
from jobs.settings import Settings
from tests.conftest import until
from tests.fixtures.pictures import data_url, painted
from worker.rank import outputs
from worker.rank.marks import SOURCE, UNMARKED, Marks, marks

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
FLEET = str(Path(sys.executable).with_name("fleet"))
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
HARD = "é; a=b #x \\ \"quoted\" 'so'\n[chapter]\ttab\r\0 \u4e00 \U0001f600 </rdf:RDF>"
FORMATS = [("tiny-image", "png"), ("tiny-image", "webp"), ("tiny-video", "mp4")]
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def ask(catalog: Catalog, model: str, format: str, **input: Any) -> JobRequest:
    question = {"prompt": [HARD, "another"], "n": 2, "seed": 7, "guidance_scale": 4, **input}
    body = {"model": model, "input": question, "output": {"format": format}, "metadata": {"a": 1}}
    return parse_request(body, catalog)[0]


def write(request: JobRequest, folder: Path, said: Marks = UNMARKED, index: int = 0) -> Path:
    with contextlib.closing(outputs.File(request, index, folder, said)) as file:
        file.add(FRAMES)
        return Path(file.finish()["path"])


def inspect(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FLEET, "inspect", str(path)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def files(catalog: Catalog, tmp_path: Path) -> list[Path]:
    """A file of each format that says all."""
    said = []
    for model, format in FORMATS:
        request = ask(catalog, model, format)
        said.append(write(request, tmp_path, marks(Settings(), request, items(request)[1]), 1))
    return said


@pytest.mark.parametrize("model,format", FORMATS)
def test_a_file_gives_back_the_request_of_its_own_item(
    catalog: Catalog, tmp_path: Path, model: str, format: str
) -> None:
    request = ask(catalog, model, format)
    for item in items(request):
        said = marks(Settings(), request, item)
        done = inspect(write(request, tmp_path, said, item.index))
        assert done.returncode == 0, done.stderr
        assert done.stderr == f"digital source type: {SOURCE}\n"
        own = {"prompt": item.prompt, "seed": item.seed, "n": 1}
        assert json.loads(done.stdout)["input"]["width"] == 64, "defaults too"
        again, warnings = parse_request(json.loads(done.stdout), catalog)
        assert again == request.model_copy(
            update={"input": request.input.model_copy(update=own), "metadata": {}}
        )
        assert marks(Settings(), again, items(again)[0]) == said and not warnings


def test_pictures_are_left_away(catalog: Catalog) -> None:
    pictures = {"image": data_url(painted(mask=False)), "mask": data_url(painted(mask=True))}
    for model, task in (("tiny-fill", "inpaint"), ("tiny-moving-image", "image-to-video")):
        given = pictures if task == "inpaint" else {"image": pictures["image"]}
        body = {"model": model, "input": {"prompt": "x", "seed": 1, **given}}
        request, _ = parse_request(body, catalog)
        found = alone(request, items(request)[0])
        assert found["task"] == task and not {"image", "mask"} & set(found["input"])
        again, _ = parse_request({**found, "input": {**found["input"], **given}}, catalog)
        assert again == request


def test_other_programs_read_it_too(files: list[Path]) -> None:
    png, webp, mp4 = files
    asked = read(png)[0]
    assert asked is not None and asked == read(webp)[0].replace("webp", "png")  # type: ignore[union-attr]
    with Image.open(png) as picture:
        assert json.loads(picture.info["parameters"]) == json.loads(asked)
    for path in (png, webp):
        with Image.open(path) as picture:
            (told_by,) = ElementTree.fromstring(picture.info["xmp"]).iter(
                f"{{{IPTC}}}DigitalSourceType"
            )
            assert told_by.text == SOURCE
    command = [FFMPEG, "-loglevel", "error", "-i", str(mp4), "-f", "ffmetadata", "-"]
    told = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    tags = dict(re.findall(r"^(\w+)=(.*(?:(?<=\\)\n.*)*)$", told, re.MULTILINE))
    assert tags["digital_source_type"] == SOURCE
    assert json.loads(re.sub(r"\\(.)", r"\1", tags["comment"])) == json.loads(read(mp4)[0] or "")


@pytest.mark.parametrize("model,format", FORMATS)
def test_the_same_item_gives_the_same_bytes_wherever_it_is_made(
    catalog: Catalog, tmp_path: Path, model: str, format: str
) -> None:
    """In a job of many, or by itself; its pixels are those of a file that says nothing."""
    request = ask(catalog, model, format)
    third = items(request)[2]
    by_itself, _ = parse_request(alone(request, third), catalog)
    one = write(request, tmp_path / "a", marks(Settings(), request, third), index=2)
    two = write(by_itself, tmp_path / "b", marks(Settings(), by_itself, items(by_itself)[0]))
    assert one.read_bytes() == two.read_bytes()
    if format != "mp4":
        assert np.array_equal(np.asarray(Image.open(one)), FRAMES[0])


@pytest.mark.parametrize("model,format", FORMATS)
def test_what_is_not_to_be_said_is_not_in_the_file(
    catalog: Catalog, tmp_path: Path, model: str, format: str
) -> None:
    request = ask(catalog, model, format)
    item = items(request)[0]
    plain = write(request, tmp_path / "plain").read_bytes()
    for parameters, provenance in ((False, False), (True, False), (False, True)):
        settings = Settings(embed_parameters=parameters, embed_provenance=provenance)
        file = write(request, tmp_path, marks(settings, request, item))
        data = file.read_bytes()
        assert (b"guidance_scale" in data) is parameters and (b"iptc.org" in data) is provenance
        assert (data == plain) is not (parameters or provenance)
        done = inspect(file)
        assert done.returncode == (0 if parameters else 1)
        assert (SOURCE in done.stderr) is provenance
        if not parameters:
            assert "does not say which request made it." in done.stderr and not done.stdout


def test_a_request_of_any_length_reaches_a_video_and_no_command_line(
    catalog: Catalog, tmp_path: Path
) -> None:
    """A prompt of 500,000 letters; a command line's words have at most 131,071."""
    request = ask(catalog, "tiny-video", "mp4")
    said = marks(Settings(), request, Item(0, "secret " * 70_000, 1))
    before = set(psutil.Process().children())
    with contextlib.closing(outputs.File(request, 0, tmp_path, said)) as file:
        file.add(FRAMES)
        (encoder,) = set(psutil.Process().children()) - before
        until(lambda: "ffmpeg" in encoder.name())
        assert "secret" not in " ".join(encoder.cmdline())
        found = json.loads(read(Path(file.finish()["path"]))[0] or "")
    assert found["input"]["prompt"] == "secret " * 70_000


def test_a_video_whose_streams_were_copied_still_says_it(files: list[Path], tmp_path: Path) -> None:
    """Into another file by ffmpeg, which puts `moov` last and names the tag as most programs do."""
    copy = tmp_path / "copy.mp4"
    subprocess.run([FFMPEG, "-loglevel", "error", "-i", files[2], "-c", "copy", copy], check=True)
    assert b"mdta" not in copy.read_bytes()
    assert read(copy)[0] == read(files[2])[0] is not None


@pytest.mark.parametrize("boxes,found", [(9_000, True), (20_000, False)])
def test_whoever_hides_the_tags_behind_many_boxes_keeps_nobody_busy(
    files: list[Path], boxes: int, found: bool
) -> None:
    video = files[2]
    head, data = video.read_bytes()[:32], video.read_bytes()[32:]
    assert head.startswith(b"\0\0\0\x20ftyp") and data[4:8] == b"moov"
    video.write_bytes(head + b"\0\0\0\x08free" * boxes + data)
    assert (read(video)[0] is not None) is found


def test_a_damaged_file_is_a_sentence_or_still_says_it(files: list[Path]) -> None:
    """Cut anywhere, and with any of its first bytes another."""
    random = np.random.default_rng(1)

    def fine(file: Path) -> None:
        with contextlib.suppress(ValueError):
            read(file)

    for file in files:
        data = file.read_bytes()
        for length in random.integers(0, len(data), 100):
            file.write_bytes(data[:length])
            fine(file)
        for place in random.integers(0, min(len(data), 4000), 300):
            file.write_bytes(data[:place] + random.bytes(1) + data[place + 1 :])
            fine(file)
