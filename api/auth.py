"""Who asks: the caller that a key stands for, his scopes and limits; and when no key is needed."""

import functools
import ipaddress
import socket
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from flask import Flask, Response, g, request

from api.keys import Caller, Scope
from api.links import linked_tenant
from api.services import services
from api.sockets import listening
from jobs.batches import Asker
from jobs.errors import Forbidden, RateLimited, SettingsError, Unauthorized

P = ParamSpec("P")
R = TypeVar("R")
ANYONE = Caller(id="none", tenant="default", scopes=frozenset({"admin"}))

READS = ("GET", "HEAD", "OPTIONS")
# Where it is not a matter of the method: who may ask for deliveries may verify them.
SCOPES: dict[str, Scope] = {"webhooks.secret": "write"}


def register(app: Flask) -> None:
    """Raises: SettingsError, where anybody beyond this machine could ask without a key."""
    settings = app.extensions["fleet"].settings
    if not settings.api_keys_file and not settings.api_open:
        for opened in listening():
            if opened.family == socket.AF_UNIX:
                continue
            address = opened.getsockname()[0]
            if not ipaddress.ip_address(address).is_loopback:
                raise SettingsError(
                    f"Without FLEET_API_KEYS_FILE the API listens on loopback, not on {address}; "
                    "FLEET_API_OPEN=1 if its port is protected otherwise."
                )
    app.before_request(_ask)
    app.after_request(_tell_limit)


def caller() -> Caller:
    """Of the request at hand."""
    return cast(Caller, g.caller)


def tenant() -> str:
    return caller().tenant


def asker() -> Asker:
    """For the store, of new jobs."""
    who = caller()
    return Asker(who.tenant, who.id, who.active_jobs, who.gpu_seconds_per_day)


def admin(view: Callable[P, R]) -> Callable[P, R]:
    """For a view that is the operator's."""

    @functools.wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        need("admin")
        return view(*args, **kwargs)

    return guarded


def _ask() -> None:
    g.caller = ANYONE
    if not request.path.startswith("/v1/"):
        return
    keys = services().keys
    if keys is None:
        _refuse_from_afar()
        _refuse_other_sites()
    else:
        kind, _, secret = request.headers.get("Authorization", "").partition(" ")
        known = keys.caller(secret.strip()) if kind.lower() == "bearer" else None
        if known is None and (owner := linked_tenant()):
            known = Caller(id="link", tenant=owner, scopes=frozenset({"read"}))
        if known is None:
            if "signature" in request.args:
                raise Unauthorized("This link has expired, or is not whole: ask for the job again.")
            raise Unauthorized("Send a key of this fleet as `Authorization: Bearer KEY`.")
        g.caller = known
    need(SCOPES.get(request.endpoint or "") or ("read" if request.method in READS else "write"))
    if limit := caller().per_minute or services().settings.rate_per_minute:
        g.limit, (g.left, g.reset_s) = limit, services().store.tenants.count(tenant(), limit)
        if g.left < 0:
            detail = f"More than {limit} requests a minute."
            raise RateLimited(detail, retry_after_s=g.reset_s, limit=limit)


def _refuse_from_afar() -> None:
    """Where the sockets were opened after register() had looked (gunicorn --preload, flask run)."""
    connection = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
    if connection is None or services().settings.api_open or connection.family == socket.AF_UNIX:
        return
    if not ipaddress.ip_address(connection.getsockname()[0]).is_loopback:
        raise Forbidden("Without FLEET_API_KEYS_FILE this API answers on loopback only.")


def _refuse_other_sites() -> None:
    """A page from elsewhere has its visitor's browser ask this machine, or has its own name lead
    here: without a key nothing else tells it from him."""
    settings, host = services().settings, _host(f"//{request.host}")
    if not (settings.api_open or _is_ours(host)):
        raise Forbidden(
            f"Without FLEET_API_KEYS_FILE this API answers to localhost, not to {host[:80]!r}; "
            "FLEET_PUBLIC_URL gives it another name."
        )
    origin = request.headers.get("Origin")
    if origin is not None and _host(origin) != host and not _is_ours(_host(origin)):
        raise Forbidden(f"Without FLEET_API_KEYS_FILE no page of {origin[:80]!r} may ask.")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_ours(host: str) -> bool:
    if host in ("localhost", _host(services().settings.public_url or "")):
        return bool(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def need(scope: Scope) -> None:
    """Raises: Forbidden."""
    if not caller().may(scope):
        raise Forbidden(f"This key has not the scope {scope!r}.")


def _tell_limit(response: Response) -> Response:
    told = "RateLimit-Limit" in response.headers  # of the limit that refused, if one has
    if not told and (limit := g.get("limit")):
        response.headers["RateLimit-Limit"] = str(limit)
        response.headers["RateLimit-Remaining"] = str(max(0, g.left))
        response.headers["RateLimit-Reset"] = str(g.reset_s)
    return response
