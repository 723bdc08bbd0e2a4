"""What a rank reports while it computes one item, and how the ranks of a replica agree to stop."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from jobs.errors import Internal
from worker.protocol import FromRank, Loaded, Progress, Run
from worker.rank import memory
from worker.rank.logs import SCENE
from worker.rank.parallel import Replica

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
    def denoise(self, steps: int, then: str | None = None) -> Iterator[Callable[..., Any]]:
        """Yields a callback_on_step_end for a diffusers pipeline. then: the stage that follows the
        last step within the same call of it.

        The flag of step i travels (gloo, 4 bytes) while step i+1 computes and is read at its end,
        so all ranks stop at the same step at no cost. Not `pipe._interrupt`: that still decodes.
        Raises: PeerFailed before the first step, Stopped after any.
        """
        self.join()
        self._steps = steps
        self._tell("denoise", 0, steps)
        began = time.monotonic()
        flag = _Flag(self.replica.agreement)
        fence = _Fence()

        def on_step_end(
            pipe: Any, step: int, _time: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            fence.pass_one()
            if self._debug and not self.replica.alone:
                self._compare(tensors["latents"])
            if flag.raised(self._wished()):
                raise Stopped(step + 1)
            known = getattr(pipe, "num_timesteps", steps)  # a strength below 1 makes them fewer
            self._tell("denoise", step + 1, known)
            if then and step + 1 == known:
                self._tell(then, 0, 0)
            return tensors

        yield on_step_end
        if flag.settle():
            raise Stopped(steps)
        self.together = False
        self.timings["denoise_s"] = time.monotonic() - began

    def heeding(self, chunks: Iterator[T]) -> Iterator[T]:
        """The chunks, until the job is to be canceled: all ranks of the replica, which all take
        part, stop after the same one. Raises: Stopped."""
        flag = _Flag(self.replica.agreement)
        for chunk in chunks:
            yield chunk
            if flag.raised(self._wished()):
                raise Stopped(self._steps)
        flag.settle()

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
        self._tell("meet", 0, 0)
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

    def _tell(self, stage: str, step: int, steps: int) -> None:
        SCENE.job, SCENE.stage, SCENE.step = self._run.job, stage, f"{step}/{steps}"
        logger.info("item %d", self._run.index)
        use = {"allocated": memory.allocated_bytes(), "peak": memory.peak_bytes()}
        self._send(
            Progress(dist.get_rank(), self._run.job, self._run.index, stage, step, steps, use)
        )


class _Flag:
    """An all-reduce in flight of whether anybody wishes to stop."""

    def __init__(self, group: Any) -> None:
        self._group, self._work, self._votes = group, None, torch.zeros(1)

    def raised(self, wished: bool) -> bool:
        """Reads the vote of the step before, then casts this step's. Alone: this step's at once."""
        if self._group is None:
            return wished
        stop = self.settle()
        if not stop:
            self._votes = torch.tensor([float(wished)])
            self._work = dist.all_reduce(
                self._votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True
            )
        return stop

    def settle(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._votes.item())


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
