"""Ids in paths: what can be none of ours is unknown before anything is looked up by it."""

import re

from flask import Flask, request

from jobs.errors import NotFound

# A colon would lead to another key of Redis. Models are looked up in the catalogue.
ID = re.compile("[A-Za-z0-9_-]{1,80}")
ELSEWHERE = ("models",)
NAMES = ("id", "delivery")  # of the parts of a path that are ids


def register(app: Flask) -> None:
    """After auth, so that who has no key is told nothing else."""
    app.before_request(_check)


def _check() -> None:
    """Raises: NotFound."""
    if request.blueprint in ELSEWHERE:
        return
    for name, value in (request.view_args or {}).items():
        if name in NAMES and not ID.fullmatch(value):
            raise NotFound(f"There is nothing of the id {value[:80]!r}.")
