"""A rank: its process group and device, its socket to the worker, then the loop.

Started by worker/agent.py; the environment has what torchrun sets (RANK, WORLD_SIZE, …).
"""

import contextlib
import gc
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import diffusers
import torch
import torch.distributed as dist
import transformers

from jobs.catalog import load_catalog
from jobs.settings import load_settings
from worker.protocol import Cancel, Exit, FromRank, Hello, Message, Run, encode, messages
from worker.rank import logs
from worker.rank.loop import serve
from worker.rank.memory import gpu_uuid, pick_device, total_bytes
from worker.rank.models import Models
from worker.rank.parallel import Parallelism


def join_group(timeout: timedelta) -> torch.device:
    """NCCL for tensors on GPUs, gloo for tensors on CPU and for every agreement between ranks."""
    device = pick_device(int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
        # diffusers' context parallelism divides by the number of accelerators.
        torch.accelerator.device_count = lambda: 1
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timeout)
    return device


def listen(connection: socket.socket, runs: "queue.Queue[Run | None]", canceled: set[str]) -> None:
    """The reader thread; None is the end of the runs.

    The rank ends with its worker, even in the middle of a collective.
    """
    with contextlib.suppress(OSError):
        for message in messages(connection):
            match message:
                case Run():
                    canceled.clear()  # of jobs before this one
                    runs.put(message)
                case Cancel(job):
                    canceled.add(job)
                case Exit():
                    runs.put(None)
                    return
    os._exit(1)


def sender(connection: socket.socket) -> Callable[[FromRank], None]:
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            connection.sendall(encode(message))

    return send


def main(socket_path: str, incarnation: int) -> None:
    gc.freeze()  # a full collection need not look at all imports: 0.3 s, in which a GPU would wait
    settings = load_settings()
    logs.to_stderr_and_file(settings.logs, int(os.environ["RANK"]))
    # A bar says nothing in a log, and a load must not fail because that log's disk is full.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # What they warn of may have a prompt in it: it is for the job's caller alone.
    diffusers.utils.logging.disable_default_handler()
    transformers.utils.logging.disable_default_handler()
    # A rank may wait for a peer that loads a model; the watchdog, not this, finds a hung one.
    timeout = timedelta(seconds=settings.load_timeout_s + 60)
    device = join_group(timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(socket_path)
    runs: queue.Queue[Run | None] = queue.Queue()
    canceled: set[str] = set()
    threading.Thread(target=listen, args=(connection, runs, canceled), daemon=True).start()
    models = Models(load_catalog(settings.models), settings.models_dir, device)
    parallelism = Parallelism(device, timeout)
    send = sender(connection)
    logs.ToCaller(dist.get_rank(), send)
    place = dist.get_rank(), os.getpid(), incarnation, str(device), total_bytes(), gpu_uuid()
    send(Hello(*place))
    serve(runs, send, canceled, models, parallelism, settings)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
