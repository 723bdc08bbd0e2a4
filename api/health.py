"""/livez, /readyz, /version: for load balancers and people; no key needed."""

from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from api.errors import away
from api.services import services
from jobs.errors import StorageUnavailable, StoreUnavailable
from jobs.version import VERSION
from jobs.workers import takes_jobs

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """This process answers."""
    return jsonify({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Ready when a job could be accepted and its result read. Workers that take jobs are named, not
    required."""
    fleet = services()
    checks = {"redis": _check(fleet.store.ping), "storage": _check(fleet.storage.ping)}
    ready = all(state == "ok" for state in checks.values())
    alive = fleet.store.workers.alive() if checks["redis"] == "ok" else {}
    workers = [name for name, about in alive.items() if takes_jobs(about)]
    body = {"status": "ok" if ready else "unavailable", "checks": checks, "workers": workers}
    return jsonify(body), 200 if ready else 503


@blueprint.get("/version")
def get_version() -> Response:
    """Of this software."""
    return jsonify({"version": VERSION})


def _check(call: Callable[[], None]) -> str:
    try:
        call()
    except (StoreUnavailable, StorageUnavailable) as error:
        return away(error)[1]
    return "ok"
