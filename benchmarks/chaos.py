"""Two workers under random faults: each accepted job must end once, each success be published once.

`python -m benchmarks.chaos --seed 1`. Valkey, SeaweedFS, the API and two workers of two ranks each
on this machine, the tests' models, a fault every 1-3 s. Prints a table; exit code 1 if a job is
lost, stuck, ended or published twice, or a process is left. The same seed gives the same jobs and
the same order of faults; what they hit depends on the machine's pace.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.verdict import Case, check, print_table
from cli import servers
from cli.client import FINAL, ApiError, Client
from cli.up import Supervisor

ROOT = Path(__file__).parent.parent
LEASE_S = 5
# Of a hundred jobs.
KINDS = {"plain": 78, "canceled": 8, "deadline": 5, "invalid": 5, "poison": 2, "oom": 2}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--faults", type=int, default=150, help="at most; then it may end")
    options.add_argument("--every", type=float, nargs=2, default=(1.0, 3.0), metavar="S")
    options.add_argument("--bound-s", type=float, default=180, help="for the end, after them")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data:
        site = Site(Path(data))
        try:
            good = storm(site, asked)
        finally:
            left = site.down()
    print(f"processes left: {len(left)}")
    sys.exit(not good or bool(left))


class Site:
    """The fleet, and what can be done to it."""

    def __init__(self, data: Path) -> None:
        models = data / "models"
        make = [sys.executable, "-m", "tests.fixtures.tiny", str(models)]
        subprocess.run(make, check=True, cwd=ROOT)
        for name in ("dies", "oom"):
            (models / name).mkdir()
        environment = {
            **os.environ,
            "FLEET_MODELS": str(ROOT / "tests" / "fixtures" / "models.toml"),
            "FLEET_MODELS_DIR": str(models),
            "FLEET_DATA_DIR": str(data / "first"),
            "FLEET_RANKS": "2",
            "FLEET_LEASE_S": str(LEASE_S),
            "FLEET_REAP_S": "0.5",
            "FLEET_STALL_S": "5",
            "FLEET_DRAIN_S": "2",
        }
        self.supervisor = Supervisor(environment, data / "logs")
        self.seen: dict[int, psutil.Process] = {}
        valkey, weed = servers.valkey(data / "valkey"), servers.seaweedfs(data / "seaweedfs")
        api = servers.api(servers.free_port())
        worker = servers.worker(api.url)
        second = replace(
            worker,
            name="second",
            command=[*worker.command[:-1], "second@here"],
            environment={"FLEET_DATA_DIR": str(data / "second")},
        )
        environment.update(weed.environment, FLEET_REDIS_URL=valkey.url)
        environment.update(FLEET_STORAGE_URL="s3://fleet", FLEET_S3_ENDPOINT=weed.url)
        for part in (valkey, weed, api, worker, second):
            self.supervisor.start(part)
        self.environment, self.redis_url = environment, valkey.url
        self.client = Client(api.url, timeout_s=5)
        self._over = threading.Event()
        self._watch = threading.Thread(target=self.supervisor.watch, args=(self._over.is_set,))
        self._watch.start()

    def down(self) -> list[psutil.Process]:
        """What outlives it."""
        self._over.set()
        self._watch.join()
        for process in self.processes(""):
            process.resume()
        self.supervisor.stop()
        time.sleep(2)
        return [p for p in self.seen.values() if p.is_running() and p.status() != "zombie"]

    def processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                self.seen.setdefault(process.pid, process)
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        """The leaves below the agents."""
        leaves = self.processes("forkserver")
        return [p for p in leaves if not p.children()]

    def ready(self) -> bool:
        try:
            cards = self.client.call("GET", "/v1/workers")["data"]
        except ApiError:
            return False
        return sum(card["ready"] for card in cards) == 2


def killed(find: Callable[[Site], list[psutil.Process]]) -> Callable[[Site, random.Random], None]:
    def fault(site: Site, chance: random.Random) -> None:
        if victims := find(site):
            chance.choice(victims).kill()

    return fault


def frozen(
    find: Callable[[Site], list[psutil.Process]], seconds: float
) -> Callable[[Site, random.Random], None]:
    """SIGSTOP, and SIGCONT so much later, if something still has that process then."""

    def fault(site: Site, chance: random.Random) -> None:
        if victims := find(site):
            victim = chance.choice(victims)
            victim.suspend()
            threading.Timer(seconds, lambda: victim.is_running() and victim.resume()).start()

    return fault


def cut(kind: str) -> Callable[[Site, random.Random], None]:
    def fault(site: Site, _chance: random.Random) -> None:
        with redis.Redis.from_url(site.redis_url, socket_timeout=2) as direct:
            direct.execute_command("CLIENT", "KILL", "TYPE", kind)

    return fault


def named(word: str) -> Callable[[Site], list[psutil.Process]]:
    return lambda site: site.processes(word)


def workers(site: Site) -> list[psutil.Process]:
    return [p for p in site.processes("celery") if "worker.agent" not in " ".join(p.cmdline())]


# Name: how often in the lottery, what.
FAULTS: dict[str, tuple[int, Callable[[Site, random.Random], None]]] = {
    "rank killed": (6, killed(Site.ranks)),
    "rank frozen 8 s": (2, frozen(Site.ranks, 8)),
    "agent killed": (2, killed(named("worker.agent"))),
    "agent frozen 4 s": (1, frozen(named("worker.agent"), 4)),
    "worker killed": (3, killed(workers)),
    "worker frozen, wakes in its lease": (1, frozen(workers, LEASE_S / 2)),
    "worker frozen, wakes after its lease": (2, frozen(workers, LEASE_S + 4)),
    "API process killed": (2, killed(named("gunicorn"))),
    "API process frozen 4 s": (1, frozen(named("gunicorn"), 4)),
    "SeaweedFS killed": (1, killed(named("weed"))),
    "SeaweedFS frozen 20 s": (1, frozen(named("weed"), 20)),
    "Valkey killed": (1, killed(named("valkey-server"))),
    "Valkey frozen 20 s": (1, frozen(named("valkey-server"), 20)),
    "CLIENT KILL normal": (3, cut("normal")),
    "CLIENT KILL pubsub": (1, cut("pubsub")),
}


def storm(site: Site, asked: argparse.Namespace) -> bool:
    chance = random.Random(asked.seed)
    cases = [case(chance) for _ in range(asked.jobs)]
    lottery = [name for name, (tickets, _) in FAULTS.items() for _ in range(tickets)]
    # Apart from the jobs' dice: those are thrown by another thread.
    submitting = threading.Thread(target=submit_all, args=(site.client, cases), daemon=True)
    began, faults = time.monotonic(), Counter[str]()
    recovery: dict[str, list[float]] = {}
    open_faults: list[tuple[str, float]] = []
    chance_free = random.Random()  # what is looked at first decides nothing
    submitting.start()
    last = next_at = began
    while time.monotonic() < last + asked.bound_s:
        now, ready = time.monotonic(), site.ready()
        if ready:
            for name, at in open_faults:
                recovery.setdefault(name, []).append(now - at)
            open_faults.clear()
        if faults.total() < asked.faults and now >= next_at:
            name = chance.choice(lottery)
            try:
                FAULTS[name][1](site, chance)
                faults[name] += 1
                open_faults.append((name, now))
            except (psutil.NoSuchProcess, redis.RedisError):
                pass  # it was gone already
            last, next_at = now, now + chance.uniform(*asked.every)
        waiting = [each for each in cases if each.id and not each.over]
        for each in chance_free.sample(waiting, min(20, len(waiting))):
            look(site.client, each)
        if not submitting.is_alive() and all(each.over for each in cases):
            break
        time.sleep(0.2)
    while not site.ready() and time.monotonic() < last + asked.bound_s:
        time.sleep(0.5)
    print(f"seed {asked.seed}: {asked.jobs} jobs, {time.monotonic() - began:.0f} s, ", end="")
    print(f"{time.monotonic() - last:.0f} s of them after the last of {faults.total()} faults")
    print_table(cases, faults, recovery)
    return check(cases, site.client, site.environment)


def case(chance: random.Random) -> Case:
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    model = {"poison": "dies", "oom": "oom"}.get(kind, chance.choice(["tiny-video", "tiny-image"]))
    prompts: list[str] = [f"a {n}" for n in range(chance.choice([1, 1, 2, 3]))]
    question: dict[str, Any] = {"prompt": prompts, "num_inference_steps": chance.randint(4, 30)}
    body: dict[str, Any] = {"model": model, "input": question}
    body["priority"] = chance.choice(["high", "normal", "normal", "low"])
    body["parallel"] = chance.choice(["auto", "auto", {"data": 2}, {"ulysses": 2}])
    if kind in ("poison", "oom"):
        question["prompt"], body["parallel"] = "always", {"ulysses": 2}
    if kind == "deadline":
        body["deadline_s"] = chance.choice([1, 3, 10])
    if kind == "invalid":
        question["num_inference_steps"] = -1
    return Case(kind, body, f"chaos-{chance.getrandbits(64):x}", chance.uniform(0, 20))


def submit_all(client: Client, cases: list[Case]) -> None:
    """Each until the API has answered: the key makes it one job however often it is sent."""
    for each in cases:
        while each.id is None and not each.refused:
            try:
                headers = {"Idempotency-Key": each.key}
                job = client.call("POST", "/v1/jobs", json=each.body, headers=headers)
                each.id, each.born = job["id"], time.monotonic()
            except ApiError as error:
                each.refused = 400 <= error.status < 500
                time.sleep(0 if each.refused else 0.5)


def look(client: Client, each: Case) -> None:
    if each.id is None or each.over:
        return
    try:
        due = time.monotonic() > each.born + each.cancel_after_s
        if each.kind == "canceled" and due and not each.cancel_sent:
            client.call("POST", f"/v1/jobs/{each.id}/cancel")
            each.cancel_sent = True
        job = client.job(each.id)
    except ApiError:
        return
    each.seqs.append(job["seq"])
    if job["status"] in FINAL:
        each.job = job


if __name__ == "__main__":
    main()
