"""Image to video by WanImageToVideoPipeline (Wan 2.1 and 2.2)."""

from collections.abc import Iterator

import numpy as np
from diffusers import WanImageToVideoPipeline

from jobs.images import picture
from jobs.request import ImageToVideo
from worker.rank.pipelines import text_to_video
from worker.rank.pipelines.text_to_video import load
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
    yield from text_to_video.run(pipeline, request, prompt, seed, progress, image=first)
