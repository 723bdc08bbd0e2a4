"""The LoRAs of a job, on its pipeline beside the weights, never fused into them: without them the
pipeline is bit by bit what it was."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from jobs.catalog import LoraSpec
from jobs.errors import JobError, ModelLoadFailed
from worker.rank import memory
from worker.rank.models import refusal
from worker.rank.parallel import denoisers

logger = logging.getLogger(__name__)


class Worn(NamedTuple):
    """name: in the catalogue. source: a folder's path or a hub id."""

    name: str
    spec: LoraSpec
    source: str
    scale: float


def wear(pipeline: Any, wanted: list[Worn], bare: Callable[[], None]) -> None:
    """Has the pipeline wear these and no others. bare: takes a plan off it, whose hooks are on
    modules that come and go here.

    Raises: ModelLoadFailed, ModelUnavailable, and what loading raises. The pipeline is not to be
    used any more then: who knows what has come off again.
    """
    worn: list[Worn] = getattr(pipeline, "worn", [])
    if wanted == worn:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelLoadFailed(f"{type(pipeline).__name__} wears no LoRAs.")
    if hasattr(pipeline.encode_prompt, "forget"):  # a text encoder may have worn one
        pipeline.encode_prompt.forget()
    if [lora[:3] for lora in wanted] != [lora[:3] for lora in worn]:
        bare()
        pipeline.unload_lora_weights()
        for index, lora in enumerate(wanted):
            _put_on(pipeline, _adapter(index), lora)
    if wanted:
        names = [_adapter(index) for index in range(len(wanted))]
        pipeline.set_adapters(names, [lora.scale for lora in wanted])
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # peft leaves its layers training, with their dropout
    if pipeline.spec.compiled:
        _compile_once(pipeline)
    pipeline.worn = wanted


def _adapter(index: int) -> str:
    """Its name within the pipeline; the catalogue's may have dots."""
    return f"lora_{index}"


def _put_on(pipeline: Any, adapter: str, lora: Worn) -> None:
    files: dict[str, dict[str, Any]] = {lora.spec.file: {}}
    if lora.spec.file_2 is not None:
        files[lora.spec.file_2] = {"load_into_transformer_2": True}
    logger.info("LoRA %s from %s", lora.name, lora.source)  # its place is not for callers
    for file, where in files.items():
        if lora.source.startswith("/") and not Path(lora.source, file).is_file():
            raise ModelLoadFailed(f"LoRA {lora.name}: there is no {file} where it should be.")
        try:
            pipeline.load_lora_weights(
                lora.source, weight_name=file, adapter_name=adapter, use_safetensors=True, **where
            )
        except Exception as error:
            if isinstance(error, (torch.OutOfMemoryError, JobError)) or memory.gpu_fault(error):
                raise
            logger.exception("LoRA %s can't be loaded", lora.name)
            raise refusal(f"LoRA {lora.name} can't be loaded", error) from None
        worn_by = [part for part, there in pipeline.get_list_adapters().items() if adapter in there]
        if not worn_by or (where and "transformer_2" not in worn_by):
            kind = type(pipeline).__name__
            raise ModelLoadFailed(f"LoRA {lora.name}: {file} has nothing for this {kind}.")
    for denoiser in denoisers(pipeline):
        changed = ("_overwritten_params", "_transformer_norm_layers")  # diffusers', of Flux
        if any(getattr(denoiser, name, None) for name in changed):
            says = "it changes the model's own layers, not only what lies beside them"
            raise ModelLoadFailed(f"LoRA {lora.name} can't be worn: {says}.")


def _compile_once(pipeline: Any) -> None:
    """Has the compiled blocks be the same program for every scale and in every block: a number is
    part of a program, and so is a rank, of which some files have another one in each block."""
    layers = [layer for denoiser in denoisers(pipeline) for layer in _layers(denoiser)]
    ranks: dict[str, int] = {}
    for layer in layers:
        for name, a in layer.lora_A.items():
            layer.scaling[name] = torch.as_tensor(layer.scaling[name], dtype=torch.float32)
            if isinstance(a, nn.Linear):
                ranks[name] = max(ranks.get(name, 0), a.out_features)
    for layer in layers:
        for name, a in layer.lora_A.items():
            if isinstance(a, nn.Linear) and (more := ranks[name] - a.out_features):
                b = layer.lora_B[name]
                a.weight = _padded(a.weight, (0, 0, 0, more))
                b.weight = _padded(b.weight, (0, more))
                a.out_features = b.in_features = ranks[name]
    for denoiser in denoisers(pipeline):
        # Some of peft's want gradients, and that is part of a program too.
        denoiser.requires_grad_(False)


def _layers(denoiser: nn.Module) -> Iterator[Any]:
    return (module for module in denoiser.modules() if isinstance(module, BaseTunerLayer))


def _padded(weight: torch.Tensor, by: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.functional.pad(weight.detach(), by))
