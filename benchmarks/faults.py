"""What chaos.py does to a site: processes killed and frozen, connections cut, disks full."""

import contextlib
import os
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil
import redis

from benchmarks.site import LEASE_S, Site

Fault = Callable[[Site, random.Random], bool]  # whether there was anything to hit
Find = Callable[[Site], list[psutil.Process]]


def killed(find: Find, number: int = signal.SIGKILL) -> Fault:
    def fault(site: Site, chance: random.Random) -> bool:
        victims = find(site)
        if victims:
            chance.choice(victims).send_signal(number)
        return bool(victims)

    return fault


def frozen(find: Find, seconds: float) -> Fault:
    """SIGSTOP, and SIGCONT so much later, if something still has that process then."""

    def fault(site: Site, chance: random.Random) -> bool:
        victims = find(site)
        if victims:
            victim = chance.choice(victims)
            victim.suspend()
            threading.Timer(seconds, lambda: victim.is_running() and victim.resume()).start()
        return bool(victims)

    return fault


def cut(kind: str) -> Fault:
    def fault(site: Site, _chance: random.Random) -> bool:
        with redis.Redis.from_url(site.redis_url, socket_timeout=2) as direct:
            return bool(direct.execute_command("CLIENT", "KILL", "TYPE", kind))

    return fault


def full_disk(seconds: float) -> Fault:
    """The ranks of one worker, and whoever encodes their videos, can write no byte to a file."""
    unlimited = resource.RLIM_INFINITY

    def bound(ranks: list[psutil.Process], limit: int) -> None:
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.rlimit(resource.RLIMIT_FSIZE, (limit, unlimited))

    def fault(site: Site, chance: random.Random) -> bool:
        ranks = site.ranks()
        if not ranks:
            return False
        launchers = {rank.pid: rank.ppid() for rank in ranks}
        launcher = chance.choice(sorted(set(launchers.values())))
        bound([rank for rank in ranks if launchers[rank.pid] == launcher], 0)
        threading.Timer(seconds, lambda: bound(site.ranks(), unlimited)).start()
        return True

    return fault


def storage_errors(seconds: float) -> Fault:
    def fault(site: Site, _chance: random.Random) -> bool:
        site.proxy.fail(seconds)
        return True

    return fault


def refused(seconds: float) -> Fault:
    """Valkey is killed and its port taken: who connects is refused, and it can't start again."""

    def fault(site: Site, chance: random.Random) -> bool:
        url = urlsplit(site.redis_url)
        port = socket.socket()
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over what it leaves
        if not killed(named("valkey-server"))(site, chance):
            return False
        while True:
            try:
                port.bind((url.hostname, url.port))
                break
            except OSError:  # it has not quite gone
                time.sleep(0.01)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nobody else binds it as well
        threading.Timer(seconds, port.close).start()
        return True

    return fault


def named(word: str) -> Find:
    return lambda site: site.processes(word)


def workers(site: Site) -> list[psutil.Process]:
    return site.processes("-A worker worker")


def plain_workers(site: Site) -> list[psutil.Process]:
    """Without their children, which end with them sooner or later."""
    found = site.processes("benchmarks.plain_celery")
    return [p for p in found if p.ppid() == os.getpid()]


def both(
    *faults: Fault,
) -> Fault:
    def fault(site: Site, chance: random.Random) -> bool:
        return any([each(site, chance) for each in faults])

    return fault


# Name: how often in the lottery, what.
FAULTS: dict[str, tuple[int, Fault]] = {
    "rank killed": (6, killed(Site.ranks)),
    "rank frozen 8 s": (2, frozen(Site.ranks, 8)),
    "agent killed": (2, killed(named("worker.agent"))),
    "agent frozen 4 s": (1, frozen(named("worker.agent"), 4)),
    "worker killed": (3, both(killed(workers), killed(plain_workers))),
    "worker gets SIGTERM": (1, killed(workers, signal.SIGTERM)),
    "worker frozen, wakes in its lease": (1, frozen(workers, LEASE_S / 2)),
    "worker frozen, wakes after its lease": (2, frozen(workers, LEASE_S + 4)),
    "API process killed": (2, killed(named("gunicorn"))),
    "API process frozen 4 s": (1, frozen(named("gunicorn"), 4)),
    "SeaweedFS killed": (1, killed(named("weed"))),
    "storage errors 6 s": (2, storage_errors(6)),
    "spool's disk full 5 s": (1, full_disk(5)),
    "SeaweedFS frozen 20 s": (1, frozen(named("weed"), 20)),
    "Valkey killed": (1, killed(named("valkey-server"))),
    "Valkey refuses 20 s": (1, refused(20)),
    "Valkey frozen 20 s": (1, frozen(named("valkey-server"), 20)),
    "CLIENT KILL normal": (3, cut("normal")),
    "CLIENT KILL pubsub": (1, cut("pubsub")),
}
