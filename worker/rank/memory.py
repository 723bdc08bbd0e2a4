"""The device of a rank, how much of its memory is in use, and what lies on another one. On CPU: the
process's memory, and its share of the machine's."""

import os
import resource
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.errors import Internal

GPU_WORDS = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS")


def pick_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def gpu_uuid() -> str | None:
    """As NVML and nvidia-smi spell it; None on CPU."""
    if not torch.cuda.is_initialized():
        return None
    return f"GPU-{torch.cuda.get_device_properties().uuid}"


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


def free_bytes() -> int:
    """What a model could still take, with what this process has reserved and does not use."""
    if torch.cuda.is_initialized():
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    return _machine("MemAvailable")


def total_bytes() -> int:
    """Of the device; on CPU a rank's share of the machine's."""
    if torch.cuda.is_initialized():
        return torch.cuda.mem_get_info()[1]
    return _machine("MemTotal")


def _machine(name: str) -> int:
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines[name].split()[0]) * 1024 // dist.get_world_size()


def gpu_fault(error: Exception) -> bool:
    """Whether a GPU or its driver has failed: what the process has there is of no use then. Not
    NCCL: a peer that was killed looks the same to it."""
    if isinstance(error, torch.AcceleratorError):
        return True
    named = any(word in str(error) for word in GPU_WORDS) and "ALLOC_FAILED" not in str(error)
    return isinstance(error, RuntimeError) and named


def check_devices(pipeline: Any, device: torch.device) -> None:
    """Raises: Internal naming a tensor that lies on another device: that would be a crash in
    mid-job, or a copy at every use. What accelerate has spread moves its inputs itself."""
    for name, part in getattr(pipeline, "components", {}).items():
        if not isinstance(part, torch.nn.Module) or hasattr(part, "hf_device_map"):
            continue
        for tensors in (part.named_parameters(), part.named_buffers()):
            for path, tensor in tensors:
                if tensor.device != device:
                    raise Internal(f"{name}.{path} is on {tensor.device}, not on {device}.")
