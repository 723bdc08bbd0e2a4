"""Jobs under random kill -9 of ranks and of the worker: each must end exactly once.

`python -m benchmarks.faults --jobs 200 --seed 1`. One fleet on this machine with SeaweedFS and two
ranks on the tests' models. Every 2-6 s, --kills times, a rank or the worker is killed if the group
is whole. Exit code 1 if a job is lost, stuck, ended twice, or its bytes are not as recorded.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from cli.client import FINAL, ApiError, Client
from cli.servers import free_port

ROOT = Path(__file__).parent.parent


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--kills", type=int, default=40)
    options.add_argument("--timeout-s", type=int, default=1200)
    asked = options.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as data:
        models = {
            "FLEET_MODELS": str(ROOT / "tests" / "fixtures" / "models.toml"),
            "FLEET_MODELS_DIR": f"{data}/models",
        }
        make = [sys.executable, "-m", "tests.fixtures.tiny", models["FLEET_MODELS_DIR"]]
        subprocess.run(make, check=True)
        url = f"http://127.0.0.1:{(port := free_port())}"
        fleet = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli", "up", "--no-flower", "--s3", "--data", data),
                *("--port", str(port), "--ranks", "2"),
            ],
            env={**os.environ, **models, "FLEET_LEASE_S": "5", "FLEET_REAP_S": "0.5"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert fleet.stdout is not None
        while fleet.stdout.readline() not in ("ready\n", ""):
            pass
        threading.Thread(target=fleet.stdout.read, daemon=True).start()
        try:
            good = storm(fleet.pid, Client(url), chance, asked)
        finally:
            family = psutil.Process(fleet.pid).children(recursive=True)
            fleet.send_signal(signal.SIGTERM)
            fleet.wait(60)
        orphans = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        print(f"orphans after the end: {len(orphans)}")
    sys.exit(not good or bool(orphans))


def storm(fleet: int, client: Client, chance: random.Random, asked: argparse.Namespace) -> bool:
    began, count = time.monotonic(), asked.jobs
    ids = [submit(client, chance) for _ in range(count)]
    kills: Counter[str] = Counter()
    ends: dict[str, dict[str, Any]] = {}
    while len(ends) < count and time.monotonic() - began < asked.timeout_s:
        time.sleep(chance.uniform(2, 6))
        if kills.total() < asked.kills and whole(client) and (victim := pick(fleet, chance, kills)):
            victim.kill()
        for id in ids:
            if id not in ends and (job := look(client, id)) and job["status"] in FINAL:
                ends[id] = job
    attempts = Counter(job["attempt"] for job in ends.values())
    states = Counter(job["status"] for job in ends.values())
    wrong = [id for id, job in ends.items() if not sound(client, job)]
    print(f"{count} jobs in {time.monotonic() - began:.0f} s; kill -9: {dict(kills)}")
    print(f"ended {dict(states)}, lost or stuck {count - len(ends)}, unsound {wrong}")
    print(f"attempts: {dict(sorted(attempts.items()))}")
    return len(ends) == count and not wrong


def submit(client: Client, chance: random.Random) -> str:
    model = chance.choice(["tiny-video", "tiny-image"])
    prompts = [f"a {n}" for n in range(chance.choice([1, 1, 2, 3]))]
    steps = chance.randint(4, 30)
    body = {"model": model, "input": {"prompt": prompts, "num_inference_steps": steps}}
    body["parallel"] = chance.choice(["auto", {"data": 2}, {"ulysses": 2}])
    return str(client.submit(body)["id"])


def pick(fleet: int, chance: random.Random, kills: Counter[str]) -> psutil.Process | None:
    """A rank two times out of three, else the worker: only processes of this fleet."""
    kind = chance.choice(["rank", "rank", "worker"])
    word = "forkserver" if kind == "rank" else "celery"
    found = []
    for process in psutil.Process(fleet).children(recursive=True):
        try:
            if word in " ".join(process.cmdline()) and (kind == "worker" or not process.children()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    if not found:
        return None
    kills[kind] += 1
    return chance.choice(found)


def whole(client: Client) -> bool:
    try:
        return any(model["workers_ready"] for model in client.call("GET", "/v1/models")["data"])
    except ApiError:
        return False


def look(client: Client, id: str) -> dict[str, Any] | None:
    try:
        return client.job(id)
    except ApiError:
        return None


def sound(client: Client, job: dict[str, Any]) -> bool:
    """Read again it says the same; a success has every output once, with the bytes it names."""
    if client.job(job["id"])["seq"] != job["seq"]:
        return False
    if job["status"] != "succeeded":
        return job["error"] is not None and not job["outputs"]
    for output in job["outputs"]:
        content = httpx.get(output["download_url"]).content
        if hashlib.sha256(content).hexdigest() != output["sha256"]:
            return False
    return [o["index"] for o in job["outputs"]] == list(range(len(job["input"]["prompt"])))


if __name__ == "__main__":
    main()
