"""What a URL answers is taken within a time and up to a size, or not at all."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from jobs.errors import UrlRefused, UrlUnreachable
from tests.fixtures.peer import Peer, Say, answer, get, says, tls


def drips(start: bytes) -> Say:
    def say(_: str) -> Iterator[bytes]:
        yield start
        for _ in range(400):
            time.sleep(0.02)
            yield b"x"

    return say


def test_the_body_of_a_redirect_is_not_read() -> None:
    endless = drips(answer(b"", "Location: /x", "Content-Length: 9999", status="302 Found"))
    with Peer(lambda path: [answer()] if path == "/x" else endless(path)) as peer:
        assert get(f"http://127.0.0.2:{peer.port}/", timeout_s=3)[0] == b"picture"


@pytest.mark.parametrize(
    "scheme,say",
    [
        ("http", drips(answer(b"", "Content-Length: 999"))),
        ("http", drips(answer(b"", "Transfer-Encoding: chunked") + b"3E7\r\n")),
        ("http", drips(b"HTTP/1.1 200 OK\r\nX-Header: ")),
        ("http", drips(b"HTTP/1.1 2")),
        ("http", lambda _: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
        ("http", lambda _: time.sleep(8) or []),
        ("https", drips(b"\x16\x03\x03\x40\x00\x02")),  # the head of a long TLS record
    ],
    ids=["body", "chunk", "headers", "status", "continues", "nothing", "handshake"],
)
def test_who_is_slow_is_left_at_the_deadline(scheme: str, say: Say) -> None:
    with Peer(say, listens=scheme == "http") as peer:
        begin = time.monotonic()
        with pytest.raises(UrlUnreachable, match="in time"):
            get(f"{scheme}://127.0.0.2:{peer.port}/", timeout_s=0.5)
        assert 0.4 < time.monotonic() - begin < 6


def test_the_deadline_is_one_for_all_redirects() -> None:
    def say(_: str) -> Iterator[bytes]:
        time.sleep(0.4)
        yield answer(b"", "Location: /", status="302 Found")

    with Peer(say) as peer, pytest.raises(UrlUnreachable, match="in time"):
        get(f"http://127.0.0.2:{peer.port}/", timeout_s=1)


def test_the_deadline_is_one_for_a_body_over_tls() -> None:
    with Peer(drips(answer(b"", "Content-Length: 999")), tls=tls()) as peer:
        begin = time.monotonic()
        with pytest.raises(UrlUnreachable, match="in time"):
            get(f"https://pictures.example:{peer.port}/", timeout_s=0.5)
        assert time.monotonic() - begin < 6


def test_the_deadline_is_one_for_the_name_and_the_handshake() -> None:
    def resolver(_: str) -> list[str]:
        time.sleep(4)
        return ["127.0.0.2"]

    with Peer(says()) as peer:  # it waits for the end of a request, and speaks no TLS
        begin = time.monotonic()
        with pytest.raises(UrlUnreachable, match="in time"):
            get(f"https://a.example:{peer.port}/", timeout_s=5, resolve=resolver)
        assert time.monotonic() - begin < 8.5


def test_a_name_server_that_is_slow_is_left_at_the_deadline() -> None:
    answered = threading.Event()
    begin = time.monotonic()
    with pytest.raises(UrlUnreachable, match="in time"):
        get("https://a.example/", timeout_s=0.5, resolve=lambda _: [str(answered.wait(8))])
    assert time.monotonic() - begin < 6
    answered.set()


CHUNKED = answer(b"", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "say",
    [
        drips(answer(b"", "Content-Length: 1001")),  # refused before it comes
        lambda _: itertools.chain([CHUNKED], itertools.repeat(b"5\r\n12345\r\n")),
        says(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1001),
    ],
    ids=["declared", "chunked", "undeclared"],
)
def test_what_is_too_large_is_refused(say: Say) -> None:
    with Peer(say) as peer, pytest.raises(UrlRefused, match="more than 1000 bytes"):
        get(f"http://127.0.0.2:{peer.port}/", timeout_s=3)


def test_what_is_just_small_enough_is_taken() -> None:
    with Peer(says(answer(b"x" * 1000))) as peer:
        assert get(f"http://127.0.0.2:{peer.port}/") == (b"x" * 1000, "")


def test_a_compressed_answer_is_refused() -> None:
    compressed = says(answer(b"x", "Content-Encoding: gzip"))
    with Peer(compressed) as peer, pytest.raises(UrlRefused, match="compressed"):
        get(f"http://127.0.0.2:{peer.port}/")


@pytest.mark.parametrize(
    "said",
    [
        *(answer(b"secret", status=f"{code} secret") for code in (201, 204, 304, 404, 500)),
        *(b"SSH-2.0-secret\r\n", b"", b"HTTP/1.1 200 OK\r\nsecret\r\n\r\n"),
        *(answer(b"secret", "Content-Length: 7"), answer(b"secret", "Content-Length: secret")),
        CHUNKED + b"secret\r\n",
    ],
)
def test_what_is_no_whole_good_answer_is_not_quoted(said: bytes) -> None:
    with Peer(says(said)) as peer, pytest.raises(UrlUnreachable) as unreachable:
        get(f"http://127.0.0.2:{peer.port}/")
    assert "secret" not in str(unreachable.value) and "127.0.0.2" not in str(unreachable.value)


def test_who_is_not_there_is_unreachable() -> None:
    with Peer(says()) as gone:
        port = gone.port
    with pytest.raises(UrlUnreachable, match="connected"):
        get(f"http://127.0.0.2:{port}/")
    with pytest.raises(UrlUnreachable, match="not known"):
        get("https://nobody.invalid/")
