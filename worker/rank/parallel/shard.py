"""A model's weights sharded over the ranks of a replica: FSDP2, block by block.

Each rank reads from the checkpoint's files its own rows of each weight, and gathers a block's whole
weights for as long as that block computes. What must stay in float32 beside bfloat16 is small and
copied to each rank: FSDP2 takes one dtype a group.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import T5EncoderModel, UMT5EncoderModel

from jobs.catalog import ModelSpec
from jobs.errors import ModelLoadFailed
from jobs.weights import component_bytes

AS_STORED = (T5EncoderModel, UMT5EncoderModel)  # their files name weights as the modules do
Kind = tuple[str, str]  # a library, and the name of a class in it
WORTH = 0.1  # of the whole model's bytes: a smaller part is copied to each rank


def sharded_parts(
    spec: ModelSpec, source: str, mesh: Any, device: torch.device
) -> dict[str, nn.Module]:
    """The large components of a pipeline, by name: its denoisers and text encoders."""
    folder, kinds = components(source)
    dtype = getattr(torch, spec.dtype)
    bytes_of = {name: component_bytes(folder / name, spec.dtype) for name in kinds}
    return {
        name: load_sharded(class_of(kind), folder / name, dtype, mesh, device)
        for name, kind in kinds.items()
        if name.startswith(("transformer", "unet", "text_encoder"))
        and bytes_of[name] >= WORTH * sum(bytes_of.values())
    }


def components(source: str) -> tuple[Path, dict[str, Kind]]:
    """The folder of a pipeline's repository, and what its index says of each component there is."""
    folder = Path(source if Path(source).is_dir() else DiffusionPipeline.download(source))
    index = json.loads((folder / "model_index.json").read_text())
    there = {n: (*k,) for n, k in index.items() if isinstance(k, list) and k != [None, None]}
    return folder, there


def class_of(kind: Kind) -> Any:
    library, name = kind
    return getattr(importlib.import_module(library), name)


def load_sharded(
    kind: Any, folder: Path, dtype: torch.dtype, mesh: Any, device: torch.device
) -> nn.Module:
    """The module of `folder`, of class `kind` (diffusers' or transformers').

    Raises: ModelLoadFailed, for a checkpoint that does not hold every weight.
    """
    if not issubclass(kind, ModelMixin) and kind not in AS_STORED:
        # transformers renames its weights as it loads: whole, through the host's memory.
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        return _share(model, mesh, set())
    with init_empty_weights():
        model = _unfilled(kind, folder)
    if not issubclass(kind, ModelMixin):
        model.tie_weights()  # while nothing is filled, each one is by itself
    whole = _typed(model, dtype)
    buffers, tied = dict(model.named_buffers()), _tied(model)
    _share(model, mesh, whole).to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    _fill(model, folder, tied)
    return model.eval()


def _typed(model: nn.Module, dtype: torch.dtype) -> set[nn.Parameter]:
    """Gives every weight its type; answers those that stay in float32 beside others."""
    fp32 = getattr(model, "_keep_in_fp32_modules", None) or ()
    if dtype is torch.bfloat16 and not isinstance(model, ModelMixin):
        fp32 = ()  # transformers keeps them for float16 only
    whole = set()
    for name, parameter in model.named_parameters():
        keep = any(part in name.split(".") for part in fp32)
        parameter.data = parameter.data.to(torch.float32 if keep else dtype)
        if keep and dtype is not torch.float32:
            whole.add(parameter)
    return whole


def _share(model: nn.Module, mesh: Any, whole: set[nn.Parameter]) -> nn.Module:
    # The root too gathers anew each time: else a rank that has loaded the model again, its peers
    # not, would be a gather ahead of them.
    again = {"mesh": mesh, "reshard_after_forward": True}
    for block in _blocks(model):
        fully_shard(block, ignored_params=whole & set(block.parameters()), **again)
    fully_shard(model, ignored_params=whole, **again)
    return model


def _unfilled(kind: Any, folder: Path) -> nn.Module:
    if issubclass(kind, ModelMixin):
        module: nn.Module = kind.from_config(kind.load_config(folder))
        return module
    return kind(kind.config_class.from_pretrained(folder))


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that are repeated: the children of the module lists nearest to the top."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Each weight's name, and all names that it has: an embedding is often in two places."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() for name in group}


@torch.no_grad()
def _fill(model: nn.Module, folder: Path, tied: dict[str, list[str]]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    waiting = set(parameters)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for stored in weights.keys():  # noqa: SIM118  it is no dict
                for name in tied.get(stored, ()):
                    _copy(parameters[name], weights.get_slice(stored))
                    waiting.discard(name)
    if waiting:
        some = f"{min(waiting)}, of {len(waiting)} that are missing"
        raise ModelLoadFailed(f"{folder} holds no {some}.")


def _copy(parameter: torch.Tensor, stored: Any) -> None:
    if not isinstance(parameter, DTensor):
        parameter.copy_(stored[:])
        return
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    if shape[0]:
        parameter.to_local().copy_(stored[offset[0] : offset[0] + shape[0]])
