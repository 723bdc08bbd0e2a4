"""The fleet that chaos.py hits: two workers of two ranks, and plain Celery beside them."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.proxy import Proxy
from cli import servers
from cli.client import ApiError, Client
from cli.servers import Part
from cli.up import Supervisor

ROOT = Path(__file__).parent.parent
LEASE_S = 5
GONE_S = 10  # from the end of the site to that of its last process


TENANTS = ("north", "south", "west")


def _key(file: Path, tenant: str) -> str:
    command = [sys.executable, "-m", "cli", "keys", "--file", str(file), "create"]
    done = subprocess.run([*command, "--tenant", tenant], stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return done.stdout.strip()


class Site:
    """The fleet, and what can be done to it."""

    def __init__(self, data: Path, s3: bool = True) -> None:
        self.models = models = data / "models"
        make = [sys.executable, "-m", "tests.fixtures.tiny_more", str(models)]
        subprocess.run(make, check=True, cwd=ROOT)
        for name in ("dies", "hangs", "oom", "shorts", "sleeps"):
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
            "FLEET_GPU_FAULTS": "0",  # a worker that drains itself waits for a person
        }
        self._data = str(data)
        self.supervisor = Supervisor(environment, data / "logs")
        self.seen: dict[int, psutil.Process] = {}
        valkey, weed = servers.valkey(data / "valkey"), servers.seaweedfs(data / "seaweedfs")
        self.proxy = Proxy(servers.LOOPBACK, urlsplit(weed.url).port or 80)
        api = servers.api(servers.free_port(), data / "metrics")
        keys = data / "keys.jsonl"
        environment.update(FLEET_API_KEYS_FILE=str(keys))
        worker = servers.worker(api.url)
        second = replace(
            worker,
            name="second",
            command=[*worker.command[:-1], "second@here"],
            environment={"FLEET_DATA_DIR": str(data / "second")},
        )
        environment.update(FLEET_REDIS_URL=valkey.url)
        if s3:
            environment.update(weed.environment, FLEET_S3_ENDPOINT=self.proxy.url)
            os.environ.update(weed.environment)  # the verdict reads the storage itself
        storage = "s3://fleet" if s3 else (data / "storage").as_uri()
        environment.update(FLEET_STORAGE_URL=storage)
        # Beside it, with the same broker: what it is compared with.
        self.broker, self.published = valkey.url.removesuffix("/0") + "/1", data / "published"
        environment.update(PLAIN_BROKER=self.broker, PLAIN_PUBLISHED=str(self.published))
        plain = [sys.executable, "-m", "celery", "-A", "benchmarks.plain_celery", "worker"]
        beside = [
            Part(name, [*plain, "-c", "2", "-n", f"{name}@here"], self.broker, lambda: True)
            for name in ("plain-1", "plain-2")
        ]
        _key(keys, TENANTS[0])
        for part in (valkey, *([weed] if s3 else []), api, worker, second, *beside):
            self.supervisor.start(part)
        self.environment, self.redis_url = environment, valkey.url
        # What an outage costs is seen only by who does not wait for its end.
        impatient = {"timeout_s": 5.0, "patience_s": 0.0}
        self.clients = {name: Client(api.url, _key(keys, name), **impatient) for name in TENANTS}
        self.client = self.clients[TENANTS[0]]
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look_after)
        self._watch.start()

    def _look_after(self) -> None:
        """What this thread starts anew dies with it: it must be the one to stop it in order."""
        self.supervisor.watch(self._over.is_set)
        for process in self.processes(""):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self.supervisor.stop()

    def down(self) -> list[psutil.Process]:
        """What outlives it."""
        self._over.set()
        self._watch.join()
        self.proxy.close()
        left: list[psutil.Process] = []
        for process in self._strays():  # what plain Celery leaves behind is not ours
            with contextlib.suppress(psutil.Error):
                if "benchmarks.plain_celery" in process.cmdline():
                    process.kill()
        for _ in range(GONE_S):  # a child looks once a second whether its parent lives
            known = [*self.seen.values(), *self._strays()]
            left = [p for p in known if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            if not left:
                break
            time.sleep(1)
        return left

    def _strays(self) -> Iterator[psutil.Process]:
        """Of this site, whoever is their parent by now."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(self._data in value for value in process.environ().values()):
                    yield process

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
        """What the agents' forkservers have forked."""
        family = self.processes("forkserver")
        pids = {p.pid for p in family}
        return [p for p in family if p.ppid() in pids]

    def ready(self) -> bool:
        try:
            cards = self.client.call("GET", "/v1/workers")["data"]
        except ApiError:
            return False
        return sum(card["ready"] for card in cards) == 2
