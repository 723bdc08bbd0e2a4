"""Links to outputs that any HTTP client may follow, with no key: the storage's own, or, where it is
a folder, signed here and accepted by this API."""

import hmac
import re
import time
from typing import Any

from flask import g, request, url_for

from api.services import services
from jobs.record import Artifact, Job


def output_link(job: Job, artifact: Artifact) -> tuple[str, int] | None:
    """The URL and its life in seconds; None where the output's address needs no key anyway."""
    fleet = services()
    if (link := fleet.storage.link(artifact.key)) or fleet.keys is None:
        return link
    expires, place = int(time.time()) + fleet.settings.link_s, (job.id, artifact.index)
    signed: dict[str, Any] = {
        "expires": expires,
        "signature": _signature(*place, expires),
        "_external": True,
    }
    url = url_for("jobs.output", id=job.id, index=artifact.index, **signed)
    return url, fleet.settings.link_s


def linked_tenant() -> str | None:
    """The tenant whose output the request at hand is for, if it follows a link that was signed here
    for this very output and has not expired."""
    expires, signature = (request.args.get(name, "") for name in ("expires", "signature"))
    if request.endpoint != "jobs.output" or request.method not in ("GET", "HEAD"):
        return None
    if not re.fullmatch("[0-9]{1,12}", expires) or not re.fullmatch("[0-9a-f]{64}", signature):
        return None
    place: dict[str, str | int] = request.view_args or {}
    expected = _signature(place["id"], place["index"], int(expires))
    if not hmac.compare_digest(signature, expected) or int(expires) < time.time():
        return None
    return services().store.tenants.of(str(place["id"]))


def _signature(job: str | int, index: str | int, expires: int) -> str:
    """Of an output, its thumbnail included. expires: seconds since 1970."""
    if "link_secret" not in g:  # once a request: another process may have begun anew with Redis
        g.link_secret = services().store.tenants.link_secret()
    said = f"{job}/{index}/{expires}".encode()
    return hmac.digest(g.link_secret, said, "sha256").hex()
