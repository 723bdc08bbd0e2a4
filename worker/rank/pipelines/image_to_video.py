"""Image to video by WanImageToVideoPipeline (Wan 2.1 and 2.2)."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from jobs.images import picture
from jobs.request import ImageToVideo
from worker.rank.pipelines.text_to_video import load, pictures
from worker.rank.progress import ItemProgress

__all__ = ["load", "run"]


def run(
    pipeline: WanImageToVideoPipeline,
    request: ImageToVideo,
    prompt: str,
    seed: int,
    progress: ItemProgress,
) -> Iterator[np.ndarray]:
    asked = request.input
    first = picture(asked.image).convert("RGB").resize((asked.width, asked.height))
    with progress.stage("text_encode"):
        embeds, negative_embeds = pipeline.encode_prompt(
            prompt,
            negative_prompt=asked.negative_prompt,
            do_classifier_free_guidance=asked.guidance_scale > 1,
            max_sequence_length=512,
        )
    with progress.denoise(asked.num_inference_steps) as on_step_end:
        latents = pipeline(
            image=first,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            height=asked.height,
            width=asked.width,
            num_frames=asked.frames,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).frames
    yield from pictures(pipeline, latents, progress)
