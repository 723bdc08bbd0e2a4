"""How long each fault costs: `python -m benchmarks.recovery --times 5`.

On the site of chaos.py (two workers of two ranks, a lease and a step watchdog of 5 s each), one
fault at a time in the middle of a job on both ranks of a worker. Prints, median and worst, the
seconds from the fault until the record tells of it, until the job denoises again, wherever, and
until both workers are ready and the API answers.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import redis

from benchmarks.site import Site
from cli.client import FINAL, ApiError

Job = dict[str, Any]
Find = Callable[[Site, Job], psutil.Process]
STEADY_S = 2  # for so long all must be ready
ASKED = {"prompt": "x", "num_inference_steps": 100}  # 5 s


def worker(site: Site, job: Job) -> psutil.Process:
    name = job["attempts"][-1]["worker"]
    return next(p for p in site.processes("-A worker worker") if name in p.cmdline())


def below(word: str) -> Find:
    """The last process below the job's worker whose command line has the word."""

    def find(site: Site, job: Job) -> psutil.Process:
        family = worker(site, job).children(recursive=True)
        return [p for p in family if word in " ".join(p.cmdline())][-1]

    return find


def rank(site: Site, job: Job) -> psutil.Process:
    mine = worker(site, job).pid
    return next(p for p in site.ranks() if mine in [parent.pid for parent in p.parents()])


def lives(site: Site) -> set[str]:
    """Of the workers that say they are ready; a worker that starts anew is another life."""
    try:
        with redis.Redis.from_url(site.redis_url, socket_timeout=2) as direct:
            texts = direct.mget(direct.keys("fleet:worker:*") or ["none"])
    except redis.RedisError:
        return set()
    return {
        card["start"] for text in texts if text and (card := json.loads(text))["group"]["ready"]
    }


def part(word: str) -> Find:
    """The server itself, which `fleet up`, or this site, starts again."""
    me = os.getpid()
    return lambda site, _job: next(p for p in site.processes(word) if p.ppid() == me)


FAULTS: dict[str, tuple[Find, Callable[[psutil.Process], None]]] = {
    "a rank is killed": (rank, psutil.Process.kill),
    "a rank is frozen": (rank, psutil.Process.suspend),
    "the agent is killed": (below("worker.agent"), psutil.Process.kill),
    "the worker is killed": (worker, psutil.Process.kill),
    "the worker gets SIGQUIT": (worker, lambda process: process.send_signal(3)),
    "the API is killed": (part("gunicorn"), psutil.Process.kill),
    "Valkey is killed": (part("valkey-server"), psutil.Process.kill),
    "SeaweedFS is killed": (part("weed"), psutil.Process.kill),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data:
        site = Site(Path(data))
        try:
            print(f"{'seconds: median, worst':<26}{'told':>14}{'at work again':>16}{'whole':>14}")
            for name, (find, hit) in FAULTS.items():
                rows = [once(site, find, hit) for _ in range(asked.times)]
                cells = "".join(f"{cell:>15}" for cell in map(shown, zip(*rows, strict=True)))
                print(f"{name:<25}{cells}", flush=True)
        finally:
            site.down()


def once(
    site: Site, find: Find, hit: Callable[[psutil.Process], None]
) -> tuple[float | None, float | None, float | None]:
    body = {"model": "sleeps", "input": ASKED, "parallel": {"ulysses": 2}}
    id = site.client.submit(body)["id"]
    job = _until(lambda: (job := _job(site, id))["progress"]["value"] > 0.2 and job)
    victim = find(site, job)
    before = lives(site)
    hit(victim)
    began = time.monotonic()
    told = again = None
    unready = now = 0.0
    while job["status"] not in FINAL or now < unready + STEADY_S:
        now = time.monotonic() - began
        if (seen := _try(site, id)) is None:
            unready = now
            continue
        job = seen
        if told is None and job["attempts"][0]["error"]:
            told = now
        if told is not None and again is None and job["attempt"] > 1 and job["progress"]["step"]:
            again = now
        here = lives(site)
        if not site.ready() or len(here) < 2 or (find is worker and here & before == before):
            unready = time.monotonic() - began
        time.sleep(0.02)
    assert job["status"] == "succeeded", job["error"]
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.resume()
    return told, again, unready


def shown(values: tuple[float | None, ...]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):6.1f} {max(known):6.1f}" if known else "-"


def _job(site: Site, id: str) -> Job:
    return dict(_until(lambda: _try(site, id)))


def _try(site: Site, id: str) -> Job | None:
    try:
        return site.client.job(id)
    except ApiError:
        return None


def _until(check: Callable[[], Any]) -> Any:
    while not (answer := check()):
        time.sleep(0.02)
    return answer


if __name__ == "__main__":
    main()
