"""`fleet keys`: the file of API keys, a line of JSON for each, which the API reads (api/keys.py).

A key is shown once; the file has its SHA-256.
"""

import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

Line = dict[str, Any]
SCOPES = ("read", "write", "admin")
LIMITS = ("per_minute", "active_jobs", "gpu_seconds_per_day")


@click.group()
@click.option(
    "--file",
    type=Path,
    envvar="FLEET_API_KEYS_FILE",
    help="Where the API reads them: FLEET_API_KEYS_FILE.",
)
@click.pass_context
def keys(ctx: click.Context, file: Path | None) -> None:
    """The keys of the API: whose they are, what they may, and how much."""
    ctx.obj = file


def of_file(command: Callable[..., None]) -> Callable[..., None]:
    """Not the group's own affair: it would ask for the file before it shows a command's help."""

    @click.pass_obj
    @functools.wraps(command)
    def run(file: Path | None, /, **words: Any) -> None:
        if file is None:
            raise click.UsageError("Missing option '--file', or FLEET_API_KEYS_FILE.")
        command(file, **words)

    return run


@keys.command()
@click.option("--tenant", required=True)
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=SCOPES[:2])
@click.option("--per-minute", type=click.IntRange(1), help="Requests of the tenant.")
@click.option("--active-jobs", type=click.IntRange(1), help="Jobs of the tenant that are not over.")
@click.option("--gpu-seconds-per-day", type=click.FloatRange(0, min_open=True))
@of_file
def create(file: Path, /, tenant: str, scopes: tuple[str, ...], **limits: float | None) -> None:
    """Print a new key, this once."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", tenant):
        raise click.UsageError("--tenant: letters, digits, '_', '.' and '-', at most 64")
    key = f"fleet_{secrets.token_urlsafe(32)}"
    line = {
        "id": f"key_{secrets.token_hex(6)}",
        "tenant": tenant,
        "scopes": list(scopes),
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "created_at": _now(),
        **{name: limit for name, limit in limits.items() if limit is not None},
    }
    with _changed(file) as lines:
        lines.append(line)
    click.echo(key)


@keys.command("list")
@of_file
def show(file: Path) -> None:
    """A line each, without the keys themselves."""
    if not file.exists():
        raise click.ClickException(f"there is no file {file}")
    for line in _read(file):
        known = ", ".join(f"{name} {line[name]:g}" for name in LIMITS if line.get(name))
        state = f"revoked {line['revoked_at']}" if line.get("revoked_at") else known
        click.echo(f"{line['id']}  {line['tenant']:<16} {','.join(line['scopes']):<17} {state}")


@keys.command()
@click.argument("id")
@of_file
def revoke(file: Path, id: str) -> None:
    """The API takes it no more, from its next request on."""
    with _changed(file) as lines:
        found = [line for line in lines if line["id"] == id]
        for line in found:
            line.setdefault("revoked_at", _now())  # it stays in the list
    if not found:
        raise click.ClickException(f"there is no key {id} in {file}")
    click.echo(f"{id} is revoked")


@contextmanager
def _changed(file: Path) -> Iterator[list[Line]]:
    """The lines, written back when the context ends; nobody else changes them meanwhile."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = _read(file)
            yield lines
            fresh = file.with_suffix(".tmp")
            fresh.touch(0o600)
            _own_alike(file, fresh)
            fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
            fresh.replace(file)  # the API never reads half of it
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _own_alike(old: Path, new: Path) -> None:
    """The API may run as somebody else, who was given the file."""
    if old.exists():
        about = old.stat()
        new.chmod(about.st_mode & 0o777)
        with suppress(PermissionError):
            os.chown(new, about.st_uid, about.st_gid)


def _read(file: Path) -> list[Line]:
    try:
        return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{file} is no file of keys: {error}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
