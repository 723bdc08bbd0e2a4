"""Frames become files, or an error; never half a file."""

import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from jobs.catalog import Catalog
from jobs.errors import RankDied, SpoolFailed
from jobs.parse import parse_request
from tests.conftest import CATALOG, ROOT, alive, until
from worker.rank import outputs


def test_a_video_that_cannot_be_encoded_is_an_error_not_a_file(
    tmp_path: Path, catalog: Catalog
) -> None:
    request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}}, catalog)
    odd = np.zeros((3, 15, 15, 3), np.uint8)  # H.264 in yuv420p takes even sides only
    file = outputs.File(request, 0, tmp_path)
    with contextlib.closing(file), pytest.raises(OSError, match="ffmpeg"):
        file.add(odd)
        file.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "model,size,small",
    [
        ("tiny-image", (512, 128), (256, 64)),
        ("tiny-image", (64, 320), (51, 256)),
        ("tiny-image", (96, 64), (96, 64)),
        ("tiny-video", (512, 256), (256, 128)),
    ],
)
def test_a_thumbnail_lies_beside_each_file(
    tmp_path: Path, catalog: Catalog, model: str, size: tuple[int, int], small: tuple[int, int]
) -> None:
    """Of a video: its first frame, which is red here; the others are blue."""
    red, blue = np.zeros((2, 1, *reversed(size), 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    request, _ = parse_request({"model": model, "input": {"prompt": "x"}}, catalog)
    with contextlib.closing(outputs.File(request, 3, tmp_path)) as file:
        file.add(red)
        if model == "tiny-video":
            file.add(np.concatenate([blue] * 4))
        about = file.finish()["thumbnail"]
    assert about["path"] == str(tmp_path / "3.thumb.webp")
    data = Path(about["path"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == about["sha256"]
    picture = Image.open(about["path"])
    assert (picture.format, picture.size) == ("WEBP", small)
    assert np.abs(np.asarray(picture, int) - [200, 0, 0]).max() < 10


@pytest.mark.parametrize("model", ["tiny-video", "tiny-image"])
def test_no_thumbnail_is_made_where_none_is_wanted(
    tmp_path: Path, catalog: Catalog, model: str
) -> None:
    body = {"model": model, "input": {"prompt": "x"}, "output": {"thumbnail": False}}
    request, _ = parse_request(body, catalog)
    with contextlib.closing(outputs.File(request, 0, tmp_path)) as file:
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        about = file.finish()
    assert about["thumbnail"] is None and list(tmp_path.iterdir()) == [Path(about["path"])]


def test_an_unfinished_video_leaves_no_process(tmp_path: Path, catalog: Catalog) -> None:
    request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}}, catalog)
    before = set(psutil.Process().children())
    with contextlib.closing(outputs.File(request, 0, tmp_path)) as file:
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        assert len(set(psutil.Process().children()) - before) == 1
    assert set(psutil.Process().children()) <= before


FULL = """
import contextlib, resource, sys
from pathlib import Path
import numpy as np
from jobs.catalog import load_catalog
from jobs.errors import SpoolFailed
from jobs.parse import parse_request
from worker.rank import outputs

catalog, model, folder = load_catalog(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
request, _ = parse_request({"model": model, "input": {"prompt": "x"}}, catalog)
noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
# A write past so many bytes fails, as it does on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
with contextlib.closing(outputs.File(request, 0, folder)) as file:
    try:
        file.add(noise)
        file.finish()
    except SpoolFailed as error:
        print("told:", error)
"""


@pytest.mark.parametrize("room", ["100", "0"])
@pytest.mark.parametrize("model", ["tiny-video", "tiny-image"])
def test_a_disk_that_takes_no_more_is_told_from_a_job_that_cannot_be_encoded(
    tmp_path: Path, model: str, room: str
) -> None:
    """In a process of its own: this one's words may go to a file."""
    command = [sys.executable, "-c", FULL, str(CATALOG), model, str(tmp_path), room]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("told: ") and not list(tmp_path.glob("*.mp4"))


def test_a_killed_encoder_is_a_fault_not_the_jobs(tmp_path: Path, catalog: Catalog) -> None:
    request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}}, catalog)
    before = set(psutil.Process().children())
    with contextlib.closing(outputs.File(request, 0, tmp_path)) as file:
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        (encoder,) = set(psutil.Process().children()) - before
        encoder.kill()
        with pytest.raises(RankDied, match="signal 9"):
            file.finish()


@pytest.mark.parametrize("model", ["tiny-video", "tiny-image"])
def test_a_spool_that_is_removed_meanwhile_is_no_fault_of_the_job(
    tmp_path: Path, catalog: Catalog, model: str
) -> None:
    request, _ = parse_request({"model": model, "input": {"prompt": "x"}}, catalog)
    file = outputs.File(request, 0, tmp_path / "spool")
    (tmp_path / "spool").rmdir()
    with contextlib.closing(file), pytest.raises(SpoolFailed):
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        file.finish()


LEFT = """
import sys, time
from pathlib import Path
import numpy as np, psutil
from jobs.catalog import load_catalog
from jobs.parse import parse_request
from worker.rank import outputs

request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}},
                           load_catalog(Path(sys.argv[1])))
file = outputs.File(request, 0, Path(sys.argv[2]))
file.add(np.zeros((3, 16, 16, 3), np.uint8))
(encoder,) = psutil.Process().children()
while "ffmpeg" not in encoder.name():
    time.sleep(0.01)
encoder.suspend()
print(encoder.pid, flush=True)
time.sleep(60)
"""


def test_a_frozen_encoder_does_not_outlive_its_rank(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEFT, str(CATALOG), str(tmp_path)]
    rank = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    with rank.stdout as lines:
        encoder = psutil.Process(int(lines.readline()))
    rank.kill()
    rank.wait()
    until(lambda: not alive([encoder]), 15)


def test_whoever_waits_for_a_frozen_encoder_heeds_a_cancel(
    tmp_path: Path, catalog: Catalog
) -> None:
    class Wished(Exception):
        pass

    def heed() -> None:
        raise Wished

    request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}}, catalog)
    before = set(psutil.Process().children())
    with contextlib.closing(outputs.File(request, 0, tmp_path)) as file:
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        (encoder,) = set(psutil.Process().children()) - before
        encoder.suspend()
        with pytest.raises(Wished):
            file.finish(heed)
    assert not alive([encoder])
