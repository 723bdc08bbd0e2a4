"""Half an hour of jobs, then fifty starts of a group: no process grows, nothing is left.

`python -m benchmarks.soak --minutes 30 --restarts 50`. The site of chaos.py without its faults;
finished jobs are deleted, so that what grows is a leak. Prints each kind of process with the bytes
that are its own at a fifth of the time and at the end; exit code 1 where one grew by more than
GROWTH and SPARE_BYTES, or where a start left a process, a socket or a thread.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.site import ROOT, Site
from cli.client import FINAL
from jobs.settings import load_settings
from worker.group import Group

GROWTH, SPARE_BYTES = 0.1, 20e6
WAITING, PACE_S = 6, 1.0  # jobs that are not over; between two new ones
EVERY_S = 5
KINDS = {
    "celery -A worker": "worker",
    "worker.agent": "agent",
    "forkserver": "rank or forkserver",
    "gunicorn": "API",
    "valkey-server": "Valkey",
    "weed": "SeaweedFS",
}
THEIRS = ("Valkey", "SeaweedFS")  # shown, not judged
ASKED: tuple[dict[str, Any], ...] = (
    {"model": "tiny-video", "parallel": {"ulysses": 2}},
    {"model": "tiny-video", "parallel": {"cfg": 2}},
    {"model": "tiny-video"},
    {"model": "tiny-image", "parallel": {"ring": 2}},
    {"model": "tiny-image"},
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--restarts", type=int, default=50)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data:
        site = Site(Path(data))
        try:
            flat = soak(site, asked.minutes * 60)
        finally:
            left = site.down()
        clean = restarts(Path(data), asked.restarts)
    print(f"processes left by the fleet: {len(left)}")
    sys.exit(not flat or not clean or bool(left))


def soak(site: Site, seconds: float) -> bool:
    chance, began = random.Random(1), time.monotonic()
    waiting: set[str] = set()
    own: dict[psutil.Process, list[int]] = defaultdict(list)
    done, canceled, next_job, next_look = 0, 0, began, began + seconds / 5
    while (now := time.monotonic()) < began + seconds:
        if len(waiting) < WAITING and now > next_job:
            next_job = now + PACE_S
            question = {"prompt": f"a {done}", "num_inference_steps": chance.randint(2, 8)}
            job = site.client.call(
                "POST", "/v1/jobs", json={**chance.choice(ASKED), "input": question}
            )
            waiting.add(job["id"])
            if chance.random() < 0.1:
                site.client.call("POST", f"/v1/jobs/{job['id']}/cancel")
                canceled += 1
        for id in list(waiting):
            if site.client.job(id)["status"] in FINAL:
                site.client.call("DELETE", f"/v1/jobs/{id}")
                waiting.discard(id)
                done += 1
        if now > next_look:
            next_look = now + EVERY_S
            for process in site.processes(""):
                with contextlib.suppress(psutil.NoSuchProcess):  # ffmpeg comes and goes
                    own[process].append(process.memory_full_info().uss)
        time.sleep(0.1)
    print(f"{done} jobs in {seconds / 60:.0f} minutes, {canceled} of them canceled")
    grown = [grew(process, sizes) for process, sizes in own.items() if len(sizes) > 10]
    return not any(grown)


def grew(process: psutil.Process, sizes: list[int]) -> bool:
    words = " ".join(process.cmdline())
    kind = next((name for word, name in KINDS.items() if word in words), None)
    if kind is None:
        return False
    tenth = max(1, len(sizes) // 10)
    first, last = median(sizes[:tenth]), median(sizes[-tenth:])
    bad = kind not in THEIRS and last > first * (1 + GROWTH) + SPARE_BYTES
    print(f"  {kind:<20} {first / 1e6:8.1f} MB -> {last / 1e6:8.1f} MB{'  GROWS' if bad else ''}")
    return bad


def restarts(data: Path, times: int) -> bool:
    """Starts and stops a group in this process; every other time its agent is killed first."""
    environment = {
        "FLEET_MODELS": str(ROOT / "tests" / "fixtures" / "models.toml"),
        "FLEET_MODELS_DIR": str(data / "models"),
        "FLEET_DATA_DIR": str(data / "restarts"),
    }
    os.environ.update(environment)  # the ranks read it
    settings, me = load_settings(environment), psutil.Process()
    took, before = [], (0, 0)
    for number in range(times):
        began = time.monotonic()
        group = Group(2, settings)
        group.start()
        took.append(time.monotonic() - began)
        family = me.children(recursive=True)
        if number % 2:
            family[0].kill()
        group.stop()
        psutil.wait_procs(family, timeout=10)
        left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        now = me.num_fds(), threading.active_count()
        if number == 0:
            before = now
        if left or now != before:
            print(
                f"start {number}: {len(left)} processes left, files and threads {before} -> {now}"
            )
            return False
    print(f"{times} starts of a group: median {median(took):.1f} s, worst {max(took):.1f} s")
    return True


if __name__ == "__main__":
    main()
