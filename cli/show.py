"""What the commands print."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from cli.client import ApiError, Client, file_name
from cli.types import Job

DEMO: list[dict[str, Any]] = [
    {
        "model": "shapes",
        "task": "text-to-video",
        "input": {"prompt": "a red circle moving left on a blue background", "seed": 1},
    },
    {
        "model": "shapes",
        "task": "text-to-image",
        "input": {
            "prompt": ["a yellow square on a purple background", "a green heart on white"],
            "seed": 1,
        },
    },
]
STAGES = ("queue", "load", "text_encode", "denoise", "vae_decode", "encode", "upload")
AWAY_S = 60  # the API, while a job runs
STRIP = 7  # pictures side by side


def progress_bar(client: Client, id: str) -> Job:
    """The job, when it has ended. Raises: SystemExit 1, with the reason, unless it succeeded."""
    client.patience_s = AWAY_S
    shown = ""
    with click.progressbar(length=1000, label=id, item_show_func=_where, width=30) as bar:
        for job in client.watch(id):
            bar.update(max(0, int(job["progress"]["value"] * 1000) - bar.pos), job)
            if not sys.stdout.isatty() and _where(job) != shown:  # there click draws no bar
                shown = _where(job)
                click.echo(f"  {job['progress']['value']:.0%} {shown}")
    if job["status"] != "succeeded":
        error = job["error"] or {"code": job["status"], "message": "no result"}
        click.echo(f"{job['status']}: {error['code']}: {error['message']}", err=True)
        raise SystemExit(1)
    return job


def _where(job: Job | None) -> str:
    if job is None:
        return ""
    progress = job["progress"]
    if job["status"] != "running" or not progress["stage"]:
        return str(job["status"])
    steps = f" {progress['step']}/{progress['steps']}" if progress["steps"] else ""
    return f"{progress['stage']}{steps}"


def download(client: Client, job: Job, folder: Path, out: Path | None) -> list[Path]:
    """Fetches every output and says where it lies. out: a file, or a folder for several."""
    outputs, paths = job["outputs"], []
    if out is not None and (len(outputs) > 1 or out.is_dir()):
        folder, out = out, None
        folder.mkdir(parents=True, exist_ok=True)
    for output in outputs:
        path = out or folder / file_name(job, output)
        client.fetch(job["id"], output, path)
        click.echo(f"{path.absolute()}  {output['bytes']} bytes, seed {output['seed']}")
        paths.append(path)
    return paths


def dead(jobs: Iterable[Job]) -> None:
    """A line each."""
    for job in jobs:
        error, prompt = job["error"], job["input"]["prompt"]
        said = f"{error['code']}: {error['message'][:60]}" if error else ""
        click.echo(f"{job['id']}  {said}  {str(prompt)[:40]!r}")


def lines(log: list[dict[str, Any]]) -> None:
    for line in log:
        who = "worker" if line["rank"] is None else f"rank {line['rank']}"
        click.echo(f"{line['at']}  {line['attempt']}  {who:<7} {line['level']}: {line['message']}")


def workers(cards: list[dict[str, Any]]) -> None:
    """A line each, and one for each GPU."""
    for card in cards:
        state = "ready" if card["ready"] else card["draining"] or "its group restarts"
        loaded = ", ".join(card["loaded"]) or "nothing"
        click.echo(f"{card['id']}  {card['size']} ranks  {state}  in memory: {loaded}")
        for rank in card["ranks"]:
            if rank.get("temperature_c") is not None:
                used, whole = (rank[n] / 1e9 for n in ("memory_used_bytes", "memory_bytes"))
                busy = f"{rank['utilization_percent']} %, {rank['temperature_c']} °C"
                click.echo(f"  {rank['device']}  {busy}, {used:.1f} of {whole:.1f} GB")


def seconds(job: Job) -> None:
    """What each stage took, in the order of the flow, summed over the outputs."""
    metrics = job["metrics"]
    took = [f"{stage} {metrics[stage + '_s']:.1f} s" for stage in STAGES if stage + "_s" in metrics]
    click.echo(", ".join(took))


def strip(video: Path, frames: int) -> None:
    """Pictures of a video side by side, and where they lie."""
    # Late: it comes with a worker, and only the demo, which has one, draws strips.
    import imageio_ffmpeg

    path = video.with_suffix(".strip.png")
    chosen = sorted({round(i * (frames - 1) / (STRIP - 1)) for i in range(STRIP)})
    pictures = "+".join(f"eq(n\\,{frame})" for frame in chosen)
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(video)),
        *("-vf", f"select={pictures},tile={len(chosen)}x1", "-frames:v", "1", str(path)),
    ]
    subprocess.run(command, check=True)
    click.echo(f"{path.absolute()}  the video as a strip")


def table(jobs: list[Job]) -> None:
    for job in jobs:
        prompt = job["input"]["prompt"]
        text = prompt if isinstance(prompt, str) else f"{prompt[0]} (+{len(prompt) - 1})"
        done = f"{job['progress']['value']:.0%}"
        click.echo(f"{job['id']}  {job['status']:<9} {done:>4}  {job['model']:<16} {text[:50]}")


def health(client: Client) -> bool:
    """A line a check; whether all is well."""
    lines: list[tuple[bool, str]] = []
    try:
        release = client.call("GET", "/version")["version"]
        lines.append((True, f"api {release}"))
        lines += _parts(client)
    except ApiError as error:
        lines.append((False, f"api: {error}"))
    for good, line in lines:
        click.echo(f"{'ok  ' if good else 'FAIL'} {line}")
    return all(good for good, _ in lines)


def _parts(client: Client) -> list[tuple[bool, str]]:
    ready = client.health()
    lines = [(state == "ok", f"{name}: {state}") for name, state in ready["checks"].items()]
    workers = ready["workers"]
    lines.append((bool(workers), f"workers: {', '.join(workers) or 'none'}"))
    for model in client.models():
        count = model["workers_ready"]
        lines.append((count > 0, f"model {model['id']}: {count} workers ready"))
    return lines
