"""Ulysses sequence parallelism by diffusers' own hooks, switched per job.

diffusers offers enable_parallelism() once per model and no inverse. This does what it does, with
meshes made in advance, and undoes it. Outputs are bit-equal after any number of switches.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

from jobs.errors import InvalidInput


class SequenceParallel:
    def __init__(self, device: torch.device, degrees: list[int]) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        self._configs: dict[int, ParallelConfig] = {}
        for degree in degrees:
            mesh = init_device_mesh(
                device.type,
                (world // degree, 1, degree),
                mesh_dim_names=("data", "ring", "ulysses"),
            )
            config = ParallelConfig(
                context_parallel_config=ContextParallelConfig(ulysses_degree=degree, mesh=mesh)
            )
            config.setup(rank, world, device, mesh=mesh)
            self._configs[degree] = config
        attention_dispatch._native_attention_forward_op = _in_model_order(
            attention_dispatch._native_attention_forward_op
        )

    def apply(self, transformer: Any, degree: int, text_tokens: int) -> None:
        """text_tokens: how many of the sequence are text, where text is split over ranks too."""
        wanted = self._configs.get(degree)
        if wanted is not None:
            wanted.text_tokens = text_tokens
        if transformer._parallel_config is wanted:
            return
        if wanted is not None and transformer._cp_plan is None:
            name = type(transformer).__name__
            raise InvalidInput(f"{name} has no sequence-parallel plan; use ulysses=1.")
        if transformer._parallel_config is not None:
            remove_context_parallel(transformer, transformer._cp_plan)
        for module in transformer.modules():
            processor = getattr(module, "processor", None)
            if processor is not None and hasattr(processor, "_parallel_config"):
                processor._parallel_config = wanted
        if wanted is not None:
            apply_context_parallel(
                transformer, wanted.context_parallel_config, transformer._cp_plan
            )
        transformer._parallel_config = wanted


def _in_model_order(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Attention over the whole sequence in the order of one GPU.

    Each rank holds [its text, its image], so what Ulysses gathers is text, image, text, image. The
    sums of a softmax depend on the order in the last bit; with this they don't.
    """

    @functools.wraps(forward)
    def ordered(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kw: Any
    ) -> torch.Tensor:
        config: Any = kw.get("_parallel_config")
        text = getattr(config, "text_tokens", 0)
        if not text:
            return forward(ctx, query, key, value, *args, **kw)
        degree = config.context_parallel_config.ulysses_degree
        order, inverse = _orders(text, query.shape[1], degree, query.device)
        query, key, value = (x.index_select(1, order) for x in (query, key, value))
        return forward(ctx, query, key, value, *args, **kw).index_select(1, inverse)

    return ordered


@functools.lru_cache(maxsize=32)
def _orders(
    text: int, tokens: int, degree: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gathered order -> all text, then all image; and back."""
    share, text_share = tokens // degree, text // degree
    places = torch.arange(tokens).view(degree, share)
    order = torch.cat([places[:, :text_share].flatten(), places[:, text_share:].flatten()])
    return order.to(device), order.argsort().to(device)
