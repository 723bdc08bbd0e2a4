"""What Group and a rank say to each other: dataclasses as length-prefixed JSON on a unix socket."""

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

MEETING = "meet"  # a rank waits for its peers: no stage of a job, but a sign of life

# -- to a rank


@dataclass(frozen=True)
class Run:
    """Compute one item. members: the ranks that do it together; the first of them is the lead.
    lane: all that the plan runs on. request: the job's request as JSON. folder: where the lead
    leaves the file."""

    job: str
    index: int
    prompt: str
    seed: int
    request: str
    plan: dict[str, Any]
    members: list[int]
    lane: list[int]
    folder: str


@dataclass(frozen=True)
class Cancel:
    job: str


@dataclass(frozen=True)
class Exit:
    pass


# -- from a rank


@dataclass(frozen=True)
class Hello:
    """memory_bytes: all that its device has. uuid: of its GPU, as NVML spells it."""

    rank: int
    pid: int
    incarnation: int
    device: str
    memory_bytes: int
    uuid: str | None = None


@dataclass(frozen=True)
class Loaded:
    """The models that a rank has in memory; said whenever it has got one ready."""

    rank: int
    models: list[str]


@dataclass(frozen=True)
class Progress:
    """A stage began or a denoising step ended. memory: bytes, allocated and peak of this job.
    preview: a picture of what the item is about to become, if there is a new one."""

    rank: int
    job: str
    index: int
    stage: str
    step: int
    steps: int
    memory: dict[str, int]
    preview: str | None = None


@dataclass(frozen=True)
class Said:
    """A warning of a rank, or of a library in it, while it works on a job."""

    rank: int
    job: str
    level: str
    message: str


@dataclass(frozen=True)
class Done:
    """file: what the lead wrote (see rank/outputs.py); None from the others. timings: seconds."""

    rank: int
    job: str
    index: int
    file: dict[str, Any] | None
    timings: dict[str, float]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """clean: no other rank waits for this one, the group can go on. echo: only another rank's
    failure made this one stop."""

    rank: int
    job: str
    index: int
    code: str
    message: str
    stage: str
    clean: bool
    echo: bool


@dataclass(frozen=True)
class Canceled:
    rank: int
    job: str
    index: int
    step: int


# -- from Group to whoever runs a job on it, among the ranks' Progress, Said and Done


@dataclass(frozen=True)
class Tick:
    """Nothing new; the regular place to look at the clock and at wishes."""


@dataclass(frozen=True)
class Ended:
    """The last event of a stream: every item is done, or the job was canceled."""

    canceled: bool


Event = Progress | Said | Done | Tick | Ended
ToRank = Run | Cancel | Exit
FromRank = Hello | Loaded | Progress | Said | Done | Failed | Canceled
Message = ToRank | FromRank

KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (Run, Cancel, Exit, Hello, Loaded, Progress, Said, Done, Failed, Canceled)
}

_LENGTH = struct.Struct("<I")


def encode(message: Message) -> bytes:
    body = json.dumps([type(message).__name__, asdict(message)]).encode()
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Bytes as they arrive in, whole messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            kind, fields = json.loads(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield KINDS[kind](**fields)


def messages(connection: socket.socket) -> Iterator[Message]:
    """Blocks for the next message; ends when the other side is gone."""
    decoder = Decoder()
    while data := connection.recv(65536):
        yield from decoder.feed(data)
