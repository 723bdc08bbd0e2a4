"""The callers of benchmarks/api.py, as a process of their own; it prints JSON.

`python -m benchmarks.api_load submit HOST PORT CONNECTIONS REQUESTS`: each connection sends one job
after the other. `… streams HOST PORT LIVEZ ID…`: follows each job, and asks /livez meanwhile.
Sockets and no HTTP library: what the callers take of two cores is missing at the servers.
"""

import json
import selectors
import socket
import sys
import threading
import time

BODY = json.dumps(
    {
        "model": "shapes",
        "input": {"prompt": "a red circle moving left", "seed": 1, "num_frames": 25},
        "metadata": {"user": "u1"},
    }
).encode()


def main() -> None:
    what, host, port, *rest = sys.argv[1:]
    if what == "submit":
        answer = submit((host, int(port)), int(rest[0]), int(rest[1]))
    else:
        answer = streams((host, int(port)), int(rest[0]), rest[1:])
    print(json.dumps(answer))


def submit(address: tuple[str, int], connections: int, requests: int) -> dict[str, object]:
    """Milliseconds of each request, and the seconds of all."""
    took: list[float] = []
    each = requests // connections
    head = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()

    def caller(number: int) -> None:
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for count in range(each):
                key = f"Idempotency-Key: {time.time_ns()}-{number}-{count}\r\n".encode()
                began = time.monotonic()
                connection.sendall(
                    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + key + head + BODY
                )
                assert answered(connection) == 202
                took.append((time.monotonic() - began) * 1000)

    callers = [threading.Thread(target=caller, args=(n,)) for n in range(connections)]
    began = time.monotonic()
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert len(took) == each * connections, "a caller failed"
    return {"ms": took, "seconds": time.monotonic() - began}


def streams(address: tuple[str, int], times: int, ids: list[str]) -> dict[str, object]:
    """Milliseconds of each /livez, and how many events came meanwhile."""
    heard, over = [0], threading.Event()
    selector = selectors.DefaultSelector()
    for id in ids:
        connection = socket.create_connection(address)
        connection.sendall(f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        selector.register(connection, selectors.EVENT_READ)

    def listen() -> None:
        while not over.is_set():
            for ready, _ in selector.select(0.1):
                heard[0] += ready.fileobj.recv(2**16).count(b"event: ")  # type: ignore[union-attr]

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(2)
    heard[0], began, took = 0, time.monotonic(), []
    for _ in range(times):
        asked = time.monotonic()
        with socket.create_connection(address) as connection:  # a new one, as a health check has
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answered(connection) == 200
        took.append((time.monotonic() - asked) * 1000)
        time.sleep(0.05)
    events, seconds = heard[0], time.monotonic() - began
    over.set()
    listener.join()
    return {"ms": took, "events_s": events / seconds}


def answered(connection: socket.socket) -> int:
    """Reads one answer whole; its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (more := connection.recv(2**16))
        assert more, "the connection ended"
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += (more := connection.recv(2**16))
        assert more, "the connection ended"
    return int(head.split()[1])


if __name__ == "__main__":
    main()
