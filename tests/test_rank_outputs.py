"""Frames become files, or an error; never half a file."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.catalog import Catalog
from jobs.errors import RankDied, SpoolFailed
from jobs.parse import parse_request
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


def test_an_unfinished_video_leaves_no_process(tmp_path: Path, catalog: Catalog) -> None:
    request, _ = parse_request({"model": "tiny-video", "input": {"prompt": "x"}}, catalog)
    before = set(psutil.Process().children())
    with contextlib.closing(outputs.File(request, 0, tmp_path)) as file:
        file.add(np.zeros((3, 16, 16, 3), np.uint8))
        assert len(set(psutil.Process().children()) - before) == 1
    assert set(psutil.Process().children()) <= before


@pytest.fixture
def small_files() -> Iterator[None]:
    """A write past 100 bytes fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("model", ["tiny-video", "tiny-image"])
def test_a_disk_that_takes_no_more_is_told_from_a_job_that_cannot_be_encoded(
    tmp_path: Path, catalog: Catalog, model: str
) -> None:
    request, _ = parse_request({"model": model, "input": {"prompt": "x"}}, catalog)
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    file = outputs.File(request, 0, tmp_path)
    with contextlib.closing(file), pytest.raises(SpoolFailed):
        file.add(noise)
        file.finish()


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
