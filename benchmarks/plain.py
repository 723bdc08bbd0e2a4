"""Plain diffusers, as its documentation does it, from prompt to file: what the fleet is beside.

`python -m benchmarks.plain FOLDER`, or, split by diffusers' own Ulysses,
`torchrun --nproc-per-node N -m benchmarks.plain FOLDER`. Rank 0 prints seconds as one line of JSON.
With `--engine cache-dit` by that one's Ulysses, blocks compiled, none of its lossy caches.
Wan (VAE in float32, the fleet's ffmpeg settings) or Flux (PNG as Pillow does it, as the fleet), as
the folder says; bfloat16; a run of two steps before the clock starts.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKLWan,
    ContextParallelConfig,
    DiffusionPipeline,
    FluxPipeline,
    WanPipeline,
)

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
STAGES = ("text_encode_s", "denoise_s", "vae_decode_s", "encode_s")


def now() -> float:
    torch.cuda.synchronize()
    return time.monotonic()


def matmul_tflops(size: int = 8192, times: int = 20) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    began = now()
    for _ in range(times):
        a @ b
    return 2 * size**3 * times / (now() - began) / 1e12


def write(frames: np.ndarray, path: Path, fps: int) -> None:
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-")
    h264 = ("-c:v", "libx264", "-crf", "18", "-preset", "fast", "-rc-lookahead", "10")
    pixels = ("-pix_fmt", "yuv420p", "-threads", "16")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, *h264, *pixels]
    command += [str(path)]
    subprocess.run(command, input=(frames * 255).round().astype(np.uint8).tobytes(), check=True)


def film(pipe: WanPipeline, asked: argparse.Namespace, steps: int) -> Iterator[None]:
    """Stops at the end of each of STAGES; so does picture()."""
    embeds, negative = pipe.encode_prompt("a", max_sequence_length=512)
    yield
    latents = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        height=asked.height,
        width=asked.width,
        num_frames=81,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).frames
    yield
    config = pipe.vae.config
    mean, std = (
        torch.tensor(values, device="cuda").view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    video = pipe.vae.decode(latents.float() * std + mean, return_dict=False)[0]
    frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
    yield
    write(frames, Path("/tmp/plain.mp4"), 16)
    yield


def picture(pipe: FluxPipeline, asked: argparse.Namespace, steps: int) -> Iterator[None]:
    embeds, pooled, _ = pipe.encode_prompt("a", max_sequence_length=512)
    yield
    latents = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        height=asked.height,
        width=asked.width,
        num_inference_steps=steps,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images
    yield
    latents = pipe._unpack_latents(latents, asked.height, asked.width, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    image = pipe.vae.decode(latents, return_dict=False)[0]
    drawn = pipe.image_processor.postprocess(image, output_type="pil")[0]
    yield
    drawn.save("/tmp/plain.png")
    yield


def run(pipe: DiffusionPipeline, asked: argparse.Namespace, steps: int) -> dict[str, Any]:
    ends = [now()]
    for _ in (film if isinstance(pipe, WanPipeline) else picture)(pipe, asked, steps):
        ends.append(now())
        if len(ends) == 3 and dist.is_initialized() and dist.get_rank():
            return {}  # one rank decodes
    seconds = (end - began for began, end in pairwise(ends))
    return {
        **dict(zip(STAGES, seconds, strict=True)),
        "total_s": ends[-1] - ends[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--engine", choices=["diffusers", "cache-dit"], default="diffusers")
    asked = parser.parse_args()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(rank)
    parts, kind = {}, FluxPipeline
    if DiffusionPipeline.load_config(asked.folder)["_class_name"] == "WanPipeline":
        vae = AutoencoderKLWan.from_pretrained(asked.folder, subfolder="vae", dtype=torch.float32)
        parts, kind = {"vae": vae}, WanPipeline
    pipe = kind.from_pretrained(asked.folder, dtype=torch.bfloat16, **parts).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    if WORLD > 1:
        dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    if asked.engine == "cache-dit":
        import cache_dit

        split = cache_dit.ParallelismConfig(ulysses_size=WORLD)
        cache_dit.enable_cache(pipe, parallelism_config=split)
        pipe.transformer.compile_repeated_blocks(dynamic=False)
    elif WORLD > 1:
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=WORLD))
    run(pipe, asked, 2)
    took = run(pipe, asked, asked.steps)
    if rank == 0:
        name = f"{asked.engine} ulysses={WORLD}" if WORLD > 1 else asked.engine
        tflops = {} if WORLD > 1 else {"matmul_tflops": matmul_tflops()}
        print(json.dumps({"name": name, **took, **tflops}), flush=True)
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
