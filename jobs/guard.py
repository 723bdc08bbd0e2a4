"""The guard against server-side request forgery: what is done with a URL from outside."""

import contextlib
import functools
import re
import socket
import ssl
import time
from ipaddress import ip_address

import httpx

from jobs.addresses import Resolve, addresses, check_addresses
from jobs.errors import UrlRefused, UrlTooLarge, UrlUnreachable
from jobs.settings import Settings
from jobs.transport import Transport

MOST_REDIRECTS = 3
# Labels of a name, or an IPv6 address; neither zones ("%eth0") nor percent-encoding.
_HOST = re.compile(r"(?i)[0-9a-f:.]*:[0-9a-f:.]*|([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")


def check_url(url: str | httpx.URL, settings: Settings) -> httpx.URL:
    """Raises: UrlRefused, for what is known without a connection. A name is not looked up."""
    try:
        parsed = httpx.URL(url)
        if not parsed.host:  # it fails for bad punycode, here or later
            raise UrlRefused("The URL names no host.")
    except (httpx.InvalidURL, ValueError):
        raise UrlRefused("The URL is malformed.") from None
    schemes = ("https", "http") if settings.fetch_http else ("https",)
    if parsed.scheme not in schemes:
        raise UrlRefused(f"The URL must begin with {' or '.join(s + '://' for s in schemes)}.")
    if parsed.userinfo:
        raise UrlRefused("The URL must hold no user and no password.")
    host, port = parsed.raw_host.decode("ascii"), parsed.port
    if not _HOST.fullmatch(host) or (port is not None and not 0 < port < 65536):
        raise UrlRefused("The URL's host or port is malformed.")
    try:
        numeric = addresses(host, socket.AI_NUMERICHOST)  # 127.1 and 0x7f000001 are addresses too
    except OSError:
        return parsed
    check_addresses(map(ip_address, numeric), settings.fetch_private)
    return parsed


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Once: to read the authorities takes 60 ms of a CPU."""
    return httpx.create_ssl_context()


def client(
    settings: Settings,
    timeout_s: float,
    *,
    verify: ssl.SSLContext | None = None,
    resolve: Resolve = addresses,
) -> httpx.Client:
    """For one errand: all that it does ends within timeout_s of now. It follows no redirects
    unless told to. The size of an answer has no limit, so take what it sends by stream().

    Raises, when used: UrlRefused, UrlUnreachable; none of httpx's for what the other side says.
    """

    def check_request(request: httpx.Request) -> None:
        check_url(request.url, settings)

    def check_redirect(answer: httpx.Response) -> None:
        """Before httpx reads the new URL, which fails in ways of its own."""
        if answer.has_redirect_location:
            try:
                check_url(answer.request.url.join(answer.headers["location"]), settings)
            except (UrlRefused, httpx.InvalidURL, ValueError):
                raise UrlRefused("The URL redirects to one that is refused.") from None

    return httpx.Client(
        transport=Transport(
            settings.fetch_private,
            time.monotonic() + timeout_s,
            verify or _trusted(),
            resolve,
        ),
        timeout=timeout_s,
        trust_env=False,
        headers={"User-Agent": "diffusion-fleet", "Accept-Encoding": "identity"},
        event_hooks={"request": [check_request], "response": [check_redirect]},
    )


def fetch(
    url: str,
    settings: Settings,
    *,
    max_bytes: int,
    timeout_s: float,
    verify: ssl.SSLContext | None = None,
    resolve: Resolve = addresses,
) -> tuple[bytes, str]:
    """The body, and the content type that it is declared as ("" if it is not).

    timeout_s: for all of it, redirects included. Raises: UrlRefused, UrlUnreachable.
    """
    with client(settings, timeout_s, verify=verify, resolve=resolve) as http:
        request = http.build_request("GET", check_url(url, settings))
        for _ in range(1 + MOST_REDIRECTS):
            # Not by httpx's own redirects: it reads their bodies whole, of any size.
            with contextlib.closing(http.send(request, stream=True)) as answer:
                if answer.next_request is None:
                    return _body(answer, max_bytes), answer.headers.get("content-type", "")
                request = answer.next_request
    raise UrlRefused(f"The URL redirects more than {MOST_REDIRECTS} times.")


def _body(answer: httpx.Response, max_bytes: int) -> bytes:
    if answer.status_code != 200:
        raise UrlUnreachable(f"The URL answers with status {answer.status_code}.")
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise UrlRefused("The URL's answer is compressed, which was not asked for.")
    too_large = UrlTooLarge(f"The URL's answer holds more than {max_bytes} bytes.")
    if int(answer.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)
