"""`fleet`: up | demo on this machine; all other commands speak HTTP to the API."""

import json
from pathlib import Path
from typing import Any

import click

from cli import body as asked
from cli import marks, show
from cli.client import ApiError, Client
from cli.keys import keys
from cli.servers import free_port
from cli.up import Stop
from cli.up import fleet as running_fleet

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PORT = click.IntRange(1, 65535)
PATIENCE_S = 5  # a person who mistyped the URL waits for no more


class Fleet(click.Group):
    """An error of the API is one line and exit code 2, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ApiError as error:
            click.echo(f"{error.code}: {error}", err=True)
            ctx.exit(2)


@click.group(cls=Fleet)
@click.option("--url", envvar="FLEET_URL", default="http://127.0.0.1:8000", show_default=True)
@click.option(
    "--api-key", envvar="FLEET_API_KEY", default="", help="As `fleet keys create` showed."
)
@click.version_option(package_name="diffusion-fleet")
@click.pass_context
def fleet(ctx: click.Context, url: str, api_key: str) -> None:
    """Image and video generation on your GPU nodes, as jobs that are never lost."""
    ctx.obj = Client(url.rstrip("/"), api_key, patience_s=PATIENCE_S)
    ctx.call_on_close(ctx.obj.close)


@fleet.command()
@click.option("--ranks", type=click.IntRange(1), help="Default: the GPUs, or 2 on CPU.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Of the API.")
@click.option("--data", type=Path, default=Path(".fleet"), show_default=True)
@click.option("--s3", is_flag=True, help="Store results in an embedded SeaweedFS, by S3.")
@click.option("--flower-port", type=PORT, default=5555, show_default=True)
@click.option("--no-flower", is_flag=True)
def up(
    ranks: int | None, port: int, data: Path, s3: bool, flower_port: int, no_flower: bool
) -> None:
    """Keep a whole fleet running on this machine until Ctrl-C."""
    dashboard = None if no_flower else flower_port
    try:
        with running_fleet(data.absolute(), port, ranks, s3, dashboard) as (supervisor, _url):
            click.echo("ready")
            supervisor.watch()
    except Stop:
        click.echo("stopped")


@fleet.command()
@click.option("--data", type=Path, default=Path(".fleet"), show_default=True)
@click.option("--s3", is_flag=True)
def demo(data: Path, s3: bool) -> None:
    """Bring a fleet up, send it two jobs, show what comes out, and take it down."""
    try:
        with running_fleet(data.absolute(), free_port(), 2, s3, free_port()) as (_, url):
            click.echo("ready\n")
            folder = data / "demo"
            folder.mkdir(exist_ok=True)
            client = Client(url)
            for body in show.DEMO:
                click.echo(f"asking {body['model']} for {body['input']['prompt']}")
                job = show.progress_bar(client, client.submit(body)["id"])
                files = show.download(client, job, folder, None)
                if job["task"] == "text-to-video":
                    show.strip(files[0], job["outputs"][0]["frames"])
                show.seconds(job)
                click.echo()
    except Stop:
        click.echo("stopped")
        raise SystemExit(130) from None


@fleet.command()
@click.argument("prompt", nargs=-1, required=True)
@click.option("--model", help="Default: the first of the catalogue that does the task.")
@click.option(
    "--task", help="Default: the model's first; with a picture, its first that takes one."
)
@click.option("--image", type=FILE, help="What to begin with.")
@click.option("--mask", type=FILE, help="White: what of the image to draw anew.")
@click.option("-n", "n", default=1, show_default=True, help="Outputs of each prompt.")
@click.option("--seed", type=int)
@click.option("-o", "out", type=Path, help="A file; or a folder, for several outputs.")
@click.option("--lora", "loras", multiple=True, metavar="NAME[=SCALE]", help="Of the model's.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other field.")
@click.option("--no-wait", is_flag=True, help="Only print the job's id.")
@click.pass_obj
def submit(
    client: Client,
    prompt: tuple[str, ...],
    model: str | None,
    task: str | None,
    image: Path | None,
    mask: Path | None,
    n: int,
    seed: int | None,
    out: Path | None,
    loras: tuple[str, ...],
    settings: tuple[str, ...],
    no_wait: bool,
) -> None:
    """Send PROMPTs as one job, show its progress, fetch its files."""
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"-o {out}: there is no folder {out.parent}")
    question: dict[str, Any] = {"prompt": prompt[0] if len(prompt) == 1 else list(prompt), "n": n}
    if seed is not None:
        question["seed"] = seed
    picture = "mask" if mask else "image" if image else ""
    body: dict[str, Any] = {**asked.choose(client, model, task, picture), "input": question}
    if loras:
        question["loras"] = list(map(asked.lora, loras))
    for setting in settings:
        asked.put(body, setting)
    asked.add_pictures(client, body, image=image, mask=mask)
    job = client.submit(body)
    click.echo(job["id"])
    for warning in job["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if not no_wait:
        try:
            job = show.progress_bar(client, job["id"])
        except KeyboardInterrupt:
            click.echo(f"\nthe job goes on: fleet watch {job['id']}, fleet cancel {job['id']}")
            raise SystemExit(130) from None
        show.download(client, job, Path("."), out)


@fleet.command()
@click.argument("id")
@click.pass_obj
def watch(client: Client, id: str) -> None:
    """Show a job's progress until it ends."""
    show.progress_bar(client, id)


@fleet.command()
@click.argument("id")
@click.option("--tail", type=click.IntRange(1, 500), default=100, show_default=True)
@click.pass_obj
def logs(client: Client, id: str, tail: int) -> None:
    """What a job's attempts said: the last lines."""
    show.lines(client.logs(id, tail))


@fleet.command()
@click.argument("id", required=False)
@click.pass_obj
def status(client: Client, id: str | None) -> None:
    """One job in full, or the latest ones, a line each."""
    if id:
        click.echo(json.dumps(client.job(id), indent=2))
    else:
        show.table(client.call("GET", "/v1/jobs")["data"])


@fleet.command()
@click.argument("id")
@click.pass_obj
def cancel(client: Client, id: str) -> None:
    """End a job: at once while it waits, within two denoising steps while it runs."""
    click.echo(client.cancel(id)["status"])


@fleet.group()
def dead() -> None:
    """The jobs that faults have ended, until somebody replays or deletes them."""


@dead.command("list")
@click.pass_obj
def dead_list(client: Client) -> None:
    """A line each: its id, its error, what was asked."""
    show.dead(client.dead())


@dead.command("show")
@click.argument("id")
@click.pass_obj
def dead_show(client: Client, id: str) -> None:
    """One of them in full: every attempt, with worker, plan, times and error."""
    click.echo(json.dumps(client.job(id), indent=2))


@dead.command("replay")
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def dead_replay(client: Client, ids: tuple[str, ...]) -> None:
    """Send new jobs that ask for the same as these."""
    for id in ids:
        # Whoever asks once more, since the answer got lost, gets no second job.
        click.echo(client.retry(id, f"replay-{id}")["id"])


@fleet.command()
@click.argument("file", type=Path)
def inspect(file: Path) -> None:
    """Print the request that made FILE, a PNG, WebP or MP4, as JSON; fleet's own files carry it."""
    try:
        request, source = marks.read(file)
    except ValueError as error:
        raise click.ClickException(f"{file} {error}.") from None
    if source:
        click.echo(f"digital source type: {source}", err=True)
    if request is None:
        raise click.ClickException(f"{file} does not say which request made it.")
    click.echo(request)


@fleet.command()
@click.argument("name", default="gpu")
@click.pass_obj
def pause(client: Client, name: str) -> None:
    """Have no worker take another job of the queue; those that run go on."""
    client.call("POST", f"/v1/queue/{name}/pause")
    click.echo(f"{name} is paused")


@fleet.command()
@click.argument("name", default="gpu")
@click.pass_obj
def resume(client: Client, name: str) -> None:
    """Have the workers take jobs of the queue again."""
    client.call("POST", f"/v1/queue/{name}/resume")
    click.echo(f"{name} goes on")


@fleet.command()
@click.pass_obj
def workers(client: Client) -> None:
    """List the workers: their ranks, and the models in their memory."""
    show.workers(client.call("GET", "/v1/workers")["data"])


@fleet.command()
@click.argument("worker")
@click.pass_obj
def drain(client: Client, worker: str) -> None:
    """Have WORKER take no more jobs, until it is started anew; those that run go on."""
    client.call("POST", f"/v1/workers/{worker}/drain")
    click.echo(f"{worker} takes no more jobs")


@fleet.command()
@click.pass_obj
def doctor(client: Client) -> None:
    """Say what of the fleet works; exit code 1 if something does not."""
    if not show.health(client):
        raise SystemExit(1)


fleet.add_command(keys)
