"""Text to image by FluxPipeline (FLUX.1)."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import FluxPipeline

from jobs.request import TextToImage
from worker.rank.pipelines.any_pipeline import load
from worker.rank.progress import ItemProgress

__all__ = ["load", "run"]


def run(
    pipeline: FluxPipeline, request: TextToImage, prompt: str, seed: int, progress: ItemProgress
) -> Iterator[np.ndarray]:
    asked = request.input
    with progress.stage("text_encode"):
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt, max_sequence_length=pipeline.spec.shape.text_tokens or 512
        )

    def look(latents: torch.Tensor) -> np.ndarray:
        return _decode(pipeline, latents, asked.height, asked.width)[0]

    with progress.denoise(asked.num_inference_steps, look=look) as on_step_end:
        latents = pipeline(
            **asked.extra,
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            height=asked.height,
            width=asked.width,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            # On the CPU, so that every rank of a replica, and every kind of GPU, draws the same.
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
    with progress.decode() as here:
        if here:
            yield _decode(pipeline, latents, asked.height, asked.width)


def _decode(pipeline: FluxPipeline, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
    """latents: [1, tokens, C], packed, as the pipeline's own end does it."""
    vae = pipeline.vae
    latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    image = vae.decode(latents, return_dict=False)[0]
    frames = pipeline.image_processor.postprocess(image, output_type="np")
    return (frames * 255).round().astype(np.uint8)
