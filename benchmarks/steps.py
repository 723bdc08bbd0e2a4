"""Where the time of a denoising step goes, in each plan: computing, talking, idling.

`torchrun --nproc-per-node N -m benchmarks.steps --models FOLDER`, where FOLDER has the model
(true_shapes.py). Each variant: the median step, then one step under torch's profiler, in ms of rank
0's GPU. talk: only NCCL's kernels run; idle: none does.
"""

import argparse
import collections
import functools
import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.video import read
from jobs.catalog import load_catalog
from jobs.parse import parse_request
from worker.plan import Plan
from worker.protocol import Run
from worker.rank.__main__ import join_group
from worker.rank.loop import placed
from worker.rank.models import Models
from worker.rank.parallel import Parallelism, attention
from worker.rank.progress import ItemProgress
from worker.rank.scheduling import never_wait

CATALOGUE = load_catalog(Path(__file__).with_name("models.toml"))
KINDS = {"attention": ("sdpa", "attn", "attention"), "nccl": ("nccl",), "matmul": ("gemm", "nvjet")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", required=True)
    options.add_argument("--model", default="wan2.1-t2v-1.3b")
    options.add_argument("--steps", type=int, default=7)
    options.add_argument("--height", type=int, default=480)
    options.add_argument("--width", type=int, default=832)
    options.add_argument(
        "variants", nargs="+", help="plan[/turns=N][/waits], like cfg=2,ulysses=2/turns=3"
    )
    asked = options.parse_args()
    timeout = timedelta(seconds=300)
    device = join_group(timeout)
    models = Models(CATALOGUE, Path(asked.models), device)
    parallelism = Parallelism(device, timeout)
    turns = attention._turns
    for variant in asked.variants:
        name, *more = variant.split("/")
        given = dict(part.partition("=")[::2] for part in more)
        attention._turns = constant(int(given["turns"])) if "turns" in given else turns
        measure(models, parallelism, asked, variant, Plan(**read(name)), "waits" in given)
    dist.destroy_process_group()


def constant(value: int) -> Callable[..., int]:
    return lambda *_: value


@torch.no_grad()
def measure(
    models: Models,
    parallelism: Parallelism,
    asked: argparse.Namespace,
    variant: str,
    plan: Plan,
    waits: bool,
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    question = {"prompt": "a", "seed": 1, "num_inference_steps": asked.steps}
    question |= {"height": asked.height, "width": asked.width}
    request, _ = parse_request({"model": asked.model, "input": question}, CATALOGUE)
    plan = Plan(**{**asdict(plan), "data": world // plan.replica_width})
    members = next(r for r in plan.replicas(range(world)) if rank in r)
    asked_json, lane = request.model_dump_json(), list(range(world))
    run = Run("job", 0, "a", 1, asked_json, asdict(plan), list(members), lane, "")
    progress = ItemProgress(run, parallelism.replica(run.members), lambda _message: None, set())
    pipeline = placed(run, progress, models, parallelism)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = pipeline.scheduler
    if waits:
        scheduler.step = scheduler.step.__wrapped__
    embeds, negative = pipeline.encode_prompt("a", max_sequence_length=512)
    ends: list[float] = []
    seen: collections.Counter[str] = collections.Counter()
    profiler = profile(activities=[ProfilerActivity.CUDA])
    with progress.denoise(asked.steps) as on_step_end:

        def timed(pipe: Any, step: int, at: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tensors = on_step_end(pipe, step, at, tensors)
            if step == asked.steps - 4:  # the next one tells where the CPU waits
                torch.cuda.set_sync_debug_mode("warn")
            if step == asked.steps - 3:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
                profiler.start()
            if step == asked.steps - 2:
                torch.cuda.synchronize()
                profiler.stop()
            ends.append(time.monotonic())
            return tensors

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                height=asked.height,
                width=asked.width,
                num_frames=request.input.frames,
                num_inference_steps=asked.steps,
                guidance_scale=5.0,
                generator=torch.Generator().manual_seed(1),
                output_type="latent",
                callback_on_step_end=timed,
            )
    for warning in caught:
        if "synchroniz" in str(warning.message):
            seen[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    if waits:
        never_wait(scheduler)
    if rank == 0:
        steps = [b - a for a, b in itertools.pairwise(ends)][1 : asked.steps - 4]
        print(f"{variant:<32} step {statistics.median(steps) * 1e3:8.1f}", end="  ")
        tell(profiler)
        print("    the CPU waits at", dict(seen), flush=True)
    dist.barrier()


def tell(profiler: Any) -> None:
    spans = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in profiler.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    totals: collections.Counter[str] = collections.Counter()
    by_name: collections.Counter[str] = collections.Counter()
    for start, end, name in spans:
        kind = next((k for k, w in KINDS.items() if any(x in name.lower() for x in w)), "other")
        totals[kind] += end - start
        by_name[name[:90]] += end - start
    busy = union([(s, e) for s, e, _ in spans])
    computing = union([(s, e) for s, e, name in spans if "nccl" not in name.lower()])
    whole = max(e for _, e, _ in spans) - spans[0][0]
    parts = {**totals, "talk": busy - computing, "idle": whole - busy, "whole": whole}
    print("  ".join(f"{k} {v / 1e3:.1f}" for k, v in parts.items()))
    for name, took in by_name.most_common(int(os.environ.get("TOP", "9"))):
        print(f"      {took / 1e3:8.2f}  {name}")


def union(spans: list[tuple[float, float]]) -> float:
    """The length of what at least one of them covers; spans are sorted by their starts."""

    def add(state: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
        total, until = state
        return total + max(0.0, span[1] - max(span[0], until)), max(until, span[1])

    return functools.reduce(add, spans, (0.0, 0.0))[0]


if __name__ == "__main__":
    main()
