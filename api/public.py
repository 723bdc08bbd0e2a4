"""The URL that clients know this API by, where a proxy stands before it."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from flask import Flask


class PublicUrl:
    """Links are built on it, and on nothing that a request says. Who has asked, and on which
    socket, stays as it was: auth.py and metrics.py look at that."""

    def __init__(self, app: Flask, url: str) -> None:
        """url: of FLEET_PUBLIC_URL."""
        self._inner = app.wsgi_app
        parts = urlsplit(url)
        self._scheme, self._host, self._prefix = parts.scheme, parts.netloc, parts.path

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if self._prefix and path.startswith(f"{self._prefix}/"):  # the proxy has left it there
            path = path.removeprefix(self._prefix)
        about = {"wsgi.url_scheme": self._scheme, "HTTP_HOST": self._host, "PATH_INFO": path}
        return self._inner({**environ, **about, "SCRIPT_NAME": self._prefix}, start_response)
