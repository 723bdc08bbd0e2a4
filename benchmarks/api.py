"""What the API takes: `python -m benchmarks.api --requests 300 --rounds 15`.

POST /v1/jobs beside a Flask view that only publishes a Celery message (bare_view.py): two gunicorns
as `fleet up` starts one, one embedded Valkey with appendfsync always, rounds in turn, the callers
in a process of their own (api_load.py). No worker: what is recorded and hinted stays, and is
removed between rounds. Then /livez while 200 streams are open, a tenth of them on running jobs.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import redis

from cli import servers
from cli.client import Client
from cli.servers import Part
from cli.up import Supervisor
from jobs.store import JobStore

BARE = "benchmarks.bare_view:create_app()"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--requests", type=int, default=300, help="of each round and side")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--connections", type=int, default=16)
    options.add_argument("--streams", type=int, default=200)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data, site(Path(data)) as (valkey, api, bare):
        enqueue(asked, valkey, {"POST /v1/jobs": api, "bare view": bare})
        if asked.streams:
            livez(asked.streams, valkey, api)


@contextlib.contextmanager
def site(data: Path) -> Iterator[tuple[Part, Part, Part]]:
    environment = {**os.environ, "FLEET_DATA_DIR": str(data)}
    environment |= {"FLEET_MAX_QUEUED": "1000000", "FLEET_MAX_QUEUED_PER_TENANT": "1000000"}
    supervisor = Supervisor(environment, data / "logs")
    valkey = servers.valkey(data / "valkey")
    environment["FLEET_REDIS_URL"] = valkey.url
    api, other = (servers.api(servers.free_port(), data / name) for name in ("ours", "bare"))
    command = [BARE if word == "api:create_app()" else word for word in other.command]
    bare = replace(other, name="bare", command=command)
    try:
        for part in (valkey, api, bare):
            supervisor.start(part)
        yield valkey, api, bare
    finally:
        supervisor.stop()


def enqueue(asked: argparse.Namespace, valkey: Part, sides: dict[str, Part]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(asked.rounds + 1):
        for name, part in sides.items():
            row = load("submit", part, asked.connections, asked.requests if number else 200)
            if number:  # the first one opens connections
                rows[name].append(row)
            with redis.Redis.from_url(valkey.url) as direct:
                direct.flushall()
    print("| | requests a second: median, least, most | p50 ms | p99 ms | worst ms |")
    print("|---|---|---|---|---|")
    rates: dict[str, list[float]] = {}
    for name, done in rows.items():
        each = rates[name] = [len(row["ms"]) / row["seconds"] for row in done]
        shown = f"{median(each):.0f}, {min(each):.0f}, {max(each):.0f}"
        print(f"| {name} | {shown} | {spread([ms for row in done for ms in row['ms']])} |")
    # Of neighbours: what else this machine does changes slower than the sides.
    ratios = sorted(ours / theirs for ours, theirs in zip(*rates.values(), strict=True))
    shown = f"{median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"of the bare view's throughput, round by round: {shown}", flush=True)


def livez(streams: int, valkey: Part, api: Part) -> None:
    """A tenth of the jobs report progress four times a second, as a worker's attempt does."""
    client, store = Client(api.url), JobStore(valkey.url, "fleet")
    body = {"model": "shapes", "input": {"prompt": "x"}}
    ids = [client.submit(body)["id"] for _ in range(streams)]
    claims = [c for _ in range(streams // 10) if (c := store.claim("gpu", "bench", 1))]
    over = threading.Event()

    def work() -> None:
        step = 0
        while not over.wait(0.25):
            step += 1
            for claim in claims:
                store.renew(claim, progress={"value": min(1, step / 1000), "step": step})

    worker = threading.Thread(target=work)
    worker.start()
    try:
        row = load("streams", api, 200, *ids)
    finally:
        over.set()
        worker.join()
        client.close()
    print("| | p50 ms | p99 ms | worst ms |\n|---|---|---|---|")
    print(f"| /livez, {streams} streams, {row['events_s']:.0f} events/s | {spread(row['ms'])} |")


def load(what: str, part: Part, *words: object) -> dict[str, Any]:
    host, port = urlsplit(part.url).hostname, urlsplit(part.url).port
    command = [sys.executable, "-m", "benchmarks.api_load", what, host, port, *words]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def spread(values: list[float]) -> str:
    ordered = sorted(values)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"{median(ordered):.1f} | {p99:.1f} | {ordered[-1]:.1f}"


if __name__ == "__main__":
    main()
