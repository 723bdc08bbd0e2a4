"""A job as a command line says it."""

import json
from pathlib import Path
from typing import Any

import click

from cli.client import Client

TOP_LEVEL = {"parallel", "priority", "deadline_s", "metadata", "output"}


def choose(client: Client, model: str | None, task: str | None, picture: str) -> dict[str, str]:
    """Model and task, where they are not said: the first ones of the catalogue that fit.

    picture: "image" or "mask", if the job has one, as jobs that only draw have not.
    """
    if model and (task or not picture):
        return {"model": model} | ({"task": task} if task else {})
    for card in client.models():
        for known in card["tasks"]:
            if model in (None, card["id"]) and task in (None, known) and _takes(known, picture):
                said = {"task": known} if task or picture else {}
                return {"model": str(card["id"]), **said}
    named = f"{model} takes" if model else f"no model does {task}, or takes"
    raise click.UsageError(f"{named} no {picture}" if picture else f"no model does {task}")


def _takes(task: str, picture: str) -> bool:
    fitting = {"": True, "image": task.startswith("image-to-"), "mask": task == "inpaint"}
    return fitting[picture]


def add_pictures(client: Client, body: dict[str, Any], **files: Path | None) -> None:
    """image=FILE, mask=FILE: uploads each, and names it in the job's input."""
    for name, file in files.items():
        if file is not None:
            body["input"][name] = {"upload": client.upload(file)}


def lora(said: str) -> dict[str, Any]:
    """NAME or NAME=SCALE."""
    name, equals, scale = said.partition("=")
    try:
        return {"name": name, "scale": float(scale)} if equals else {"name": name}
    except ValueError:
        raise click.UsageError(f"--lora {said}: write NAME=SCALE, a number") from None


def put(body: dict[str, Any], setting: str) -> None:
    """KEY=VALUE into input, or for a field beside input, or with a dot (parallel.ulysses=2)."""
    path, equals, text = setting.removeprefix("input.").partition("=")
    if not equals:
        raise click.UsageError(f"--set {setting}: write KEY=VALUE")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *parents, name = path.split(".")
    place = body if (parents[:1] or [name])[0] in TOP_LEVEL else body["input"]
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise click.UsageError(f"--set {setting}: {parent} holds a value, not fields")
    place[name] = value
