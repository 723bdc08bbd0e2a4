"""One video over 1, 2 and 4 GPUs: the fleet's plans beside plain diffusers, in one run.

`python -m benchmarks.video --models FOLDER`, where FOLDER has wan2.1-t2v-1.3b (true_shapes.py).
Whole jobs, from the request to the file in the storage. A run of two steps before each measurement.
"""

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.group import fleet_up, last
from cli.client import Client

STAGES = ("text_encode_s", "denoise_s", "vae_decode_s", "encode_file_s", "total_s")
MODEL = "wan2.1-t2v-1.3b"
FLOPS = {480: 280e12, 720: 1242e12}  # of a forward: linear layers and self-attention


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", required=True, help="FLEET_MODELS_DIR")
    options.add_argument("--ranks", type=int, default=4)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--width", type=int, default=832)
    options.add_argument("--height", type=int, default=480)
    options.add_argument("--logs", type=Path)
    asked = options.parse_args()
    print(f"{'':<24}{''.join(f'{s[:-2]:>13}' for s in STAGES)}  of matmul  peak GiB by rank")
    rows = [plain(asked, 1), plain(asked, asked.ranks)]
    tflops = rows[0]["matmul_tflops"]
    for row in rows:
        show(asked, row, tflops)
    with fleet_up(asked.ranks, asked.models, asked.logs, FLEET_PRELOAD=MODEL) as (client, _):
        for parallel in plans(asked.ranks):
            job(client, asked, parallel, 2)
            rows.append(job(client, asked, parallel, asked.steps))
            show(asked, rows[-1], tflops)
    one = next(row for row in rows if row["name"] == "data=1")
    for row in rows:
        against = [f"{r['total_s'] / row['total_s']:.2f}x of {r['name']}" for r in (rows[0], one)]
        print(f"{row['name']:<24} whole video: {', '.join(against)}")
    print("files:", {row["name"]: row["sha256"][:12] for row in rows if "sha256" in row})


def plans(ranks: int) -> list[dict[str, int]]:
    found = [{"data": 1}, {"cfg": 2}, {"ulysses": 2}]
    if ranks >= 4:
        found += [{"cfg": 2, "ulysses": ranks // 2}, {"ulysses": ranks}, {"cfg": 2, "ring": 2}]
    return found


def plain(asked: argparse.Namespace, ranks: int) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    size = ["--width", str(asked.width), "--height", str(asked.height)]
    folder = str(Path(asked.models) / MODEL)
    command = [sys.executable, *launcher, "-m", "benchmarks.plain", folder, *size]
    command += ["--steps", str(asked.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**row, "ranks": ranks, "peaks": [row["peak_gib"]]}


def job(
    client: Client, asked: argparse.Namespace, parallel: dict[str, int], steps: int
) -> dict[str, Any]:
    question = {"prompt": "a", "seed": 1, "num_inference_steps": steps}
    question.update(width=asked.width, height=asked.height)
    body = {"model": MODEL, "input": question, "parallel": parallel}
    done = last(client, client.submit(body)["id"])
    assert done["status"] == "succeeded", done["error"]
    metrics = done["metrics"]
    return {
        **{stage: metrics.get(stage, 0) for stage in STAGES},
        "total_s": (moment(done["finished_at"]) - moment(done["created_at"])).total_seconds(),
        "name": ", ".join(f"{k}={v}" for k, v in parallel.items()),
        "ranks": done["plan"]["width"],
        "peaks": [p / 2**30 for p in metrics["peak_memory_bytes"].values()],
        "sha256": done["outputs"][0]["sha256"],
    }


moment = datetime.fromisoformat


def show(asked: argparse.Namespace, row: dict[str, Any], tflops: float) -> None:
    """of matmul: the denoising's FLOPs a second and GPU, as a share of a matrix product's."""
    pace = 2 * asked.steps * FLOPS[asked.height] / row["denoise_s"] / row["ranks"] / 1e12
    times = "".join(f"{row[stage]:>13.2f}" for stage in STAGES)
    peaks = " ".join(f"{p:.1f}" for p in row["peaks"])
    print(f"{row['name']:<24}{times}  {pace / tflops:>9.2f}  {peaks}", flush=True)


if __name__ == "__main__":
    main()
