"""A rank's log: every line says which rank, job, stage and step, and how much memory it holds."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.logs import MOST_CHARACTERS
from worker.protocol import Said
from worker.rank.memory import allocated_bytes

FORMAT = (
    "%(asctime)s [rank %(rank)s] %(levelname)s job=%(job)s stage=%(stage)s step=%(step)s "
    "mem=%(memory)s %(message)s"
)


@dataclass
class Scene:
    """What this rank is doing; written by progress.py, read by every log line."""

    job: str = "-"
    stage: str = "idle"
    step: str = "-"


SCENE = Scene()


def to_stderr_and_file(folder: Path, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def describe(record: logging.LogRecord) -> bool:
        record.rank, record.job = rank, SCENE.job
        record.stage, record.step = SCENE.stage, SCENE.step
        record.memory = f"{allocated_bytes() / 2**20:.0f}MiB"
        return True

    for handler in (
        logging.StreamHandler(sys.stderr),
        logging.FileHandler(folder / f"rank-{rank}.log"),
    ):
        handler.setFormatter(logging.Formatter(FORMAT))
        handler.addFilter(describe)
        logging.getLogger("worker").addHandler(handler)
    logging.getLogger("worker").setLevel(logging.INFO)
    logging.getLogger("worker").propagate = False


class ToCaller(logging.Handler):
    """Warnings go to the caller of the job that the rank is at, too."""

    def __init__(self, rank: int, send: Callable[[Said], None]) -> None:
        super().__init__(logging.WARNING)
        self._rank, self._send = rank, send
        for library in ("worker", "diffusers", "transformers"):
            logging.getLogger(library).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if SCENE.stage == "idle":
            return
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            level = record.levelname.lower()
            self._send(Said(self._rank, SCENE.job, level, text[:MOST_CHARACTERS]))
        except Exception:  # a library's malformed call, or a worker that is gone
            self.handleError(record)
