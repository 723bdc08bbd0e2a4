"""Lanes: a deep queue on a group of N ranks beside a group of one; a lone job beside plans by hand.

`python -m benchmarks.lanes --models FOLDER --ranks 4`; `--model shapes` alone tries it on a CPU.
"""

import argparse
import time
from typing import Any

from benchmarks.group import fleet_up, last
from cli.client import Client


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", help="FLEET_MODELS_DIR; with it, benchmarks/models.toml")
    options.add_argument("--model", default="wan2.1-t2v-1.3b")
    options.add_argument("--ranks", type=int, default=4)
    options.add_argument("--jobs", type=int, default=16)
    options.add_argument("--steps", type=int, default=10)
    asked = options.parse_args()
    seconds = {}
    for ranks in (asked.ranks, 1):
        with fleet_up(ranks, asked.models, None, FLEET_PRELOAD=asked.model) as (client, _):
            seconds[ranks] = measure(client, asked.model, ranks, asked.jobs, asked.steps)
    gain(asked.jobs, seconds[asked.ranks], seconds[1])


def measure(client: Client, model: str, ranks: int, jobs: int, steps: int) -> float:
    """Seconds of the queue."""
    took = deep_queue(client, model, jobs, steps)
    if ranks > 1:
        lone(client, model, ranks, steps)
    return took


def gain(jobs: int, many: float, one: float) -> None:
    print(f"{jobs} queued jobs: {one / many:.2f}x the throughput of one rank", flush=True)


def submit(client: Client, model: str, steps: int, parallel: Any) -> str:
    question = {"prompt": "a", "seed": 1, "num_inference_steps": steps}
    id: str = client.submit({"model": model, "input": question, "parallel": parallel})["id"]
    return id


def deep_queue(client: Client, model: str, count: int, steps: int) -> float:
    began = time.monotonic()
    # Of one rank's size each: "auto" would give the first, alone in the queue, all ranks.
    ids = [submit(client, model, steps, {"data": 1}) for _ in range(count)]
    jobs = [last(client, id) for id in ids]
    took = time.monotonic() - began
    assert all(job["status"] == "succeeded" for job in jobs)
    widths = [len(job["plan"]["lane"]) for job in jobs]
    print(f"{count} jobs in {took:.1f} s, ranks of each: {widths}", flush=True)
    return took


def lone(client: Client, model: str, ranks: int, steps: int) -> None:
    by_plan = {}
    for name, parallel in (
        ("auto", "auto"),
        ("ulysses", {"ulysses": ranks}),
        ("cfg", {"cfg": 2, "ulysses": ranks // 2}),
        ("auto again", "auto"),
    ):
        last(client, submit(client, model, steps, parallel))  # its first run makes communicators
        job = last(client, submit(client, model, steps, parallel))
        by_plan[name] = job["metrics"]["total_s"]
        print(f"a lone job, {name}: {by_plan[name]:.2f} s, {job['plan']['reason']}", flush=True)
    best = min(by_plan["ulysses"], by_plan["cfg"])
    ours = min(by_plan["auto"], by_plan["auto again"])
    print(f"a lone job takes {ours / best:.3f} of the best plan by hand")


if __name__ == "__main__":
    main()
