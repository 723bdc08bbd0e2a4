"""Text to video, or to a picture of one frame, by WanPipeline (Wan 2.1, https://arxiv.org/abs/2503.20314)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanPipeline

from jobs.catalog import ModelSpec
from jobs.request import ImageToVideo, TextToImage, TextToVideo
from worker.rank.parallel.vae import decode
from worker.rank.pipelines import any_pipeline
from worker.rank.progress import ItemProgress


def load(
    spec: ModelSpec, source: str, device: torch.device, **parts: torch.nn.Module
) -> DiffusionPipeline:
    # The VAE stays in float32: in bfloat16 Wan's loses detail that is seen.
    vae = AutoencoderKLWan.from_pretrained(
        source, subfolder="vae", dtype=torch.float32, use_safetensors=True
    )
    return any_pipeline.load(spec, source, device, vae=vae, **parts)


def run(
    pipeline: WanPipeline,
    request: TextToVideo | TextToImage | ImageToVideo,
    prompt: str,
    seed: int,
    progress: ItemProgress,
    **more: Any,
) -> Iterator[np.ndarray]:
    """more: what a pipeline that begins with a picture takes besides."""
    asked = request.input
    with progress.stage("text_encode"):
        embeds, negative_embeds = pipeline.encode_prompt(
            prompt,
            negative_prompt=asked.negative_prompt,
            do_classifier_free_guidance=asked.guidance_scale > 1,
            max_sequence_length=512,
        )

    def look(latents: torch.Tensor) -> np.ndarray:
        first = pipeline.vae.decode(_scaled(pipeline.vae, latents[:, :, :1]), return_dict=False)[0]
        picture = (first[0, :, 0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5
        return picture.round().to(torch.uint8).cpu().numpy()

    with progress.denoise(asked.num_inference_steps, look=look) as on_step_end:
        latents = pipeline(
            **more,
            **asked.extra,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            height=asked.height,
            width=asked.width,
            num_frames=asked.frames,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            # On the CPU, so that every rank of a replica, and every kind of GPU, draws the same.
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).frames
    yield from pictures(pipeline, latents, progress)


def pictures(
    pipeline: WanPipeline, latents: torch.Tensor, progress: ItemProgress
) -> Iterator[np.ndarray]:
    """latents: [1, C, F, H, W]. Pictures [f, H, W, 3] as they are ready, on the lead."""
    vae, replica = pipeline.vae, progress.replica
    with progress.decode(spread=True):
        decoded = decode(vae, _scaled(vae, latents), replica.stripes, replica.tensors)
        with contextlib.closing(decoded):
            for frames in progress.heeding(decoded):
                if progress.lead:
                    yield frames.permute(0, 2, 3, 1).cpu().numpy()


def _scaled(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """As the VAE takes them."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents.to(vae.dtype) * std + mean
