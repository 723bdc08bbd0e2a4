"""die_with_parent(): no orphan is left, whatever is killed."""

import ctypes
import os
import signal
import sys

# In a process that is forked later, this is its parent: the forkserver, for a rank.
IMPORTED_BY = os.getpid()
AGENT = "WORKER_AGENT_PID"  # in the environment of the forkserver, whose parent it is


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel SIGKILL this process when the thread that started it ends (Linux). parent: its
    pid; one that has died before we asked kills nobody any more."""
    if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def bound_to_me(command: list[str]) -> list[str]:
    """The command, as a child that ends with the thread of this process that starts it."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
