"""Trains the model from nothing: first the VAE, then text encoder and transformer on its latents.

`python -m examples.shapes.train FOLDER` goes on where an earlier call stopped and leaves the
finished pipeline in FOLDER/model. On N GPUs: `torchrun --nproc-per-node N -m examples.shapes.train
FOLDER`. README.md has the hardware, the time and the loss.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanPipeline
from torch import nn
from torch.nn import functional as F

from examples.shapes.data import SIDE, Scene, draw, random_caption, random_scene
from examples.shapes.model import embed, fresh, short_text, words_of
from examples.shapes.training import LOCAL_RANK, RANK, WORLD, Training, seed_of, whole_or_not

SHIFT = 3.0  # more of the training at high noise, where places and shapes are decided
UNCONDITIONAL = 0.12  # share of empty captions, for classifier-free guidance
CAPTIONS = 8  # ways to ask for each clip
LENGTHS = ((7, 0.7), (4, 0.1), (1, 0.2))  # latent frames of a batch: 25, 13 or 1 pictures


@dataclass(frozen=True)
class Phase:
    """steps of the VAE's training; batch: clips of the middle length, fewer of longer ones."""

    steps: int
    batch: int
    frames: tuple[int, ...]
    window: int


# Single pictures teach it to see, twenty times faster than clips do; windows around the shape show
# more edges than flat ground. Trained on 13 frames alone, its colours drifted from the 17th on.
PHASES = (
    Phase(1800, 256, (1,), 64),
    Phase(2000, 24, (9, 17, 25), 64),
    Phase(250, 6, (25,), SIDE),
)
SKETCH = (Phase(2, 4, (1,), 32), Phase(1, 1, (9,), 32))


def train_vae(
    pipeline: WanPipeline, training: Training, phases: tuple[Phase, ...], device: torch.device
) -> bool:
    vae = pipeline.vae
    generator = torch.Generator(device)
    plan = [phase for phase in phases for _ in range(phase.steps)]

    def loss_of(step: int) -> torch.Tensor:
        if step == phases[0].steps:
            _forget_the_past(vae)
        phase, rng = plan[step], random.Random(seed_of(step))
        generator.manual_seed(seed_of(step))
        torch.manual_seed(seed_of(step))
        frames = rng.choice(phase.frames)
        batch = max(1, phase.batch * phase.frames[len(phase.frames) // 2] // frames)
        scenes = [random_scene(rng) for _ in range(batch)]
        clips = draw(scenes, generator, frames, phase.window)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(clips).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        edges = sum(
            F.l1_loss(made.diff(dim=d), clips.diff(dim=d)) for d in (2, 3, 4) if clips.shape[d] > 1
        )
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return F.l1_loss(made, clips) + F.mse_loss(made, clips) + edges + 3e-4 * kl

    return training.run(loss_of)


@torch.no_grad()
def _forget_the_past(vae: nn.Module) -> None:
    """Single pictures train the last moment of a causal convolution; clips start from that."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == module.kernel_size[1] == 3:
            module.weight[:, :, :-1] = 0


@torch.no_grad()
def make_latents(
    pipeline: WanPipeline, file: Path, count: int, seed: int, device: torch.device
) -> tuple[list[Scene], torch.Tensor]:
    """Clips of the training set, and their normalised latents [count, 16, 7, 16, 16].

    Latents are drawn from the VAE's posterior, not its mean: normalised, a channel that says little
    is mostly noise then, and the transformer learns none of it. Their mean and deviation go into
    the VAE's config.
    """
    seed = seed * 1_000_000 + RANK  # each rank has clips of its own
    rng, generator = random.Random(seed), torch.Generator(device).manual_seed(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    if not file.exists():
        parts = []
        for first in range(0, count, 256):
            clips = draw(scenes[first : first + 256], generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                parts.append(pipeline.vae.encode(clips).latent_dist.sample().bfloat16())
        latents = torch.cat(parts)
        whole_or_not(file, lambda unfinished: torch.save(latents, unfinished))
    latents = torch.load(file, map_location=device)[:count]
    scenes = scenes[: len(latents)]  # a file of an earlier call may hold fewer
    sample = latents[:8192].float()
    moments = torch.stack([sample.mean((0, 2, 3, 4)), sample.square().mean((0, 2, 3, 4))])
    if WORLD > 1:
        dist.all_reduce(moments)
    mean, square = moments / WORLD
    std = (square - mean**2).sqrt()
    pipeline.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    for part in latents.split(4096):
        part.sub_(mean.view(-1, 1, 1, 1)).div_(std.view(-1, 1, 1, 1))
    return scenes, latents


def train_transformer(
    pipeline: WanPipeline,
    training: Training,
    scenes: list[Scene],
    latents: torch.Tensor,
    batch: int,
) -> bool:
    device, transformer = latents.device, pipeline.transformer
    if device.type == "cuda":
        for block in transformer.blocks:  # one compilation for them all
            block.compile(dynamic=False)
    lengths, shares = zip(*LENGTHS, strict=True)
    rng = random.Random(seed_of(0))
    captions = [random_caption(scene, rng) for scene in scenes for _ in range(CAPTIONS)]
    ids, mask = words_of(pipeline, [*captions, ""], device)
    nothing = len(captions)

    def loss_of(step: int) -> torch.Tensor:
        torch.manual_seed(seed_of(step))
        rows = torch.randint(len(scenes), (batch,), device=device)
        asked = rows * CAPTIONS + torch.randint(CAPTIONS, (batch,), device=device)
        asked[torch.rand(batch, device=device) < UNCONDITIONAL] = nothing
        # Of one length on all ranks: they wait for each other.
        clean = latents[:, :, : random.Random(step).choices(lengths, shares)[0]][rows].float()
        noise = torch.randn_like(clean)
        t = torch.sigmoid(torch.randn(batch, device=device))
        t = SHIFT * t / (1 + (SHIFT - 1) * t)
        sigma = t.view(-1, 1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text, processor.bias = embed(pipeline, (ids[asked], mask[asked]))
            flow = transformer(
                (1 - sigma) * clean + sigma * noise,
                timestep=t * 1000,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return F.mse_loss(flow.float(), noise - clean)

    with short_text(pipeline.transformer) as processor:
        return training.run(loss_of)


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=14000, help="of the transformer")
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--clips", type=int, default=50_000, help="that each rank learns from")
    parser.add_argument("--seed", type=int, default=1, help="of the clips; at least 1")
    parser.add_argument("--lr", type=float, default=1e-3, help="at one rank, at its highest")
    parser.add_argument("--begin", type=Path, help="with the weights of this pipeline, not anew")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds, in place of steps")
    parser.add_argument("--seconds", type=float, default=math.inf, help="then stop; call again")
    parser.add_argument("--sketch", action="store_true", help="a VAE of three steps, to try it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


def stages(asked: argparse.Namespace) -> Iterator[bool]:
    """Each yields whether it is finished."""
    device, until = torch.device(asked.device), time.monotonic() + asked.seconds
    if WORLD > 1:
        if device.type == "cuda":
            torch.cuda.set_device(LOCAL_RANK)
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    pipeline = (
        WanPipeline.from_pretrained(asked.begin, dtype=torch.float32) if asked.begin else fresh()
    )
    pipeline.to(device)
    vae = asked.folder / "vae"
    if vae.exists():
        pipeline.vae.load_state_dict(AutoencoderKLWan.from_pretrained(vae).state_dict())
    else:
        phases = SKETCH if asked.sketch else PHASES
        steps = sum(phase.steps for phase in phases)
        training = Training(asked.folder / "vae.pt", [pipeline.vae], steps, 4e-3, 0.995)
        training.limit(until)
        yield train_vae(pipeline, training, phases, device)
        if RANK == 0:
            whole_or_not(vae, pipeline.vae.save_pretrained)
    file = asked.folder / f"latents-{RANK}.pt"
    scenes, latents = make_latents(pipeline, file, asked.clips, asked.seed, device)
    modules = [pipeline.text_encoder, pipeline.transformer]
    lr = asked.lr * math.sqrt(WORLD)  # the batch grows with the ranks
    training = Training(asked.folder / "transformer.pt", modules, asked.steps, lr, 0.9995)
    training.limit(until, asked.budget)
    finished = train_transformer(pipeline, training, scenes, latents, asked.batch)
    if RANK == 0:  # also what it has learnt so far
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(asked.folder / "model", max_shard_size="5MB")
    yield finished


def main(words: list[str] | None = None) -> None:
    asked = arguments(words)
    asked.folder.mkdir(parents=True, exist_ok=True)
    finished = all(stages(asked))
    if WORLD > 1:
        dist.destroy_process_group()
    if RANK == 0:
        print("finished" if finished else "stopped; the same command goes on")


if __name__ == "__main__":
    main()
