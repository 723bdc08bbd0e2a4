"""A whole fleet on this machine's GPUs: jobs by REST in several plans, a cancel, a killed rank.

`python -m benchmarks.group --models FOLDER`, where FOLDER has wan2.1-t2v-1.3b (true_shapes.py).
Every plan runs twice, the second is printed. `--model shapes` alone tries it on a CPU.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.client import FINAL, Client
from cli.servers import free_port

STAGES = ("text_encode_s", "denoise_s", "vae_decode_s", "encode_s", "upload_s", "total_s")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--models", help="FLEET_MODELS_DIR; with it, benchmarks/models.toml")
    options.add_argument("--model", default="wan2.1-t2v-1.3b")
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--logs", type=Path, help="copy the logs there")
    asked = options.parse_args()
    with fleet_up(asked.ranks, asked.models, asked.logs) as (client, data):
        measure(client, asked.model, asked.ranks, data)


@contextlib.contextmanager
def fleet_up(
    ranks: int, models: str | None, logs: Path | None, **settings: str
) -> Iterator[tuple[Client, Path]]:
    """A fleet of `ranks` ranks, ready, and its data folder; its logs are copied to `logs`."""
    with tempfile.TemporaryDirectory() as data:
        url = f"http://127.0.0.1:{(port := free_port())}"
        environment = {**os.environ, **settings}
        if models:
            catalogue = Path(__file__).with_name("models.toml")
            environment.update(FLEET_MODELS=str(catalogue), FLEET_MODELS_DIR=models)
        began = time.monotonic()
        fleet = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli", "up", "--no-flower", "--data", data),
                *("--port", str(port), "--ranks", str(ranks)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert fleet.stdout is not None
        try:
            for line in fleet.stdout:
                print(f"{time.monotonic() - began:6.1f} s  {line}", end="", flush=True)
                if line == "ready\n":
                    break
            assert fleet.poll() is None, "the fleet does not come up"
            yield Client(url), Path(data)
        finally:
            fleet.send_signal(signal.SIGTERM)
            fleet.wait(60)
            if logs:
                logs.mkdir(parents=True, exist_ok=True)
            for log in (Path(data) / "logs").glob("*.log") if logs else ():
                (logs / log.name).write_bytes(log.read_bytes())


def measure(client: Client, model: str, ranks: int, data: Path) -> None:
    first = run(client, model, {"data": 1}, "a")
    print(f"first job, with load: {first['metrics'].get('load_s', 0):.1f} s of loading")
    print(f"{'plan':<12} {'  '.join(f'{s[:-2]:>11}' for s in STAGES)}  peak GiB by rank")
    one = table(client, model, {"data": 1}, "a")
    split = table(client, model, {"ulysses": ranks}, "a")
    halves = table(client, model, {"cfg": 2, "ulysses": ranks // 2}, "a")
    dealt = table(client, model, {"data": ranks}, ["a"] * ranks)
    for name, job in ((f"ulysses={ranks}", split), (f"cfg=2, ulysses={ranks // 2}", halves)):
        denoise = one["metrics"]["denoise_s"] / job["metrics"]["denoise_s"]
        print(f"{name} against one rank: denoising {denoise:.2f}x")
    hashes = [job["outputs"][0]["sha256"][:12] for job in (one, split, halves, dealt)]
    print(f"first output of each plan: {hashes}, {'equal' if len(set(hashes)) == 1 else 'differ'}")
    canceled(client, model, ranks)
    killed(client, model, ranks, data)


def run(client: Client, model: str, parallel: dict[str, int], prompt: Any) -> dict[str, Any]:
    question = {"prompt": prompt, "seed": 1}
    job = client.submit({"model": model, "input": question, "parallel": parallel})
    job = last(client, job["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def table(client: Client, model: str, parallel: dict[str, int], prompt: Any) -> dict[str, Any]:
    run(client, model, parallel, prompt)  # the first one makes the plan's communicators
    job = run(client, model, parallel, prompt)
    times = "  ".join(f"{job['metrics'][stage]:>11.2f}" for stage in STAGES)
    peaks = [f"{p / 2**30:.1f}" for p in job["metrics"]["peak_memory_bytes"].values()]
    name = ",".join(f"{k}={v}" for k, v in parallel.items())
    print(f"{name:<12} {times}  {' '.join(peaks)}", flush=True)
    return job


def last(client: Client, id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    for job in client.follow(id, 0.05):
        assert job["status"] in FINAL or job["status"] in ("queued", "running", "canceling")
    return job


def started(client: Client, model: str, ranks: int) -> str:
    """A long job in the middle of its denoising."""
    question: dict[str, Any] = {"prompt": "a", "num_inference_steps": 20}
    body = {"model": model, "input": question, "parallel": {"ulysses": ranks}}
    id: str = client.submit(body)["id"]
    for job in client.follow(id, 0.02):
        if job["progress"]["step"] >= 3:
            break
    return id


def canceled(client: Client, model: str, ranks: int) -> None:
    id = started(client, model, ranks)
    began = time.monotonic()
    client.call("POST", f"/v1/jobs/{id}/cancel")
    job = last(client, id)
    took = time.monotonic() - began
    step = job["progress"]["step"]
    print(
        f"cancel: {job['status']} after {took:.2f} s, {job['progress']['it_per_s']} it/s, {step=}"
    )


def killed(client: Client, model: str, ranks: int, data: Path) -> None:
    id = started(client, model, ranks)
    victim = rank_pids(data)[ranks - 1]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    noticed = 0.0
    for job in client.follow(id, 0.02):
        if not noticed and job["attempts"][0]["error"]:
            noticed = time.monotonic() - began
        if job["attempt"] == 2 and job["progress"]["stage"] == "denoise":
            break
    again = time.monotonic() - began
    job = last(client, id)
    print(
        f"kill -9 of a rank: noticed {noticed:.2f} s, denoising again {again:.1f} s after it; "
        f"{job['status']} at attempt {job['attempt']}, {job['attempts'][0]['error']['code']}"
    )


def rank_pids(data: Path) -> dict[int, int]:
    """rank -> pid: the processes that hold this fleet's rank logs open."""
    logs = {str(log): int(log.stem.split("-")[1]) for log in (data / "logs").glob("rank-*.log")}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                rank = logs.get(os.readlink(descriptor))
                if rank is not None:
                    found[rank] = int(folder.name)
    return found


if __name__ == "__main__":
    main()
