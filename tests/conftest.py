"""Real servers, shared by the tests: Valkey, SeaweedFS, whole fleets. Nothing here is a mock."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from flask.testing import FlaskClient
from xdist.scheduler import LoadFileScheduling

import api
from cli import servers
from cli.client import FINAL, Client
from cli.servers import Part
from jobs.catalog import Catalog, load_catalog
from jobs.settings import Settings, load_settings
from jobs.store import JobStore

# For torch in the tests' own processes, which share two cores: more threads only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
CATALOG = ROOT / "tests" / "fixtures" / "models.toml"
PYTHON = sys.executable
TOP_LEVEL = ("parallel", "deadline_s", "priority", "task", "output")
FAULTY = ("counts", "sleeps", "hangs", "dies", "shorts", "oom", "broken")


class ByFleet(LoadFileScheduling):
    """To one of the three processes go all tests of a file, and all files that share the fleet:
    another one takes as long to start as some of them to run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "fleet" if _has_fleet(ROOT / file) else file


@cache
def _has_fleet(file: Path) -> bool:
    return "file_fleet" in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByFleet(config, log)


def until(check: Callable[[], Any], timeout_s: float = 120, every_s: float = 0.05) -> Any:
    """The first true answer of check(). Raises: AssertionError after timeout_s."""
    end = time.monotonic() + timeout_s
    while not (answer := check()):
        assert time.monotonic() < end, f"nothing within {timeout_s} s"
        time.sleep(every_s)
    return answer


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Worse than gone: its connections stay open and nobody answers."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


class Server:
    """A part of cli/servers.py as a process that a test may kill, freeze and start again."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part, self.url, self._log = part, part.url, log
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.part.command,
                env={**os.environ, **self.part.environment},
                stdout=log,
                stderr=log,
            )
        until(self.part.ready)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("valkey")
    server = Server(servers.valkey(folder), folder / "log")
    yield server
    server.kill()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("seaweed")
    server = Server(servers.seaweedfs(folder), folder / "log")
    yield server
    server.kill()


@pytest.fixture
def store(valkey: Server) -> JobStore:
    """A store of its own, in the shared Valkey."""
    return JobStore(valkey.url, f"test-{secrets.token_hex(4)}", lease_s=30)


@pytest.fixture
def client(
    valkey: Server, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FlaskClient:
    """An API in this process, with the test's own store and no worker."""
    settings = {
        "FLEET_REDIS_URL": valkey.url,
        "FLEET_KEY_PREFIX": store._prefix,
        "FLEET_MODELS": str(CATALOG),
        "FLEET_DATA_DIR": str(tmp_path),
        "FLEET_MAX_STREAMS": "2",
        "FLEET_OPENAI_WAIT_S": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return api.create_app().test_client()


@pytest.fixture
def s3_client(
    request: pytest.FixtureRequest, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> FlaskClient:
    """The same where results go to S3."""
    for name, value in seaweed.part.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLEET_STORAGE_URL", f"s3://fleet/{secrets.token_hex(4)}")
    monkeypatch.setenv("FLEET_S3_ENDPOINT", seaweed.url)
    client: FlaskClient = request.getfixturevalue("client")
    return client


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([PYTHON, "-m", "tests.fixtures.tiny_more", str(folder)], check=True, cwd=ROOT)
    for name in FAULTY:
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog(CATALOG)


@pytest.fixture(scope="session")
def rank_settings(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """For groups started in this process: their ranks read the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_MODELS", str(CATALOG))
        patch.setenv("FLEET_MODELS_DIR", str(models_dir))
        patch.setenv("FLEET_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("FLEET_STALL_S", "10")
        patch.chdir(ROOT)
        yield load_settings()


class RunningFleet:
    """`fleet up` as a user runs it."""

    def __init__(self, data: Path, models_dir: Path, *options: str, **settings: str) -> None:
        self.data, self.port, self.flower_port = data, servers.free_port(), servers.free_port()
        self.environment = {
            **os.environ,
            "FLEET_MODELS": str(CATALOG),
            "FLEET_MODELS_DIR": str(models_dir),
            "FLOWER_UNAUTHENTICATED_API": "true",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url, patience_s=0)
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.process = subprocess.Popen(
            [
                *(str(Path(PYTHON).with_name("fleet")), "up", "--data", str(data)),
                *("--port", str(self.port), "--flower-port", str(self.flower_port), *options),
            ],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line == "ready\n":
                return
        raise AssertionError("\n".join(self.lines))

    def submit(self, model: str, prompt: Any = "x", **fields: Any) -> str:
        top = {k: fields.pop(k) for k in TOP_LEVEL if k in fields}
        body = {"model": model, "input": {"prompt": prompt, **fields}, **top}
        return str(self.client.submit(body)["id"])

    def wait(self, id: str, timeout_s: float = 180) -> dict[str, Any]:
        return until(lambda: (j := self.client.job(id))["status"] in FINAL and j, timeout_s)

    def wait_running(self, id: str, value: float = 0.01) -> dict[str, Any]:
        return until(lambda: (j := self.client.job(id))["progress"]["value"] >= value and j)

    def pids(self, word: str) -> list[psutil.Process]:
        """Processes of this fleet whose command line holds the word."""
        found = []
        for process in descendants(self.process.pid):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        """The leaves below the agent's forkserver."""
        leaves = []
        for agent in self.pids("worker.agent"):
            leaves += [p for p in agent.children(recursive=True) if "forkserver" in _line(p)]
        parents = {p.ppid() for p in leaves}
        return [p for p in leaves if p.pid not in parents]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.close()
        self.client.close()
        return code


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="session")
def file_fleet(
    models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    fleet = RunningFleet(tmp_path_factory.mktemp("file-fleet"), models_dir)
    yield fleet
    fleet.stop()


@pytest.fixture(scope="session")
def s3_fleet(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    fleet = RunningFleet(tmp_path_factory.mktemp("s3-fleet"), models_dir, "--s3", "--no-flower")
    yield fleet
    fleet.stop()


@pytest.fixture
def notes(models_dir: Path) -> Iterator[Callable[[str], list[str]]]:
    """What the broken pipelines noted during this test."""
    for name in FAULTY:
        (models_dir / name / "notes").unlink(missing_ok=True)

    def read(model: str) -> list[str]:
        file = models_dir / model / "notes"
        return file.read_text().splitlines() if file.exists() else []

    yield read
