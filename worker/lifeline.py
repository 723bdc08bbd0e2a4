"""die_with_parent(): no orphan is left, whatever is killed."""

import ctypes
import os
import signal


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel SIGKILL this process when the thread that started it ends (Linux)."""
    if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:  # it died before we asked
        os._exit(1)
