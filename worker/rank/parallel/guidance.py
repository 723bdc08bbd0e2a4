"""Classifier-free guidance shared by the halves of a replica: a pass with the prompt, one without.

Some pipelines, like WanPipeline, call their transformer inside cache_context("cond"), then inside
cache_context("uncond"), and read nothing in between. Others, like SDXL's, call it once with a batch
of both.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from jobs.errors import InvalidInput

PASSES = ("cond", "uncond")  # in the order of the calls; a pair's first rank takes the first


class GuidanceParallel:
    """Makes the pairs of ranks that swap their results: `stride` ranks split each pass."""

    def __init__(self, strides: list[int], timeout: timedelta) -> None:
        self._pairs: dict[int, Any] = {}
        world = dist.get_world_size()
        for stride in strides:
            firsts = [rank for rank in range(world) if rank // stride % 2 == 0]
            pairs = [dist.new_group([first, first + stride], timeout=timeout) for first in firsts]
            self._pairs[stride] = pairs[firsts.index(_first(dist.get_rank(), stride))]

    def apply(self, transformer: Any, stride: int) -> None:
        transformer.split_passes = _SplitPasses(transformer, self._pairs[stride])

    @staticmethod
    def remove(transformer: Any) -> None:
        if split := transformer.__dict__.pop("split_passes", None):
            split.undo()


def _first(rank: int, stride: int) -> int:
    return rank - stride if rank // stride % 2 else rank


class _SplitPasses:
    """In place of a transformer's forward: its own pass for this rank, the other's for the peer.

    The first of two calls answers an empty tensor; at the second every rank computes its own pass,
    at the same time as its peer, which matters where they share weights. Then they swap.
    """

    def __init__(self, transformer: Any, pair: Any) -> None:
        self._transformer, self._pair = transformer, pair
        self._mine = PASSES[dist.get_rank(pair)]
        self._pass: str | None = None
        self._first: tuple[torch.Tensor, Callable[[], Any]] | None = None
        self._hook = transformer.__dict__.get("forward")
        self._forward = transformer.forward
        self._cache_context = getattr(transformer, "cache_context", contextlib.nullcontext)
        transformer.forward, transformer.cache_context = self._split, self._named

    def undo(self) -> None:
        """The class's own methods show again, or a hook's."""
        del self._transformer.forward, self._transformer.cache_context
        if self._hook is not None:
            self._transformer.forward = self._hook

    @contextlib.contextmanager
    def _named(self, name: str, **where: Any) -> Iterator[None]:
        self._pass = name
        try:
            with self._cache_context(name, **where):
                yield
        finally:
            self._pass = None

    def _split(self, sample: torch.Tensor | None = None, *args: Any, **inputs: Any) -> Any:
        """sample: [B, C, ...], or [2 B, ...] where both passes are one batch, whatever its name.
        Answers as with return_dict=False.

        Raises: InvalidInput, where the pipeline's guidance is no two passes that this can share.
        """
        inputs["return_dict"] = False
        if sample is None:
            sample = inputs.pop("hidden_states")
        if self._pass in PASSES:
            return self._one_pass(sample, *args, **inputs)
        if len(sample) % 2:
            name = type(self._transformer).__name__
            raise InvalidInput(f"The guidance of {name} can't be shared here; use cfg=1.")
        half = _half_of(len(sample), PASSES.index(self._mine))
        mine = self._forward(half(sample), *map(half, args), **half(inputs))[0].contiguous()
        halves = [torch.empty_like(mine), torch.empty_like(mine)]
        dist.all_gather(halves, mine, group=self._pair)
        return (torch.cat(halves),)

    def _one_pass(self, sample: torch.Tensor, *args: Any, **inputs: Any) -> tuple[torch.Tensor]:
        compute = functools.partial(self._forward, sample, *args, **inputs)
        if self._pass == PASSES[0]:
            self._first = self._like_output(sample), compute
            return (self._first[0],)
        assert self._first is not None, "the pass without the prompt came first"
        (first, compute_first), self._first = self._first, None
        mine = (compute_first if self._mine == PASSES[0] else compute)()[0].contiguous()
        swapped = [torch.empty_like(mine), torch.empty_like(mine)]
        dist.all_gather(swapped, mine, group=self._pair)
        first.copy_(swapped[0])
        return (swapped[1],)

    def _like_output(self, sample: torch.Tensor) -> torch.Tensor:
        """The transformer may see more channels (a condition) than it answers."""
        if sample.dim() == 3:  # packed tokens
            return sample.new_empty(*sample.shape[:2], self._transformer.proj_out.out_features)
        batch, _, *place = sample.shape
        return sample.new_empty(batch, self._transformer.config.out_channels, *place)


def _half_of(batch: int, index: int) -> Callable[[Any], Any]:
    """Takes the half of whatever has the batch as its first dimension, also inside dicts."""

    def half(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: half(inner) for name, inner in value.items()}
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == batch:
            return value.chunk(2)[index]
        return value

    return half
