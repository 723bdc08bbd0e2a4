"""One model's jobs in every plan, beside plain diffusers, in one run: seconds of stages, memory.

`python -m benchmarks.video --models FOLDER --plain diffusers`, where FOLDER has the model
(true_shapes.py). Whole
jobs, from the request to the file in the storage. Each plan runs two steps before its measurement.
With --queue N, then what lanes.py measures, on the same fleet.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import lanes
from benchmarks.group import canceled, fleet_up, killed, last
from cli.client import Client

STAGES = ("text_encode_s", "denoise_s", "vae_decode_s", "encode_s", "total_s")
WAN = "wan2.1-t2v-1.3b"
# Of a step, linear layers and self-attention: Wan's two passes over 81 frames, Flux's one.
FLOPS = {(WAN, 480): 560e12, (WAN, 720): 2484e12, ("flux.1-dev", 1024): 74.4e12}
PLANS = (
    *("data=1", "cfg=2", "ulysses=2", "cfg=2,ulysses=2", "ulysses=4", "cfg=2,ring=2"),
    *("ulysses=2,ring=2",),
)


def main() -> None:
    options = common(__doc__, WAN, (832, 480), PLANS)
    options.add_argument("--prompt", default="a")
    options.add_argument("--n", type=int, default=1, help="outputs of a job")
    options.add_argument("--no-preload", action="store_true", help="before the first job")
    options.add_argument("--queue", type=int, default=0, help="jobs, of 4 steps")
    options.add_argument("--faults", action="store_true", help="then a cancel, and a killed rank")
    asked = options.parse_args()
    rows, tflops = beside(asked)
    # Equal videos are to be equal files, whatever the prompt was.
    settings = {"FLEET_EMBED_PARAMETERS": "0"}
    if not asked.no_preload:
        settings["FLEET_PRELOAD"] = asked.model
    with fleet_up(asked.ranks, asked.models, asked.logs, **settings) as (client, data):
        for name in fitting(asked):
            asked.prompt += " "  # the same to the model, but never encoded before
            switch = job(client, asked, name, read(name), 2)["plan_s"]
            asked.prompt += " "
            rows.append(job(client, asked, name, read(name), asked.steps) | {"switch": switch})
            show(asked, rows[-1], tflops)
        compare(asked, rows)
        many = lanes.measure(client, asked.model, asked.ranks, asked.queue, 4) if asked.queue else 0
        if asked.faults:
            canceled(client, asked.model, asked.ranks)
            killed(client, asked.model, asked.ranks, data)
    if asked.queue:
        with fleet_up(1, asked.models, None, **settings) as (client, _):
            lanes.gain(asked.queue, many, lanes.deep_queue(client, asked.model, asked.queue, 4))


def common(
    doc: str, model: str, size: tuple[int, int], plans: Sequence[str]
) -> argparse.ArgumentParser:
    """What images.py may be asked for, too."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--models", help="FLEET_MODELS_DIR; with it, benchmarks/models.toml")
    options.add_argument("--model", default=model)
    options.add_argument("--ranks", type=int, default=4)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--width", type=int, default=size[0])
    options.add_argument("--height", type=int, default=size[1])
    options.add_argument("--plans", nargs="+", default=plans, help="the first is compared with")
    options.add_argument("--plain", nargs="*", default=[], help="engines beside it; Wan and Flux")
    options.add_argument("--logs", type=Path)
    return options


def beside(asked: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """The table's head and the rows of --plain; the TFLOPS of a matrix product, 0 without."""
    print(f"{'':<24}{''.join(f'{s[:-2]:>13}' for s in STAGES)}  of matmul  peak GiB by rank")
    rows: list[dict[str, Any]] = []
    tflops = 0.0
    for engine in asked.plain:
        for ranks in sorted({1, asked.ranks} if engine == "diffusers" else {asked.ranks}):
            if row := plain(asked, ranks, engine):
                rows.append(row)
                tflops = row.get("matmul_tflops", tflops)
                show(asked, row, tflops)
    return rows, tflops


def fitting(asked: argparse.Namespace) -> list[str]:
    """Of the plans, those that the ranks are enough for."""
    return [name for name in asked.plans if prod(map(int, read(name).values())) <= asked.ranks]


def compare(asked: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    one = next(row for row in rows if "files" in row)  # the first plan
    for row in rows:
        peers = {r["name"]: r["total_s"] / row["total_s"] for r in (rows[0], one)}
        against = ", ".join(f"{gain:.2f}x of {name}" for name, gain in peers.items())
        memory = max(row["peaks"]) / max(one["peaks"])
        print(f"{row['name']:<24} whole job: {against}; memory {memory:.2f} of {one['name']}")
    switches = (f"{row['name']} {row['switch'] * 1000:.1f}" for row in rows if "switch" in row)
    print("milliseconds to put a plan in place of the one before:", "; ".join(switches))
    files = {row["name"]: row["files"][0][:12] for row in rows if "files" in row}
    print("files:", files, flush=True)


def read(plan: str) -> dict[str, int | bool]:
    """'cfg=2,ulysses=2,shard'"""
    parts = (part.partition("=") for part in plan.split(","))
    return {name: int(degree) if equals else True for name, equals, degree in parts}


def plain(asked: argparse.Namespace, ranks: int, engine: str) -> dict[str, Any] | None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    size = ["--width", str(asked.width), "--height", str(asked.height)]
    folder = str(Path(asked.models) / asked.model)
    command = [sys.executable, *launcher, "-m", "benchmarks.plain", folder, *size]
    command += ["--steps", str(asked.steps), "--engine", engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{engine} on {ranks} GPUs failed")
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**row, "ranks": ranks, "peaks": [row["peak_gib"]]}


def job(
    client: Client,
    asked: argparse.Namespace,
    name: str,
    parallel: dict[str, int | bool],
    steps: int,
) -> dict[str, Any]:
    question = {"prompt": asked.prompt, "seed": 1, "num_inference_steps": steps, "n": asked.n}
    question.update(width=asked.width, height=asked.height)
    body = {"model": asked.model, "input": question, "parallel": parallel}
    done = last(client, client.submit(body)["id"])
    assert done["status"] == "succeeded", done["error"]
    metrics = done["metrics"]
    return {
        **{stage: metrics.get(stage, 0) for stage in (*STAGES, "plan_s")},
        "total_s": (moment(done["finished_at"]) - moment(done["created_at"])).total_seconds(),
        "name": name,
        "ranks": done["plan"]["width"],
        "peaks": [p / 2**30 for p in metrics["peak_memory_bytes"].values()],
        "files": [output["sha256"] for output in done["outputs"]],
    }


moment = datetime.fromisoformat


def show(asked: argparse.Namespace, row: dict[str, Any], tflops: float) -> None:
    """of matmul: the denoising's FLOPs a second and GPU, as a share of a matrix product's."""
    flops = FLOPS.get((asked.model, asked.height), 0)
    pace = asked.steps * flops / row["denoise_s"] / row["ranks"] / 1e12
    times = "".join(f"{row[stage]:>13.2f}" for stage in STAGES)
    peaks = " ".join(f"{p:.1f}" for p in row["peaks"])
    share = f"{pace / tflops:>9.2f}" if tflops else f"{'':>9}"
    print(f"{row['name']:<24}{times}  {share}  {peaks}", flush=True)


if __name__ == "__main__":
    main()
