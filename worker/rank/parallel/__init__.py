"""A plan applied to an ordinary pipeline from outside, and taken off again, per job."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from worker.plan import Plan, divisors
from worker.rank.parallel.guidance import GuidanceParallel
from worker.rank.parallel.sequence import SequenceParallel


def denoisers(pipeline: Any) -> list[Any]:
    """What a plan is put on: Wan 2.2 has two, one for much noise and one for little."""
    names = ("transformer", "transformer_2", "unet")
    return [part for name in names if (part := getattr(pipeline, name, None)) is not None]


@dataclass(frozen=True)
class Replica:
    """The ranks that compute one item together, as this rank sees them."""

    members: tuple[int, ...]
    agreement: Any  # a gloo process group for flags; None for a replica of one rank
    tensors: Any  # one for tensors on the device; None likewise
    stripes: int  # in which a video's VAE decodes: the same in every plan

    @property
    def alone(self) -> bool:
        return len(self.members) == 1

    @property
    def lead(self) -> bool:
        return dist.get_rank() == self.members[0]


class Parallelism:
    """Makes every process group once, at start: creating one is collective over all ranks."""

    def __init__(self, device: torch.device, timeout: timedelta) -> None:
        world = dist.get_world_size()
        widths = divisors(world)[1:]
        self._agreements: dict[tuple[int, ...], Any] = {}
        for width in widths:
            for first in range(0, world, width):
                ranks = tuple(range(first, first + width))
                self._agreements[ranks] = dist.new_group(
                    list(ranks), backend="gloo", timeout=timeout
                )
        self._sequence = SequenceParallel(device)
        self._guidance = GuidanceParallel([w // 2 for w in widths if w % 2 == 0], timeout)

    def replica(self, ranks: list[int]) -> Replica:
        members = tuple(ranks)
        width, stripes = len(members), dist.get_world_size()
        if width == 1:
            return Replica(members, None, None, stripes)
        tensors = self._sequence.mesh(width).get_group()
        return Replica(members, self._agreements[members], tensors, stripes)

    def mesh(self, plan: Plan) -> Any:
        """Of the ranks that share a model's weights; None where each has all of them."""
        return self._sequence.mesh(plan.replica_width) if plan.shard else None

    def apply(self, pipeline: Any, plan: Plan) -> None:
        """Puts the plan on the pipeline in place of the one before; milliseconds, no reload."""
        for denoiser in denoisers(pipeline):
            # Guidance lies around what the sequence hooks into: off before that changes, on after.
            self._guidance.remove(denoiser)
            shape = pipeline.spec.shape
            text_tokens = shape.text_tokens if shape.joint and shape.text_tokens else 0
            self._sequence.apply(denoiser, plan.ulysses, plan.ring, text_tokens)
            if plan.cfg > 1:
                self._guidance.apply(denoiser, plan.ulysses * plan.ring)
