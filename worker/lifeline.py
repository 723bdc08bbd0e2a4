"""die_with_parent(): no orphan is left, whatever is killed."""

import ctypes
import os
import signal

# In a process that is forked later, this is its parent: the forkserver, for a rank.
IMPORTED_BY = os.getpid()


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel SIGKILL this process when the thread that started it ends (Linux). parent: its
    pid; one that has died before we asked kills nobody any more."""
    if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(1)
