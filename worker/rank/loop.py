"""The rank's life: take a Run, apply its plan, run the pipeline, answer. An answer always comes."""

import logging
import queue
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.errors import Internal, JobError, OutOfMemory
from jobs.request import stored_request
from worker.plan import Plan
from worker.protocol import Canceled, Done, Failed, FromRank, Run
from worker.rank import memory, outputs
from worker.rank.logs import SCENE
from worker.rank.models import Models
from worker.rank.parallel import Parallelism
from worker.rank.progress import ItemProgress, PeerFailed, Stopped

logger = logging.getLogger(__name__)


def serve(
    runs: "queue.Queue[Run | None]",
    send: Callable[[FromRank], None],
    canceled: set[str],
    models: Models,
    parallelism: Parallelism,
) -> None:
    while (run := runs.get()) is not None:
        progress = ItemProgress(run, send, canceled)
        send(_answer(run, progress, models, parallelism))
        SCENE.stage, SCENE.step = "idle", "-"


def _answer(run: Run, progress: ItemProgress, models: Models, parallelism: Parallelism) -> FromRank:
    rank = dist.get_rank()
    try:
        file = _compute(run, progress, models, parallelism)
    except Stopped as stopped:
        logger.info("%s", stopped)
        return Canceled(rank, run.job, run.index, stopped.step)
    except Exception as error:
        return _failure(run, progress, error)
    return Done(rank, run.job, run.index, file, progress.timings, memory.peak_bytes())


@torch.no_grad()  # type: ignore[untyped-decorator]
def _compute(
    run: Run, progress: ItemProgress, models: Models, parallelism: Parallelism
) -> dict[str, object] | None:
    request, plan = stored_request(run.request), Plan(**run.plan)
    adapter = models.adapter(request.model, request.task)
    progress.replica = parallelism.replica(tuple(run.members))
    with progress.stage("load_model"):
        pipeline = models.get(request.model, request.task)
        parallelism.apply(pipeline, plan)
    frames = adapter.run(pipeline, request, run.prompt, run.seed, progress)
    if not progress.lead:
        return None
    with progress.stage("encode_file"):
        return outputs.save(frames, request, run.index, Path(run.folder))


def _failure(run: Run, progress: ItemProgress, error: Exception) -> Failed:
    """Peers in a collective can't be told: then the failure is not clean and the group must go."""
    echo = isinstance(error, PeerFailed)
    clean = not progress.together and not isinstance(error, torch.AcceleratorError)
    if clean and not progress.met and not echo:
        progress.meet(failed=True)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        error = OutOfMemory(f"Rank {dist.get_rank()} ran out of memory.")
    elif not isinstance(error, JobError | PeerFailed):
        logger.exception("item %d failed", run.index)
        error = Internal(f"{type(error).__name__}: {error}"[:500])
    code = error.code if isinstance(error, JobError) else Internal.code
    if torch.cuda.is_initialized() and clean:
        torch.cuda.empty_cache()
    return Failed(dist.get_rank(), run.job, run.index, code, str(error), SCENE.stage, clean, echo)
