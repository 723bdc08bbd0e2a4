"""What a rank reports while it computes one item, and how the ranks of a replica agree to stop."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from jobs.errors import Internal
from worker.protocol import MEETING, FromRank, Loaded, Progress, Run
from worker.rank import memory
from worker.rank.logs import SCENE
from worker.rank.parallel import Replica
from worker.rank.previews import Look, Previews

logger = logging.getLogger(__name__)

T = TypeVar("T")
FINE, WISHED, FAILED = range(3)  # a vote; the highest of the replica holds


class Stopped(Exception):
    """The job was canceled; every rank of the replica raises it at the same step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"canceled at step {step}")
        self.step = step


class PeerFailed(Exception):
    """Another rank of the replica failed before the first collective."""


class ItemProgress:
    """stage() and denoise() for the pipelines; what they measure goes to the worker."""

    def __init__(
        self,
        run: Run,
        replica: Replica,
        send: Callable[[FromRank], None],
        canceled: set[str],
        debug: bool = False,
    ) -> None:
        """debug: compare the latents of all ranks at every step."""
        self._run, self.replica, self._debug = run, replica, debug
        self._send, self._canceled = send, canceled
        self.previews: Previews | None = None  # where they are wanted, on the lead
        self.timings: dict[str, float] = {}
        self._steps = 0  # of denoising, once that has begun
        self.met = False  # the peers know that this rank got as far as the first collective
        self.together = False  # inside the collectives: this rank's failure leaves peers waiting
        memory.reset_peak()

    @property
    def lead(self) -> bool:
        return self.replica.lead

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        # Before they meet, a rank that stops would leave its peers waiting: they stop there.
        if self._wished() and (self.replica.alone or self.met) and not self.together:
            raise Stopped(0)
        self._tell(name, 0, 0)
        with self.timed(name):
            yield

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.timings[f"{name}_s"] = time.monotonic() - began

    @contextlib.contextmanager
    def decode(self, spread: bool = False) -> Iterator[bool]:
        """Whether this rank takes part. spread: all do, and none may leave the others then."""
        if not (self.lead or spread):
            yield False
            return
        self.together = spread and not self.replica.alone
        with self.stage("vae_decode"):
            yield True
        self.together = False

    @contextlib.contextmanager
    def denoise(
        self, steps: int, then: str | None = None, look: Look | None = None
    ) -> Iterator[Callable[..., Any]]:
        """Yields a callback_on_step_end for a diffusers pipeline. then: the stage that follows the
        last step within the same call of it. look: latents as a picture, for previews.

        At each step's end the ranks agree whether to stop (gloo, 4 bytes). GPUs don't wait for
        that: their CPUs are a step ahead. Not `pipe._interrupt`: that still decodes.
        Raises: PeerFailed before the first step, Stopped after any.
        """
        self.join()
        self._steps = steps
        self._tell("denoise", 0, steps)
        began = time.monotonic()
        fence = _Fence()

        def on_step_end(
            pipe: Any, step: int, _time: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            fence.pass_one()
            if self._debug and not self.replica.alone:
                self._compare(tensors["latents"])
            known = getattr(pipe, "num_timesteps", steps)  # a strength below 1 makes them fewer
            preview = None
            if self.previews and look and step + 1 < known:
                preview = self.previews.after(pipe, step, tensors["latents"], look)
            self._tell("denoise", step + 1, known, preview)
            if self._stop_agreed():
                raise Stopped(step + 1)
            if then and step + 1 == known:
                self._tell(then, 0, 0)
            return tensors

        yield on_step_end
        self.together = False
        self.timings["denoise_s"] = time.monotonic() - began

    def heeding(self, chunks: Iterator[T]) -> Iterator[T]:
        """The chunks, until the job is to be canceled: all ranks of the replica, which all take
        part, stop after the same one. Raises: Stopped."""
        for chunk in chunks:
            yield chunk
            if self._stop_agreed():
                raise Stopped(self._steps)

    def _stop_agreed(self) -> bool:
        """Whether one rank of the replica knows that the job is to be canceled: the same answer on
        all of them."""
        if self.replica.alone:
            return self._wished()
        votes = torch.tensor([float(self._wished())])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.replica.agreement)
        return bool(votes.item())

    def _compare(self, latents: torch.Tensor) -> None:
        """Raises: Internal, where a rank has gone another way: a wrong picture, in silence."""
        own = torch.tensor(latents.detach().double().sum().item(), dtype=torch.float64)
        sums = [torch.empty_like(own) for _ in self.replica.members]
        dist.all_gather(sums, own, group=self.replica.agreement)
        if len({value.item() for value in sums}) > 1:
            by_rank = dict(zip(self.replica.members, (value.item() for value in sums), strict=True))
            raise Internal(f"The latents' sums differ by rank: {by_rank}.")

    def join(self) -> None:
        """From here to the end of denoising the ranks are in collectives; where they share weights,
        that begins with encoding. Raises: PeerFailed or Stopped, on all ranks alike."""
        if not self.met:
            self.meet(failed=False)
            self.together = not self.replica.alone

    def meet(self, failed: bool) -> None:
        """Once per item, before the first collective: each rank says whether it got this far.

        Raises: PeerFailed or Stopped, on all ranks alike.
        """
        self.met = True
        if self.replica.alone:
            return
        self._tell(MEETING, 0, 0)
        votes = torch.tensor([FAILED if failed else WISHED if self._wished() else FINE])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.replica.agreement)
        if votes.item() == FAILED and not failed:
            raise PeerFailed("Another rank of this job failed.")
        if votes.item() == WISHED:
            raise Stopped(0)

    def meet_early(self) -> None:
        """Once more than join() does. Raises as meet() does."""
        self.meet(failed=False)
        self.met = False

    def holds(self, models: list[str]) -> None:
        """Tells what is in this rank's memory now."""
        self._send(Loaded(dist.get_rank(), models))

    def heed(self) -> None:
        """Called while a rank waits for another. Raises: Stopped, once the job is to be canceled,
        on all ranks of the replica alike."""
        if self._wished():
            self.meet(failed=False)
            raise Stopped(0)

    def stop_if_wished(self) -> None:
        """For what this rank does alone, when its peers are done. Raises: Stopped."""
        if self._wished():
            raise Stopped(self._steps)

    def _wished(self) -> bool:
        return self._run.job in self._canceled

    def _tell(self, stage: str, step: int, steps: int, preview: str | None = None) -> None:
        SCENE.job, SCENE.stage, SCENE.step = self._run.job, stage, f"{step}/{steps}"
        logger.info("item %d", self._run.index)
        use = {"allocated": memory.allocated_bytes(), "peak": memory.peak_bytes()}
        place = dist.get_rank(), self._run.job, self._run.index
        self._send(Progress(*place, stage, step, steps, use, preview))


class _Fence:
    """Keeps the CPU at most one step ahead of the GPU, so that a reported step is a true one."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None

    def pass_one(self) -> None:
        if not torch.cuda.is_initialized():
            return
        before, self._event = self._event, torch.cuda.Event()
        self._event.record()
        if before is not None:
            before.synchronize()
