"""Frames become files, or an error; never half a file."""

import contextlib
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.catalog import Catalog
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
