"""A rank's log: every line says which rank, job, stage and step, and how much memory it holds."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

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
