"""One image in every plan, beside plain diffusers, and many images over all GPUs beside one GPU.

`python -m benchmarks.true_shapes FOLDER flux.1-dev && python -m benchmarks.images --models FOLDER`,
in one run on --ranks GPUs (4): plain diffusers on one and, by its own Ulysses, on all of them, from
the prompt to the PNG; then, on one live fleet, whole jobs from the request to the file in the
storage: one image in each plan, and --images (32) in one job, by the plan data=1 and by data=RANKS.
The fleet writes a PNG as it decodes: its "vae_decode" is plain's "vae_decode" and "encode".
Each plan runs two steps before its measurement. A CPU can try it, without plain diffusers:
`--plain --model tiny-image --models DIR --catalogue tests/fixtures/models.toml --width 64
--height 64 --steps 2`, where DIR is what tests/fixtures/tiny_more.py has written.
"""

import argparse
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.group import fleet_up
from benchmarks.video import beside, common, compare, fitting, job, read, show
from cli.client import Client

PLANS = ("data=1", "ulysses=2", "ulysses=4", "ulysses=2,ring=2")
# The fleet encodes a prompt once. Each of these is a new one, and the same to the model: to the
# tokenizers of true_shapes.py they are all one unknown letter after an "a".
PROMPTS = (f"a{chr(letter)}" for letter in count(0x4E00))


def main() -> None:
    options = common(__doc__, "flux.1-dev", (1024, 1024), PLANS)
    options.add_argument("--images", type=int, default=32, help="of the job that is dealt")
    options.add_argument(
        "--catalogue",
        type=Path,
        default=Path(__file__).with_name("models.toml"),
        help="FLEET_MODELS",
    )
    options.set_defaults(plain=["diffusers"])
    asked = options.parse_args()
    rows, tflops = beside(asked)
    settings = {
        "FLEET_MODELS": str(asked.catalogue.absolute()),
        "FLEET_MODELS_DIR": str(Path(asked.models).absolute()),
        "FLEET_PRELOAD": asked.model,
        # Equal pictures are to be equal files, whatever the prompt was.
        "FLEET_EMBED_PARAMETERS": "0",
    }
    with fleet_up(asked.ranks, None, asked.logs, **settings) as (client, _):
        for name in fitting(asked):
            rows.append(measured(client, asked, name, 1, 1))
            show(asked, rows[-1], tflops)
        compare(asked, rows)
        dealt(client, asked)


def dealt(client: Client, asked: argparse.Namespace) -> None:
    print(f"one job of {asked.images} images, stages summed over them:")
    rows = {}
    for ranks in (1, asked.ranks):
        row = measured(client, asked, f"data={ranks}", asked.ranks, asked.images)
        rows[ranks] = row
        show(asked, row, 0)  # the share of a matmul is reckoned for one image
    one, many = rows[1], rows[asked.ranks]
    for ranks, row in rows.items():
        each = row["total_s"] / asked.images
        print(f"data={ranks}: {row['total_s']:.2f} s, {each:.3f} s an image")
    gain = one["total_s"] / many["total_s"]
    print(f"{asked.images} images: {gain:.2f}x of one GPU, by {asked.ranks}")
    same = sum(a == b for a, b in zip(one["files"], many["files"], strict=True))
    print(f"files with the same bytes: {same} of {asked.images}", flush=True)


def measured(
    client: Client, asked: argparse.Namespace, name: str, warming: int, images: int
) -> dict[str, Any]:
    """A job of `images` images, after one of `warming` images of two steps in the same plan."""
    switch = drawn(client, asked, name, warming, 2)["plan_s"]
    return drawn(client, asked, name, images, asked.steps) | {"switch": switch}


def drawn(
    client: Client, asked: argparse.Namespace, name: str, images: int, steps: int
) -> dict[str, Any]:
    question = argparse.Namespace(**{**vars(asked), "prompt": next(PROMPTS), "n": images})
    return job(client, question, name, read(name), steps)


if __name__ == "__main__":
    main()
