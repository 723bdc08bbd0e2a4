"""HTTP to checked addresses only, and within a time.

For each connection the name is looked up once, all its addresses are checked, and the connection
goes to one of those: a second look-up may be answered otherwise. TLS and Host stay the name's.
"""

import contextlib
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from jobs.addresses import Address, Resolve, check_addresses
from jobs.errors import UrlUnreachable
from jobs.settings import Network

_LATE = "The URL did not answer in time."


class Transport(httpx.BaseTransport):
    """httpcore's pool for httpx, whose own transport has no public place for a backend.

    end: of all that it does, by time.monotonic(). Raises: UrlRefused, UrlUnreachable.
    """

    def __init__(
        self, private: tuple[Network, ...], end: float, verify: ssl.SSLContext, resolve: Resolve
    ) -> None:
        backend = _Backend(private, end, resolve)
        self._pool = httpcore.ConnectionPool(ssl_context=verify, network_backend=backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        wanted = httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _our_words():
            answer = self._pool.handle_request(wanted)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _our_words():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


@contextlib.contextmanager
def _our_words() -> Iterator[None]:
    """httpcore's may quote what the other side said."""
    try:
        yield
    except httpcore.TimeoutException:
        raise UrlUnreachable(_LATE) from None
    except (httpcore.NetworkError, httpcore.ProtocolError):
        raise UrlUnreachable("The URL's host broke the connection, or speaks no HTTP.") from None


def _left(end: float, timeout: float | None) -> float:
    """Seconds until `end`, at most timeout. Raises: UrlUnreachable when there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise UrlUnreachable(_LATE)
    return left if timeout is None else min(left, timeout)


class _Backend(httpcore.SyncBackend):
    def __init__(self, private: tuple[Network, ...], end: float, resolve: Resolve) -> None:
        self._private, self._end, self._resolve = private, end, resolve

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
    ) -> httpcore.NetworkStream:
        found = self._look_up(host, timeout)
        check_addresses(found, self._private)
        for tried, address in enumerate(found):
            # A share of the time, so that one dead address does not hide the next.
            share = _left(self._end, timeout) / (len(found) - tried)
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                stream = super().connect_tcp(str(address), port, share, *rest, **more)
                return _Stream(stream, self._end)
        raise UrlUnreachable("The URL's host can't be connected to.")

    def _look_up(self, host: str, timeout: float | None) -> list[Address]:
        """In a thread, because getaddrinfo has no time-out."""
        thread = ThreadPoolExecutor(1)
        try:
            found = thread.submit(self._resolve, host).result(_left(self._end, timeout))
            return [ip_address(text) for text in found]
        except TimeoutError:
            raise UrlUnreachable(_LATE) from None
        except (OSError, UnicodeError):
            raise UrlUnreachable("The URL's host is not known.") from None
        finally:
            thread.shutdown(wait=False)


class _Stream(httpcore.NetworkStream):
    """Ends at `end` however slowly the other side drips: httpcore limits single reads only."""

    def __init__(self, stream: httpcore.NetworkStream, end: float) -> None:
        self._stream, self._end = stream, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._end, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._end, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._end, timeout)
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, left)
        except httpcore.ConnectError as error:
            if not isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise
            why = error.__cause__.verify_message
            raise UrlUnreachable(f"The certificate of the URL's host is refused: {why}.") from None
        return _Stream(stream, self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
