"""The sockets on which this process accepts connections; gunicorn opens them before it makes the
application."""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator

STALLED_S = 30  # without a byte of a request that has begun


def listening() -> Iterator[socket.socket]:
    """Each one's own, open for the time of a step."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is closed
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as opened:
                if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield opened


def give_up_on_the_stalled(after_s: float = STALLED_S) -> None:
    """What is read of a connection that is accepted from now on fails with BlockingIOError after so
    long a silence: who has gone in the middle of a request would hold a thread for ever. The
    kernel has an accepted socket begin with its listener's settings."""
    whole, part = divmod(after_s, 1)
    for each in listening():
        wait = struct.pack("ll", int(whole), int(part * 1e6))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
