"""Any diffusers pipeline that takes a prompt: it is called as its documentation does, whole.

The repository says which class it is; what the class does not take is not given to it. Every rank
of a replica decodes what all of them have denoised: for pictures that costs nothing but watts.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
)

from jobs.catalog import ModelSpec
from jobs.images import picture
from jobs.request import JobRequest
from worker.rank.progress import ItemProgress
from worker.rank.scheduling import never_wait

TASKS = {"image-to-image": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}


def load(
    spec: ModelSpec, source: str, device: torch.device, **parts: torch.nn.Module
) -> DiffusionPipeline:
    # Not DiffusionPipeline's own, which (diffusers 0.42) drops a part that its class has as
    # optional, as Wan's transformer is, and loads its weights all the same.
    kind = getattr(diffusers, DiffusionPipeline.load_config(source)["_class_name"])
    pipeline = kind.from_pretrained(
        source, dtype=getattr(torch, spec.dtype), use_safetensors=True, **parts
    )
    pipeline.spec = spec
    if scheduler := getattr(pipeline, "scheduler", None):
        never_wait(scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def run(
    pipeline: DiffusionPipeline,
    request: JobRequest,
    prompt: str,
    seed: int,
    progress: ItemProgress,
) -> Iterator[np.ndarray]:
    called = _for_task(pipeline, request.task)
    steps = request.input.num_inference_steps
    with progress.denoise(steps, then="vae_decode") as on_step_end:
        drawn = called(
            prompt=prompt,
            **_taken(called, pipeline.spec, request),
            **request.input.extra,
            # On the CPU, so that every rank of a replica, and every kind of GPU, draws the same.
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=on_step_end,
        )
    with progress.decode() as here:
        if here:
            frames = np.asarray(drawn[0])
            frames = frames[0] if frames.ndim == 5 else frames
            yield (frames * 255).round().astype(np.uint8)


def _for_task(pipeline: DiffusionPipeline, task: str) -> DiffusionPipeline:
    """The same components in the class for this task, where the repository names another."""
    if task not in TASKS or "image" in inspect.signature(pipeline.__call__).parameters:
        return pipeline
    other = TASKS[task].from_pipe(pipeline)
    ours, theirs = (getattr(type(p), "encode_prompt", None) for p in (pipeline, other))
    if ours and theirs and _parameters(ours) == _parameters(theirs):
        other.encode_prompt = pipeline.encode_prompt  # which remembers, or asks another rank
    return other


def _parameters(call: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(call).parameters)


def _taken(pipeline: DiffusionPipeline, spec: ModelSpec, request: JobRequest) -> dict[str, Any]:
    """What was asked for, by the names of this pipeline's __call__."""
    asked, taken = request.input, inspect.signature(pipeline.__call__).parameters
    size = (asked.width, asked.height)
    values: dict[str, Any] = {
        "negative_prompt": asked.negative_prompt,
        "height": asked.height,
        "width": asked.width,
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "num_frames": asked.frames,
        "frame_rate": getattr(asked, "fps", None),
        "strength": getattr(asked, "strength", None),
        "max_sequence_length": spec.shape.text_tokens,
    }
    if spec.guidance == "two-pass" and "true_cfg_scale" in taken:
        # These take a distilled guidance besides, and no second pass without a negative prompt.
        values["true_cfg_scale"] = values.pop("guidance_scale")
        values["negative_prompt"] = asked.negative_prompt or " "
    if (image := getattr(asked, "image", None)) is not None:
        values["image"] = picture(image).convert("RGB").resize(size)
    if (mask := getattr(asked, "mask", None)) is not None:
        values["mask_image"] = picture(mask).convert("L").resize(size)
    return {k: v for k, v in values.items() if k in taken and v is not None}
