"""Keeper: the thread that owns the agent process and every rank's socket, and knows who lives.

A rank that dies takes its group with it: the others may wait for it in a collective for ever. So
the keeper kills them all, and the agent starts the next incarnation. It must be a thread that lives
as long as the group, because the agent is told to die with the thread that started it.
"""

import contextlib
import logging
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from worker.protocol import (
    Decoder,
    Exit,
    Failed,
    FromRank,
    Hello,
    Loaded,
    Progress,
    ToRank,
    encode,
)

logger = logging.getLogger(__name__)

PREFIX = "fleet-group-"
SEND_S = 5  # a rank that reads nothing for so long, with its buffer full, is no rank
STOP_S = 5  # from the wish that the ranks exit to the kill


@dataclass(frozen=True)
class Gone:
    """A rank's process has ended without being asked to. guilty: it was the first of its group to
    go; the others are killed because of it."""

    rank: int
    guilty: bool


Events = queue.SimpleQueue[FromRank | Gone]


@dataclass
class Connection:
    socket: socket.socket
    decoder: Decoder = field(default_factory=Decoder)
    hello: Hello | None = None
    memory: dict[str, int] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)  # in its memory


class Keeper(threading.Thread):
    """ready is set while a whole incarnation is connected."""

    def __init__(self, size: int, start_timeout_s: float) -> None:
        super().__init__(name="group-keeper", daemon=True)
        self.size = size
        self.ready = threading.Event()
        self._listeners: dict[int, Events] = {}  # by rank
        self.incarnation = -1
        self.starts = 0
        self.least_memory = 0  # bytes of the smallest device; 0 before the first start
        self._start_timeout_s = start_timeout_s
        self._stop_at: float | None = None
        self._lock = threading.Lock()  # over _ranks: the keeper changes it, tasks read it
        self._ranks: dict[int, Connection] = {}
        sweep(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "new"))
        self._listener.listen(size * 2)
        (self._folder / "new").chmod(0o600)
        (self._folder / "new").rename(self._folder / "socket")  # who sees it can connect
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def run(self) -> None:
        try:
            while self._stop_at is None:
                try:
                    agent = self._start_agent()
                except OSError:  # of memory, of files
                    logger.exception("no agent can be started yet")
                    time.sleep(1)
                    continue
                try:
                    self._attend(agent)
                except Exception:
                    logger.exception("the keeper goes on, with a new agent")
                finally:
                    agent.kill()  # the forkserver and the ranks die with it
                    agent.wait()
                    self._forget_all()
        finally:
            self.close()

    def close(self) -> None:
        self._selector.close()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def listen(self, ranks: Sequence[int]) -> tuple[Events, int]:
        """What these ranks say from now on, until somebody else listens to them; and the
        incarnation that the caller has to do with."""
        events: Events = queue.SimpleQueue()
        self._listeners.update(dict.fromkeys(ranks, events))
        return events, self.incarnation

    def _hear(self, rank: int, event: FromRank | Gone) -> None:
        if (events := self._listeners.get(rank)) is not None:
            events.put(event)

    def send(self, ranks: list[int], message: ToRank) -> bool:
        """To ranks that live; what a dead one misses its Gone event tells. False where one that
        lives takes nothing: then the group restarts."""
        data = encode(message)
        with self._lock:
            sockets = [self._ranks[rank].socket for rank in ranks if rank in self._ranks]
        try:
            for each in sockets:
                each.sendall(data)
        except OSError as error:
            logger.error("a rank can't be reached: %s", error)
            self.kill()
            return False
        return True

    def kill(self, incarnation: int | None = None) -> None:
        """SIGKILL to every rank; the next incarnation follows by itself. incarnation: only if it
        lives still, since who asks may be late."""
        if incarnation is not None and incarnation != self.incarnation:
            return
        self.ready.clear()
        with self._lock:
            hellos = [c.hello for c in self._ranks.values() if c.hello]
        for hello in hellos:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hello.pid, signal.SIGKILL)

    def stop(self) -> None:
        self._stop_at = time.monotonic() + STOP_S
        self.send(list(range(self.size)), Exit())
        self.join()

    def about(self) -> list[dict[str, object]]:
        """What is known of each rank that lives."""
        with self._lock:
            return [
                {**asdict(c.hello), "memory": c.memory, "models": c.models}
                for rank, c in sorted(self._ranks.items())
                if c.hello
            ]

    def holders(self, model: str) -> set[int]:
        """The ranks that have it in memory."""
        with self._lock:
            return {rank for rank, c in self._ranks.items() if model in c.models}

    def _start_agent(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "worker.agent"),
                *(str(self._folder / "socket"), str(self.size), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the worker, not for its ranks
        )

    def _attend(self, agent: subprocess.Popen[bytes]) -> None:
        """Reads sockets until the agent ends or a new incarnation takes too long."""
        since = time.monotonic()  # when the group was last whole
        while agent.poll() is None:
            for key, _ in self._selector.select(0.2):
                if key.fileobj is self._listener:
                    connection = Connection(self._listener.accept()[0])
                    connection.socket.settimeout(SEND_S)
                    self._selector.register(connection.socket, selectors.EVENT_READ, connection)
                else:
                    self._read(key.data)
            if self._stop_at is not None and time.monotonic() > self._stop_at:
                return
            if self.ready.is_set():
                since = time.monotonic()
            elif time.monotonic() - since > self._start_timeout_s:
                logger.error("no whole group after %.0f s: a new agent", self._start_timeout_s)
                return
        if self._stop_at is None:
            logger.error("the group's agent ended with exit code %s", agent.returncode)
            time.sleep(1)  # no hot loop where it can't even start

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        for message in connection.decoder.feed(data):
            if isinstance(message, Hello):
                self._joined(connection, message)
            elif isinstance(message, Loaded):
                connection.models = message.models
            elif isinstance(message, Failed) and not message.clean and not self.ready.is_set():
                continue  # its peers are being killed: that it is Gone tells whose fault it was
            else:
                if isinstance(message, Progress):
                    connection.memory = message.memory
                assert connection.hello is not None, "a rank begins with a Hello"
                self._hear(connection.hello.rank, message)  # type: ignore[arg-type]

    def _joined(self, connection: Connection, hello: Hello) -> None:
        if hello.incarnation != self.incarnation:
            self._forget_all()
            self.incarnation = hello.incarnation
        connection.hello = hello
        with self._lock:
            self._ranks[hello.rank] = connection
        if len(self._ranks) == self.size:
            logger.info("group of %d ready, incarnation %d", self.size, self.incarnation)
            self.starts += 1
            self.least_memory = min(c.hello.memory_bytes for c in self._ranks.values() if c.hello)
            self.ready.set()

    def _lost(self, connection: Connection) -> None:
        self._close(connection)
        hello = connection.hello
        if hello is None or self._ranks.get(hello.rank) is not connection:
            return
        with self._lock:
            del self._ranks[hello.rank]
        guilty = self.ready.is_set()
        if guilty and self._stop_at is None:
            logger.error("rank %d (pid %d) is gone: the group restarts", hello.rank, hello.pid)
        if self._stop_at is None:
            self.kill()  # first of all it is not ready: who waits for that must not miss the news
        self._hear(hello.rank, Gone(hello.rank, guilty))

    def _forget_all(self) -> None:
        self.ready.clear()
        with self._lock:
            connections, self._ranks = list(self._ranks.values()), {}
        for connection in connections:
            self._close(connection)
            if connection.hello:
                self._hear(connection.hello.rank, Gone(connection.hello.rank, guilty=False))

    def _close(self, connection: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def sweep(root: Path) -> None:
    """Removes the folders of keepers that were killed: nobody listens there any more."""
    for folder in root.glob(f"{PREFIX}*"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(folder / "socket"))
            except ConnectionRefusedError:
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                continue
