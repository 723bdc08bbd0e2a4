"""What LoRAs cost a compiled model: a job without, with one, at another scale, with two.

`python -m benchmarks.loras --models FOLDER`, where FOLDER has the model (true_shapes.py). It writes
two random LoRAs beside it, of ranks 16 and 32 on every linear layer of every block's attention and
feed-forward. Each question is asked twice: what the first takes longer is loading and compiling.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.group import fleet_up, last
from benchmarks.video import WAN

BLOCKS, WIDTH, FORWARD = 30, 1536, 8960  # of Wan 1.3B
LAYERS = {
    **{f"attn{n}.{name}": (WIDTH, WIDTH) for n in (1, 2) for name in ("to_q", "to_k", "to_v")},
    **{f"attn{n}.to_out.0": (WIDTH, WIDTH) for n in (1, 2)},
    "ffn.net.0.proj": (WIDTH, FORWARD),
    "ffn.net.2": (FORWARD, WIDTH),
}
ASKED: tuple[dict[str, float], ...] = (
    *({}, {"thin": 1.0}, {"thin": 0.5}, {"thick": 1.0}, {"thin": 0.5, "thick": 0.5}, {}),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", required=True, help="FLEET_MODELS_DIR")
    options.add_argument("--ranks", type=int, default=1)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--logs", type=Path)
    asked = options.parse_args()
    for name, rank in (("thin", 16), ("thick", 32)):
        write(Path(asked.models) / "loras" / f"{name}.safetensors", rank)
    files = []
    with fleet_up(asked.ranks, asked.models, asked.logs, FLEET_PRELOAD=WAN) as (client, _):
        for loras in ASKED:
            worn = [{"name": name, "scale": scale} for name, scale in loras.items()]
            question = {"prompt": "a", "seed": 1, "num_inference_steps": asked.steps, "loras": worn}
            for turn in ("first", "again"):
                job = last(client, client.submit({"model": WAN, "input": question})["id"])
                assert job["status"] == "succeeded", job["error"]
                took = job["metrics"]
                print(
                    f"{loras!s:<32}{turn:<7} load {took.get('load_s', 0):6.2f}"
                    f"  denoise {took['denoise_s']:6.2f}  whole {took['total_s']:6.2f}",
                    flush=True,
                )
            files.append(job["outputs"][0]["sha256"])
    print("without them, before and after:", "equal" if files[0] == files[-1] else "differ")
    print("different pictures:", len(set(files)), "of", len(ASKED) - 1)


def write(file: Path, rank: int) -> None:
    file.parent.mkdir(exist_ok=True)
    weights: dict[str, Any] = {}
    for block in range(BLOCKS):
        for layer, (inputs, outputs) in LAYERS.items():
            name = f"transformer.blocks.{block}.{layer}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, inputs).mul(0.02).bfloat16()
            weights[f"{name}.lora_B.weight"] = torch.randn(outputs, rank).mul(0.02).bfloat16()
    save_file(weights, file)


if __name__ == "__main__":
    main()
