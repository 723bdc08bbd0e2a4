"""The device of a rank, and how much of its memory is in use. On CPU: of the process."""

import os
import resource
from pathlib import Path

import torch


def pick_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def allocated_bytes() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated()
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most since reset_peak(); on CPU since the process began."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
