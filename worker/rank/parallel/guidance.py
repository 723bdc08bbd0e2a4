"""Classifier-free guidance shared by the halves of a replica: a pass with the prompt, one without.

For pipelines that, like WanPipeline, call their transformer inside cache_context("cond"), then
inside cache_context("uncond"), and read nothing in between.
"""

import contextlib
from collections.abc import Iterator
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

    The first call answers at once, the rank of the other pass with an empty tensor; the second call
    computes that rank's own, swaps, and fills it in.
    """

    def __init__(self, transformer: Any, pair: Any) -> None:
        self._transformer, self._pair = transformer, pair
        self._mine = PASSES[dist.get_rank(pair)]
        self._pass: str | None = None
        self._first: torch.Tensor | None = None
        self._hook = transformer.__dict__.get("forward")
        self._forward, self._cache_context = transformer.forward, transformer.cache_context
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

    def _split(self, hidden_states: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor]:
        """hidden_states: [B, C, F, H, W]; answers as with return_dict=False.

        Raises: InvalidInput, where the pipeline's guidance is no two passes that this can share.
        """
        if self._pass not in PASSES or hidden_states.dim() != 5:
            name = type(self._transformer).__name__
            raise InvalidInput(f"The guidance of {name} can't be shared here; use cfg=1.")
        mine = None
        if self._pass == self._mine:
            mine = self._forward(hidden_states, **{**inputs, "return_dict": False})[0].contiguous()
        if self._pass == PASSES[0]:
            self._first = self._like_output(hidden_states) if mine is None else mine
            return (self._first,)
        assert self._first is not None, "the pass without the prompt came first"
        first, self._first = self._first, None
        swapped = [torch.empty_like(first), torch.empty_like(first)]
        dist.all_gather(swapped, first if mine is None else mine, group=self._pair)
        first.copy_(swapped[0])
        return (swapped[1],)

    def _like_output(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The transformer may see more channels (a condition) than it answers."""
        batch, _, *place = hidden_states.shape
        return hidden_states.new_empty(batch, self._transformer.config.out_channels, *place)
