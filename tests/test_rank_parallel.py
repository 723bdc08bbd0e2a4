"""Every plan of every pipeline draws what plain diffusers draws, on two and on four ranks."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SWITCHES = {2: 10, 4: 100}


@pytest.fixture(scope="module", params=[2, 4])
def lines(
    request: pytest.FixtureRequest, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    ranks: int = request.param
    script = ("-m", "tests.fixtures.every_plan", str(models_dir), str(ranks))
    done = subprocess.run(
        [sys.executable, *script, str(SWITCHES[ranks])],
        cwd=ROOT,
        env={
            **os.environ,
            "TMPDIR": tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()),
            "CUDA_VISIBLE_DEVICES": "",  # gloo, and ranks are forked after their imports
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# Bit-equal where the arithmetic is the same. Elsewhere it depends on the CPU: half of the rows, or
# one pass alone, can be another matrix product.
SAME = ("tiny-video", "tiny-video-2", "tiny-moving-image", "tiny-moving-image-2")


def test_latents_are_bit_equal_and_pictures_differ_by_rounding_alone(
    lines: list[dict[str, Any]],
) -> None:
    plans = [line for line in lines if "plan" in line]
    assert len({tuple(line["asked"]) for line in plans}) == 11
    assert {line["plan"]["ring"] for line in plans} >= {1, 2}
    assert {line["plan"]["shard"] for line in plans} == {True, False}
    assert {line["plan"]["spread_encoder"] for line in plans} == {True, False}
    for line in plans:
        alone = line["plan"]["cfg"] * line["plan"]["ulysses"] * line["plan"]["ring"] == 1
        same = line["asked"][0] in SAME and not line["plan"]["shard"]
        assert line["latents"] <= (0 if same or alone else 1e-5), line
        assert line["picture"] < 0.5 + 255e-4, line  # of 255: half a step, and 1e-4 of rounding


def test_switching_plans_changes_nothing(lines: list[dict[str, Any]]) -> None:
    assert lines[-1]["changed"] == 0 and lines[-1]["switches"] in SWITCHES.values()
