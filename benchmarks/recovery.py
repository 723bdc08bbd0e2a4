"""How long each fault costs: `python -m benchmarks.recovery --times 5`.

On the site of chaos.py (two workers of two ranks, a lease and a step watchdog of 5 s each), one
fault at a time in the middle of a job on both ranks of a worker; or a job that brings its fault
along, from its beginning. Prints, median and worst, the seconds until the record tells of it, until
the job denoises again, wherever, until the job is over, and until both workers are ready and the
API answers.
"""

import argparse
import contextlib
import json
import os
import tempfile
import threading
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
Row = tuple[float | None, ...]
STEADY_S = 2  # for so long all must be ready
FROZEN_S = 10
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


def freeze(process: psutil.Process) -> None:
    """For a while, longer than the lease."""
    process.suspend()
    threading.Timer(FROZEN_S, process.resume).start()


FAULTS: dict[str, tuple[Find, Callable[[psutil.Process], None]]] = {
    "nothing": (worker, lambda _process: None),
    "a rank is killed": (rank, psutil.Process.kill),
    "a rank is frozen": (rank, psutil.Process.suspend),
    "the agent is killed": (below("worker.agent"), psutil.Process.kill),
    "the worker is killed": (worker, psutil.Process.kill),
    "the worker is frozen 10 s": (worker, freeze),
    "the worker gets SIGQUIT": (worker, lambda process: process.send_signal(3)),
    "the API is killed": (part("gunicorn"), psutil.Process.kill),
    "Valkey is killed": (part("valkey-server"), psutil.Process.kill),
    "Valkey is frozen 10 s": (part("valkey-server"), freeze),
    "SeaweedFS is killed": (part("weed"), psutil.Process.kill),
    "SeaweedFS is frozen 10 s": (part("weed"), freeze),
}
# Model and prompt: see tests/fixtures/pipelines.
BROUGHT = {
    "it hangs in a collective": ("hangs", "x"),
    "it kills its rank, each time": ("dies", "always"),
    "out of memory, before they meet": ("oom", "early"),
    "out of memory, in a collective": ("oom", "x"),
    "a GPU reports an error": ("shorts", "x"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data:
        site = Site(Path(data))
        try:
            names = ("told", "at work again", "over", "whole")
            print(f"{'seconds: median, worst':<32}" + "".join(f"{name:>15}" for name in names))
            for name, (find, hit) in FAULTS.items():
                show(name, [once(site, find, hit) for _ in range(asked.times)])
            for name, (model, prompt) in BROUGHT.items():
                show(name, [brought(site, model, prompt) for _ in range(asked.times)])
        finally:
            site.down()


def once(site: Site, find: Find, hit: Callable[[psutil.Process], None]) -> Row:
    id = submit(site, "sleeps", ASKED)
    job = _until(lambda: (job := _job(site, id))["progress"]["value"] > 0.2 and job)
    victim = find(site, job)
    before = lives(site)
    hit(victim)
    # A worker that ends starts anew, and may not have said goodbye.
    ends = find is worker and hit in (psutil.Process.kill, FAULTS["the worker gets SIGQUIT"][1])
    row = follow(site, id, lambda here: not ends or here & before != before)
    assert site.client.job(id)["status"] == "succeeded"
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.resume()
    return row


def brought(site: Site, model: str, prompt: str) -> Row:
    for notes in site.models.glob("*/notes"):
        notes.unlink()
    id = submit(site, model, {"prompt": prompt})
    _until(lambda: _job(site, id)["status"] != "queued")
    return follow(site, id, lambda _here: True)


def submit(site: Site, model: str, asked: dict[str, Any]) -> str:
    body = {"model": model, "input": asked, "parallel": {"ulysses": 2}}
    return str(site.client.submit(body)["id"])


def follow(site: Site, id: str, back: Callable[[set[str]], bool]) -> Row:
    """back: whether the lives that say they are ready may be all there are."""
    began = time.monotonic()
    told = again = over = None
    unready = now = 0.0
    while over is None or now < unready + STEADY_S:
        now = time.monotonic() - began
        if (job := _try(site, id)) is None:
            unready = now
            continue
        if told is None and job["attempts"] and job["attempts"][0]["error"]:
            told = now
        if told is not None and again is None and job["attempt"] > 1 and job["progress"]["step"]:
            again = now
        if over is None and job["status"] in FINAL:
            over = now
        here = lives(site)
        if not site.ready() or len(here) < 2 or not back(here):
            unready = time.monotonic() - began
        time.sleep(0.02)
    return told, again, over, unready


def show(name: str, rows: list[Row]) -> None:
    cells = "".join(f"{cell:>15}" for cell in map(shown, zip(*rows, strict=True)))
    print(f"{name:<32}{cells}", flush=True)


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
