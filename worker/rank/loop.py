"""The rank's life: take a Run, apply its plan, run the pipeline, answer. An answer always comes."""

import contextlib
import logging
import queue
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.errors import GpuFault, Internal, JobError, OutOfMemory, RankDied
from jobs.request import Item, stored_request
from jobs.settings import Settings
from worker.plan import Plan
from worker.protocol import Canceled, Done, Failed, FromRank, Run
from worker.rank import memory, outputs
from worker.rank.logs import SCENE
from worker.rank.loras import Worn, wear
from worker.rank.marks import marks
from worker.rank.models import Models
from worker.rank.parallel import Parallelism, encoder
from worker.rank.previews import Previews
from worker.rank.progress import ItemProgress, PeerFailed, Stopped

logger = logging.getLogger(__name__)


def serve(
    runs: "queue.Queue[Run | None]",
    send: Callable[[FromRank], None],
    canceled: set[str],
    models: Models,
    parallelism: Parallelism,
    settings: Settings,
) -> None:
    while (run := runs.get()) is not None:
        replica = parallelism.replica(run.members)
        progress = ItemProgress(run, replica, send, canceled, settings.debug)
        send(_answer(run, progress, models, parallelism, settings))
        SCENE.stage, SCENE.step = "idle", "-"


def _answer(
    run: Run,
    progress: ItemProgress,
    models: Models,
    parallelism: Parallelism,
    settings: Settings,
) -> FromRank:
    rank = dist.get_rank()
    try:
        file = _compute(run, progress, models, parallelism, settings)
    except Stopped as stopped:
        logger.info("%s", stopped)
        return Canceled(rank, run.job, run.index, stopped.step)
    except Exception as error:
        return _failure(run, progress, models, error)
    return Done(rank, run.job, run.index, file, progress.timings, memory.peak_bytes())


def placed(run: Run, progress: ItemProgress, models: Models, parallelism: Parallelism) -> Any:
    """The pipeline that the run asks for, where its plan wants it, with the plan on it."""
    request, plan = stored_request(run.request), Plan(**run.plan)
    with progress.stage("load_model"):
        ranks = tuple(run.lane) if plan.spread_encoder else ()
        which = request.model, request.task, parallelism.mesh(plan), ranks
        pipeline = models.get(*which)
        progress.holds(models.names())
        if ranks and ranks[0] in run.members:
            progress.meet_early()  # the first rank may have failed to load what it has for all
        elif ranks:
            encoder.wait_for(models.key(*which).address, progress.heed)
        wanted = [
            Worn(lora.name, *models.lora(request.model, lora.name), lora.scale)
            for lora in request.input.loras
        ]
        try:
            wear(pipeline, wanted, lambda: parallelism.apply(pipeline, Plan()))
        except Exception:
            models.drop(*which)
            raise
        with progress.timed("plan"):
            parallelism.apply(pipeline, plan)
        memory.check_devices(pipeline, models.device)
    return pipeline


@torch.no_grad()
def _compute(
    run: Run,
    progress: ItemProgress,
    models: Models,
    parallelism: Parallelism,
    settings: Settings,
) -> dict[str, object] | None:
    request, plan = stored_request(run.request), Plan(**run.plan)
    pipeline = placed(run, progress, models, parallelism)
    if plan.shard:
        progress.join()
    if progress.lead and request.preview:
        every = request.preview.every_n_steps
        progress.previews = Previews(Path(run.folder), run.index, every)
    adapter = models.adapter(request.model, request.task)
    frames = adapter.run(pipeline, request, run.prompt, run.seed, progress)
    if not progress.lead:
        deque(frames, maxlen=0)  # decodes its rows
        return None
    said = marks(settings, request, Item(run.index, run.prompt, run.seed))
    file = outputs.File(request, run.index, Path(run.folder), said)
    with contextlib.closing(file):
        for some in frames:
            file.add(some)
        with progress.stage("encode_file"):
            return file.finish(progress.stop_if_wished)


def _failure(run: Run, progress: ItemProgress, models: Models, error: Exception) -> Failed:
    """Peers in a collective can't be told: then the failure is not clean and the group must go."""
    echo = isinstance(error, PeerFailed)
    clean = not progress.together and not memory.gpu_fault(error)
    if clean and not progress.met:
        progress.meet(failed=True)
    stage = SCENE.stage
    if not isinstance(error, JobError | PeerFailed):
        logger.exception("item %d failed", run.index)
    told = _named(error, clean)
    if isinstance(told, OutOfMemory) and clean:
        models.shrink()
    progress.holds(models.names())
    return Failed(dist.get_rank(), run.job, run.index, told.code, str(told), stage, clean, echo)


def _named(error: Exception, clean: bool) -> JobError:
    """What the caller is told; a fault of NCCL or of a peer comes as any class of RuntimeError."""
    if isinstance(error, JobError):
        return error
    text = f"{type(error).__name__}: {error}"[:500]
    short = ("out of memory", "ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in text for w in short):
        return OutOfMemory(f"Rank {dist.get_rank()} ran out of memory.")
    if memory.gpu_fault(error):
        return GpuFault(f"Rank {dist.get_rank()}: {text}")
    fault = isinstance(error, RuntimeError | OSError)  # of gloo, of a peer
    if isinstance(error, PeerFailed) or clean or not fault:
        return Internal(text)
    return RankDied(f"Rank {dist.get_rank()}: {text}")
