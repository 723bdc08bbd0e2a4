"""The launcher process: starts all ranks, and starts them anew for as long as they die.

`python -m worker.agent SOCKET RANKS PARENT_PID`. Every incarnation of the group is a fresh
elastic_launch: torchrun's own restart in place lets new ranks read the old ones' addresses
(pytorch#135712). The forkserver has the heavy imports done, so a restart takes no 15 seconds.
"""

import itertools
import multiprocessing
import os
import runpy
import signal
import sys
import time

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker.lifeline import AGENT, IMPORTED_BY, die_with_parent

PRELOAD = [
    "worker.preload",
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "accelerate",
    "transformers.models.umt5.modeling_umt5",
    "transformers.models.clip.modeling_clip",
    "safetensors.torch",
    "PIL.Image",
    "numpy",
    "pydantic",
    "redis",
]
# Attention kernels that diffusers imports may ask for CUDA, which a forked child can't use then.
PRELOAD_WITHOUT_CUDA = ["diffusers.pipelines.wan.pipeline_wan"]
QUICK_DEATH_S = 5


def start_rank(socket_path: str, incarnation: int) -> None:
    """Runs in each rank. It is started by name: nothing outside worker/rank imports worker/rank."""
    die_with_parent(IMPORTED_BY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = ["worker.rank", socket_path, str(incarnation)]
    runpy.run_module("worker.rank", run_name="__main__", alter_sys=True)


def main() -> None:
    socket_path, ranks, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    os.environ["TMPDIR"] = os.path.dirname(socket_path)  # torch's leavings go where ours go
    # Ranks are forked: CUDA must not be initialised when somebody asks whether it is there.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # One thread a rank until the rank itself knows how many cores it may use.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ[AGENT] = str(os.getpid())
    more = [] if torch.backends.cuda.is_built() else PRELOAD_WITHOUT_CUDA
    multiprocessing.set_forkserver_preload(PRELOAD + more)
    for incarnation in itertools.count():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"fleet-{os.getpid()}-{incarnation}",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            start_method="forkserver",
        )
        began = time.monotonic()
        try:
            elastic_launch(config, start_rank)(socket_path, incarnation)
            return
        except ChildFailedError as error:
            ends = {rank: failure.exitcode for rank, failure in error.failures.items()}
            print(
                f"[agent] the group ended, exit codes by rank: {ends}", file=sys.stderr, flush=True
            )
        if time.monotonic() - began < QUICK_DEATH_S:
            time.sleep(1)


if __name__ == "__main__":
    main()
