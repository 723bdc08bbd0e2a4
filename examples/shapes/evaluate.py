"""Does the model draw what it is asked? Prompts it was never trained on, and detectors, no judge.

`python -m examples.shapes.evaluate MODEL` prints a table, with the same model unguided and with
random weights beside it; --sheet draws the first results.
"""

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image, ImageDraw

from examples.shapes.data import FRAMES, SIDE, Scene, random_scene
from examples.shapes.detect import detect
from examples.shapes.model import fresh

BATCH = 20
ATTRIBUTES = ("colour", "background", "shape", "motion")


def held_out_scenes(count: int) -> list[Scene]:
    rng = Random(20_000)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def generate(
    pipeline: WanPipeline, scenes: list[Scene], guidance: float, steps: int, frames: int
) -> np.ndarray:
    """Clips, uint8 [N, frames, SIDE, SIDE, 3]; the seed of each is its number."""
    clips = []
    for first in range(0, len(scenes), BATCH):
        part = scenes[first : first + BATCH]
        made = pipeline(
            [scene.caption for scene in part],
            height=SIDE,
            width=SIDE,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(first + i) for i in range(len(part))],
            output_type="np",
        ).frames
        clips.append((np.asarray(made) * 255).round().astype(np.uint8))
    return np.concatenate(clips)


def scores(scenes: list[Scene], clips: np.ndarray) -> dict[str, float]:
    """The share of clips that have what was asked for; a picture's motion is not asked."""
    seen = [detect(clip) for clip in clips]
    asked = ATTRIBUTES if clips.shape[1] > 1 else ATTRIBUTES[:-1]
    right = np.array(
        [
            [getattr(scene, name) == getattr(found, name) for name in asked]
            for scene, found in zip(scenes, seen, strict=True)
        ]
    )
    return {**dict(zip(asked, right.mean(0), strict=True)), "all of it": right.all(1).mean()}


def sheet(scenes: list[Scene], clips: np.ndarray, columns: int = 3) -> Image.Image:
    """Each clip as five pictures side by side under its prompt."""
    width, height = 5 * 96 + 8, 96 + 18
    rows = -(-len(scenes) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    for i, (scene, clip) in enumerate(zip(scenes, clips, strict=True)):
        x, y = i % columns * width, i // columns * height
        ImageDraw.Draw(page).text((x + 2, y + 3), scene.caption, "black")
        for k, frame in enumerate(clip[:: (len(clip) - 1) // 4]):
            page.paste(Image.fromarray(frame).resize((96, 96)), (x + k * 96, y + 18))
    return page


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args(words)

    trained = WanPipeline.from_pretrained(asked.model, dtype=torch.float32)
    torch.manual_seed(0)
    untrained = fresh()
    scenes = held_out_scenes(asked.prompts)
    runs = [
        ("video", trained, asked.guidance, FRAMES),
        ("picture", trained, asked.guidance, 1),
        ("video, unguided", trained, 1.0, FRAMES),
        ("video, random weights", untrained, asked.guidance, FRAMES),
    ]
    for name, pipeline, guidance, frames in runs[: 2 if asked.no_baselines else None]:
        pipeline.to(asked.device)
        pipeline.set_progress_bar_config(disable=True)
        clips = generate(pipeline, scenes, guidance, asked.steps, frames)
        found = ", ".join(f"{what} {share:.1%}" for what, share in scores(scenes, clips).items())
        print(f"{name} (guidance {guidance:g}): {found}", flush=True)
        if asked.sheet and name == "video":
            sheet(scenes[:24], clips[:24]).save(asked.sheet)


if __name__ == "__main__":
    main()
