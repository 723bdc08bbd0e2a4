"""Text to video, or to a picture of one frame, by WanPipeline (Wan 2.1, https://arxiv.org/abs/2503.20314)."""

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from jobs.catalog import ModelSpec
from jobs.request import TextToImage, TextToVideo
from worker.rank.progress import ItemProgress


def load(spec: ModelSpec, source: str, device: torch.device) -> WanPipeline:
    # The VAE stays in float32: in bfloat16 Wan's loses detail that is seen.
    vae = AutoencoderKLWan.from_pretrained(
        source, subfolder="vae", dtype=torch.float32, use_safetensors=True
    )
    pipeline = WanPipeline.from_pretrained(
        source, vae=vae, dtype=getattr(torch, spec.dtype), use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def run(
    pipeline: WanPipeline,
    request: TextToVideo | TextToImage,
    prompt: str,
    seed: int,
    progress: ItemProgress,
) -> np.ndarray | None:
    asked = request.input
    with progress.stage("text_encode"):
        embeds, negative_embeds = pipeline.encode_prompt(
            prompt,
            negative_prompt=asked.negative_prompt,
            do_classifier_free_guidance=asked.guidance_scale > 1,
            max_sequence_length=512,
        )
    with progress.denoise(asked.num_inference_steps) as on_step_end:
        latents = pipeline(
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
    if not progress.lead:
        return None
    with progress.stage("vae_decode"):
        return _decode(pipeline, latents)


def _decode(pipeline: WanPipeline, latents: torch.Tensor) -> np.ndarray:
    """latents: [1, C, F, H, W], as the pipeline's own end does it."""
    vae = pipeline.vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    video = vae.decode(latents.to(vae.dtype) * std + mean, return_dict=False)[0]
    frames = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    return (frames * 255).round().astype(np.uint8)
