"""What killed keepers leave in the temporary folder goes; what a living one uses stays."""

import os
import socket
from dataclasses import replace
from pathlib import Path

from worker.keeper import PREFIX, Connection, Keeper, sweep
from worker.protocol import Failed, Hello, encode


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


def test_what_a_rank_says_as_its_peers_are_killed_is_no_fault_of_its_job() -> None:
    """A peer's end may reach a rank before its own, and its answer the keeper before both."""
    keeper = Keeper(2, start_timeout_s=60)
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    failed = Failed(1, "job", 0, "rank_died", "Connection closed by peer", "denoise", False, False)
    try:
        events, _ = keeper.listen([1])
        theirs.sendall(encode(Hello(1, os.getpid(), 0, "cpu", 0)))
        keeper._read(connection)
        keeper.ready.set()
        theirs.sendall(encode(failed))
        keeper._read(connection)
        assert events.get_nowait() == failed, "its own, while all live"
        keeper.ready.clear()  # as kill() does before the first signal
        theirs.sendall(encode(failed) + encode(replace(failed, clean=True)))
        keeper._read(connection)
        assert events.get_nowait() == replace(failed, clean=True) and events.empty()
    finally:
        keeper.close()
        ours.close()
        theirs.close()
