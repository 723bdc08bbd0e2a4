"""The command line, as a person uses it."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.body import put
from cli.main import fleet as commands
from cli.servers import free_port
from tests.conftest import ROOT, RunningFleet, alive, descendants, until

FLEET = str(Path(sys.executable).with_name("fleet"))


def run(fleet: RunningFleet, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLEET, *words],
        env={**os.environ, "FLEET_URL": fleet.url},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_submit_shows_progress_and_leaves_the_files(
    file_fleet: RunningFleet, tmp_path: Path
) -> None:
    words = ["submit", "a red circle", "--model", "tiny-image", "--seed", "4", "-n", "2"]
    done = run(file_fleet, *words, "--set", "width=96", "--set", "parallel.data=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stdout and "seed 5" in done.stdout
    files = sorted(tmp_path.glob("job_*.png"))
    assert len(files) == 2 and files[0].read_bytes().startswith(b"\x89PNG")
    one = tmp_path / "one.mp4"
    done = run(file_fleet, "submit", "x", "-o", str(one))
    assert done.returncode == 0 and one.stat().st_size > 1000, done.stderr


@pytest.mark.parametrize("model", ["tiny-image", "tiny-video"])
def test_what_a_file_was_made_from_makes_the_same_file_again(
    file_fleet: RunningFleet, tmp_path: Path, model: str
) -> None:
    words = ["submit", "a red circle", 'a "blue" é;=#\nsquare', "--model", model, "-n", "2"]
    done = run(file_fleet, *words, "--set", "guidance_scale=4", "-o", str(tmp_path / "files"))
    assert done.returncode == 0, done.stderr
    for file in sorted((tmp_path / "files").iterdir())[1:3]:
        told = run(file_fleet, "inspect", str(file))
        assert told.returncode == 0 and "trainedAlgorithmicMedia" in told.stderr, told.stderr
        job = file_fleet.wait(file_fleet.client.submit(json.loads(told.stdout))["id"])
        (output,) = job["outputs"]
        assert output["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_watch_status_and_cancel(file_fleet: RunningFleet) -> None:
    words = ["submit", "x", "--model", "sleeps", "--set", "num_inference_steps=500", "--no-wait"]
    id = run(file_fleet, *words).stdout.strip()
    assert id in run(file_fleet, "status").stdout
    assert json.loads(run(file_fleet, "status", id).stdout)["id"] == id
    assert run(file_fleet, "cancel", id).stdout.strip() in ("canceling", "canceled")
    watched = run(file_fleet, "watch", id)
    assert watched.returncode == 1 and "canceled" in watched.stderr


def test_doctor_says_what_works(file_fleet: RunningFleet) -> None:
    told = run(file_fleet, "doctor")
    assert told.returncode == 0 and "FAIL" not in told.stdout
    for word in ("api", "redis: ok", "storage: ok", "workers: fleet-", "model tiny-video: 1"):
        assert word in told.stdout


@pytest.mark.parametrize(
    "words,code,said",
    [
        (["submit", "x", "--model", "nothing"], 2, "model_not_found"),
        (["submit", "x", "--set", "width=63"], 2, "invalid_request: /input/width"),
        (["submit", "x", "--set", "width"], 2, "write KEY=VALUE"),
        (["submit", "x", "--lora", "sharp=much"], 2, "write NAME=SCALE"),
        (["submit", "x", "--lora", "sharpe"], 2, "Did you mean 'sharp'"),
        (["submit", "x", "--task", "text-to-smell"], 2, "no model does"),
        (["submit"], 2, "Missing argument"),
        (["submit", "x", "-o", "/nowhere/a.png"], 2, "there is no folder"),
        (["up", "--data", "/proc/nope"], 1, "--data /proc/nope"),
        (["up", "--data", "/etc/passwd"], 1, "--data /etc/passwd"),
        (["up", "--port", "99999"], 2, "99999"),
        (["status", "job_nothing"], 2, "not_found"),
        (["inspect", "/etc/passwd"], 1, "/etc/passwd is no PNG, WebP or MP4."),
        (["cancel", "job_nothing"], 2, "not_found"),
        (["submit", "x", "--model", "absent"], 1, "model_load_failed"),
    ],
)
def test_what_goes_wrong_is_one_line(
    file_fleet: RunningFleet, words: list[str], code: int, said: str
) -> None:
    done = run(file_fleet, *words)
    assert done.returncode == code and said in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_there(file_fleet: RunningFleet) -> None:
    words = [FLEET, "--url", "http://127.0.0.1:1"]
    for command in (["status"], ["submit", "x"]):
        done = subprocess.run([*words, *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "does not answer" in done.stderr
    done = subprocess.run([*words, "doctor"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "FAIL api" in done.stdout


def test_a_wrong_setting_ends_fleet_up_with_a_sentence(models_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [FLEET, "up", "--data", str(tmp_path), "--port", str(free_port()), "--no-flower"],
        env={**os.environ, "FLEET_MODELS_DIR": str(models_dir), "FLEET_LEASE_S": "abc"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "FLEET_LEASE_S='abc' is no number." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_fleet_in_the_same_folder_is_refused(file_fleet: RunningFleet) -> None:
    done = run(file_fleet, "up", "--data", str(file_fleet.data))
    assert done.returncode == 1 and "already up" in done.stderr


def test_a_taken_port_is_one_sentence_and_leaves_nothing(
    file_fleet: RunningFleet, tmp_path: Path
) -> None:
    done = run(file_fleet, "up", "--data", str(tmp_path), "--port", str(file_fleet.port))
    assert done.returncode == 1 and f"port {file_fleet.port} is taken" in done.stderr
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not left


@pytest.fixture
def own_fleet(models_dir: Path, tmp_path: Path) -> Iterator[RunningFleet]:
    fleet = RunningFleet(tmp_path, models_dir)
    yield fleet
    if fleet.process.poll() is None:
        fleet.stop()


def test_ctrl_c_in_mid_job_stops_everything_and_the_job_goes_on_at_the_next_start(
    own_fleet: RunningFleet, models_dir: Path
) -> None:
    id = own_fleet.submit("sleeps", num_inference_steps=100, n=3)
    own_fleet.submit("tiny-image")
    own_fleet.wait_running(id)
    family = descendants(own_fleet.process.pid)
    assert len(family) >= 8
    began = time.monotonic()
    assert own_fleet.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 30
    assert not alive(family)
    again = RunningFleet(
        own_fleet.data, models_dir, "--no-flower", FLEET_LEASE_S="3", FLEET_REAP_S="0.5"
    )
    try:
        jobs = again.client.call("GET", "/v1/jobs")["data"]
        assert len(jobs) == 2, "the records outlive the servers"
        assert all(again.wait(job["id"])["status"] == "succeeded" for job in jobs)
        attempts = again.client.job(id)["attempts"]
        assert [(a["error"] or {}).get("code") for a in attempts] == ["interrupted", None]
    finally:
        again.stop()


def test_kill_nine_of_fleet_up_leaves_nothing(own_fleet: RunningFleet) -> None:
    id = own_fleet.submit("sleeps", num_inference_steps=100)
    own_fleet.wait_running(id)
    family = descendants(own_fleet.process.pid)
    own_fleet.stop(signal.SIGKILL)
    until(lambda: not alive(family), 60)


def test_the_demo_says_where_its_files_are_and_what_each_stage_took(tmp_path: Path) -> None:
    done = subprocess.run(
        [FLEET, "demo", "--data", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    paths = [Path(line.split()[0]) for line in done.stdout.splitlines() if line.startswith("/")]
    assert [path.suffixes for path in paths] == [[".mp4"], [".strip", ".png"], [".png"], [".png"]]
    with Image.open(paths[1]) as strip:
        assert strip.size == (7 * 128, 128)
    assert "denoise" in done.stdout and "vae_decode" in done.stdout


@pytest.mark.parametrize("after_s", [0.3, 2, 5, 8])
def test_ctrl_c_at_any_moment_of_the_start_leaves_nothing(
    models_dir: Path, tmp_path: Path, after_s: float
) -> None:
    environment = {**os.environ, "FLEET_MODELS_DIR": str(models_dir)}
    starting = subprocess.Popen(
        [FLEET, "demo", "--data", str(tmp_path)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_s)
    family = descendants(starting.pid)
    try:
        for _ in range(10):  # Python may lose one while it imports
            starting.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                starting.wait(15)
                break
    finally:
        starting.kill()
        starting.wait()
    until(lambda: not alive(family), 60)


def test_keys_say_what_they_take_without_a_file(tmp_path: Path) -> None:
    asked = CliRunner(env={"FLEET_API_KEYS_FILE": ""})
    told = asked.invoke(commands, ["keys", "create", "--help"])
    assert told.exit_code == 0 and "--active-jobs" in told.output
    for words in (["create", "--tenant", "a"], ["list"], ["revoke", "key_1"]):
        refused = asked.invoke(commands, ["keys", *words])
        assert refused.exit_code == 2 and "--file" in refused.output


def test_a_setting_is_of_the_input_unless_it_is_beside_it() -> None:
    said: dict[str, Any] = {"input": {}}
    for setting in ("seed=1", "input.n=2", "parallel.data=2", "extra.a=x", "priority=low"):
        put(said, setting)
    assert said == {
        "input": {"seed": 1, "n": 2, "extra": {"a": "x"}},
        "parallel": {"data": 2},
        "priority": "low",
    }
