"""Sequence parallelism by diffusers' own hooks, switched per job.

diffusers offers enable_parallelism() once per model and no inverse. This does what it does, with
meshes made in advance, and undoes it. Outputs are bit-equal after any number of switches.
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ParallelConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from jobs.errors import InvalidInput
from worker.plan import divisors
from worker.rank.parallel.attention import split_attention


class SequenceParallel:
    """A mesh for every pair of degrees that divides the group; ulysses innermost, so that the ranks
    that talk most are neighbours. NCCL makes a communicator at its first use."""

    def __init__(self, device: torch.device) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        self._configs: dict[tuple[int, int], ParallelConfig] = {}
        self._meshes: dict[int, DeviceMesh] = {}
        for degree in divisors(world)[1:]:
            for ulysses in divisors(degree):
                ring = degree // ulysses
                mesh = init_device_mesh(
                    device.type,
                    (world // degree, ring, ulysses),
                    mesh_dim_names=("data", "ring", "ulysses"),
                )
                context = ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=mesh)
                config = ParallelConfig(context_parallel_config=context)
                config.setup(rank, world, device, mesh=mesh)
                self._configs[ulysses, ring] = config
            # By this name peft knows that a weight which is sharded is gathered before it is used.
            group = self._configs[degree, 1].context_parallel_config._ulysses_mesh.get_group()
            self._meshes[degree] = DeviceMesh.from_group(
                group, device.type, mesh_dim_names=("fsdp",)
            )
        attention_dispatch._templated_context_parallel_attention = split_attention

    def mesh(self, degree: int) -> Any:
        """Of this rank's aligned block of `degree` ranks."""
        return self._meshes[degree]

    def apply(self, transformer: Any, ulysses: int, ring: int, text_tokens: int) -> None:
        """text_tokens: how many of the sequence are text, where text is split over ranks too."""
        wanted = self._configs.get((ulysses, ring))
        if wanted is not None:
            wanted.text_tokens = text_tokens
        if getattr(transformer, "_parallel_config", None) is wanted:
            return
        if wanted is not None and getattr(transformer, "_cp_plan", None) is None:
            name = type(transformer).__name__
            raise InvalidInput(f"{name} has no sequence-parallel plan; use ulysses=1, ring=1.")
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
