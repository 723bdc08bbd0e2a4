"""`fleet up`: starts every part, restarts one that dies, stops all of them and nothing else."""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

import click

from cli import servers
from cli.servers import PYTHON, Part

START_S = 180
RESTART_S = 1


class Stop(BaseException):
    """SIGINT, SIGTERM or SIGHUP came; a BaseException, so that no handler on the way keeps it."""


class Supervisor:
    """Its processes die with it, even by kill -9: the kernel sees to that."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self._environment, self._logs = environment, logs
        self._running: list[tuple[Part, subprocess.Popen[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, part: Part) -> None:
        """Returns when it is ready. Raises: ClickException with the end of its log, if it dies."""
        self._running.append((part, self._spawn(part)))
        process = self._running[-1][1]
        until = time.monotonic() + START_S
        while not part.ready():
            if process.poll() is not None or time.monotonic() > until:
                tail = self._log(part).read_text(errors="replace").splitlines()[-15:]
                raise click.ClickException(f"{part.name} does not start:\n" + "\n".join(tail))
            time.sleep(0.1)
        click.echo(f"{part.name:<10} {part.url}")

    def watch(self, over: Callable[[], bool] = lambda: False) -> None:
        """Until it is over, or a signal ends it; a part that died comes back."""
        while not over():
            time.sleep(0.5)
            for index, (part, process) in enumerate(self._running):
                if process.poll() is not None:
                    code = process.returncode
                    click.echo(f"{part.name} ended with exit code {code}; starting it again")
                    time.sleep(RESTART_S)
                    self._running[index] = (part, self._spawn(part))

    def stop(self) -> None:
        """In reverse order, each with its time to finish; a second signal cuts that short."""
        try:
            for part, process in reversed(self._running):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(part.grace_s)
        finally:
            for _part, process in reversed(self._running):
                process.kill()
                process.wait()

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        log: IO[bytes]
        with self._log(part).open("ab") as log:
            return subprocess.Popen(
                part.command,
                env={**self._environment, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
                preexec_fn=die_with_parent,
            )

    def _log(self, part: Part) -> Path:
        return self._logs / f"{part.name}.log"


@contextlib.contextmanager
def fleet(
    data: Path, port: int, ranks: int | None, s3: bool, flower_port: int | None
) -> Iterator[tuple[Supervisor, str]]:
    """A whole fleet for the time of the context; yields its supervisor and the API's URL."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)  # prompts lie in there
        (data / "lock").touch()
    except OSError as error:
        raise click.ClickException(f"--data {data}: {error.strerror}") from None
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _on_signal)
    with _only_one(data):
        for wanted in (port, flower_port):
            if wanted is not None:
                servers.check_free(wanted)
        # Whoever stops the fleet of his own machine waits for nothing long.
        environment = {"FLEET_DRAIN_S": "3", **os.environ, "FLEET_DATA_DIR": str(data)}
        if ranks is not None:
            environment["FLEET_RANKS"] = str(ranks)
        _check_settings(environment)
        supervisor = Supervisor(environment, data / "logs")
        try:
            redis = servers.valkey(data / "valkey")
            supervisor.start(redis)
            environment["FLEET_REDIS_URL"] = redis.url
            if s3:
                storage = servers.seaweedfs(data / "seaweedfs")
                supervisor.start(storage)
                environment.update(storage.environment)
                environment["FLEET_STORAGE_URL"] = "s3://fleet"
                environment["FLEET_S3_ENDPOINT"] = storage.url
            api = servers.api(port, data / "metrics")
            supervisor.start(api)
            supervisor.start(servers.worker(api.url))
            if environment.get("FLEET_WEBHOOK_SECRET"):
                supervisor.start(servers.webhooks())
            if flower_port is not None:
                supervisor.start(servers.flower(flower_port))
            yield supervisor, api.url
        finally:
            supervisor.stop()


def _check_settings(environment: dict[str, str]) -> None:
    """A wrong one is a sentence, before it is the fault of several processes at once."""
    make = [PYTHON, "-c", "import api; api.create_app()"]
    made = subprocess.run(make, env=environment, capture_output=True, text=True)
    if made.returncode:
        raise click.ClickException(made.stderr.strip())


@contextlib.contextmanager
def _only_one(data: Path) -> Iterator[None]:
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"a fleet is already up in {data}") from None
        yield


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise Stop
