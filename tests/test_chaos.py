"""A short storm on two workers: nothing lost, nothing twice, nothing left."""

import subprocess

from tests.conftest import PYTHON, ROOT


def test_a_short_storm_is_weathered() -> None:
    storm = ("--jobs", "16", "--faults", "12", "--every", "1", "2", "--seed", "7")
    done = subprocess.run(
        [PYTHON, "-m", "benchmarks.chaos", *storm],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "sound" in done.stdout and "processes left: 0" in done.stdout
