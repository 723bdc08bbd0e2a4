"""What killed keepers leave in the temporary folder goes; what a living one uses stays."""

import socket
from pathlib import Path

from worker.keeper import PREFIX, sweep


def test_only_dead_folders_are_swept(tmp_path: Path) -> None:
    dead, living, young = (tmp_path / f"{PREFIX}{name}" for name in ("dead", "living", "young"))
    for folder in (dead, living, young):
        folder.mkdir()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(dead / "socket"))
        gone.listen()
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(living / "socket"))
        there.listen()
        sweep(tmp_path)
    assert not dead.exists() and living.exists()
    assert young.exists(), "one that is just being made has no socket yet"
